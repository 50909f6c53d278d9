"""The report page: one HTML file that needs nothing but a browser.

A ``ReportContent`` is plain data; ``render`` turns it into a page with its style, script,
figures and pictures inside. The page asks the network for nothing (a content security
policy in it forbids that), works without its script (which adds search, sorting and
keys), and prints.

Pictures are stored once a case: a grey JPEG and one small palette PNG for each mask, laid
over it by reference wherever they are shown again.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray
from PIL import Image

from adalora_qat.errors import DataError
from adalora_qat.files import write_text
from adalora_qat.report.overlays import (
    MODEL_COLOURS,
    TRUTH_COLOUR,
    difference_png,
    grey_jpeg,
    mask_png,
    resized,
    stored_size,
)
from adalora_qat.report.style import inline_svg
from adalora_qat.report.tables import (
    Column,
    Link,
    Spread,
    Table,
    Value,
    csv_text,
    metric_digits,
    metric_label,
)


@dataclass(frozen=True)
class Fact:
    """One headline figure: what it is, its value, and what it is measured against.

    ``beside`` stands next to the value, smaller: its difference to something.
    """

    label: str
    value: str
    note: str = ""
    beside: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure with what a reader should look for in it.

    Attributes
    ----------
    slug : anchor, ``[a-z0-9-]``.
    title : a few words.
    look_for : one sentence on what to look for.
    alt : what is to be seen, for those who cannot see it.
    picture : an ``<svg>`` element (``style.inline_svg``) or the bytes of a PNG.
    """

    slug: str
    title: str
    look_for: str
    alt: str
    picture: str | bytes


@dataclass(frozen=True)
class Case:
    """One image with its truth and what each model made of it.

    Attributes
    ----------
    id : as in the per-case table; unique within a gallery.
    image : (H, W) grey, any real dtype; shown from its 0.5th to its 99.5th percentile.
    truth : (H, W) bool, or None where there is none.
    masks : model → (H, W) bool, in the order in which the gallery lists its models.
    metrics : model → {metric: value}.
    facts : short descriptions ("source": "jsrt"); searched as well.
    box_xyxy : the prompt, pixels of the image, or None.
    original : (H, W) and the count of pixels in which the compared masks differ, both before
        ``reduced``; None for a case at its original size.
    """

    id: str
    image: NDArray[np.generic]
    truth: NDArray[np.bool_] | None
    masks: Mapping[str, NDArray[np.bool_]]
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    box_xyxy: tuple[float, float, float, float] | None = None
    original: tuple[tuple[int, int], int | None] | None = None

    def __post_init__(self) -> None:
        shape = self.image.shape
        if len(shape) != 2:
            raise DataError(f"case {self.id}: the image must be (H, W) grey, got shape {shape}")
        truth = {"truth": self.truth} if self.truth is not None else {}
        for name, mask in {**truth, **self.masks}.items():
            if mask.shape != shape:
                raise DataError(
                    f"case {self.id}: mask {name!r} is {mask.shape}, the image {shape}; "
                    "bring masks to the original size first"
                )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the original."""
        height, width = self.image.shape
        return self.original[0] if self.original else (height, width)


@dataclass(frozen=True)
class Gallery:
    """Cases to look through, with layers that can be switched on and off.

    Attributes
    ----------
    slug, title : anchor and heading.
    cases : in the order in which they are first shown.
    models : the models whose masks are layers, in order; each case must have them.
    compared : two of ``models`` whose differing pixels are a layer, or None.
    metric : the metric to sort by and to show on every card.
    side : pixels of the longest side as stored in the page.
    """

    slug: str
    title: str
    cases: tuple[Case, ...]
    models: tuple[str, ...]
    compared: tuple[str, str] | None = None
    metric: str = "dsc"
    side: int = 448

    def __post_init__(self) -> None:
        if len(self.models) > len(MODEL_COLOURS):
            raise DataError(
                f"gallery {self.slug}: {len(self.models)} models, but at most "
                f"{len(MODEL_COLOURS)} layers can be told apart; show fewer"
            )
        ids = [case.id for case in self.cases]
        doubled = sorted({name for name in ids if ids.count(name) > 1})
        if doubled:
            raise DataError(f"gallery {self.slug}: doubled case ids: {', '.join(doubled)}")
        for case in self.cases:
            missing = [name for name in self.models if name not in case.masks]
            if missing:
                raise DataError(f"case {case.id} has no mask of {', '.join(missing)}")


Block = str | Table | Figure | Gallery


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it: paragraphs, tables, figures, galleries."""

    slug: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class ReportContent:
    """Everything the page says.

    Attributes
    ----------
    title, summary : the heading and the sentence or two beneath it.
    facts : the headline figures.
    sections : the body, in order.
    provenance : what was run, on what, with which versions (label → value).
    attachments : longer texts kept at the end (title → text), such as the configuration.
    """

    title: str
    summary: str
    sections: tuple[Section, ...]
    facts: tuple[Fact, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    attachments: Mapping[str, str] = field(default_factory=dict)


def drawn(slug: str, title: str, look_for: str, alt: str, drawing: Drawing) -> Figure:
    """Make a report figure from a matplotlib figure, as SVG that follows the page's theme.

    Parameters
    ----------
    slug, title, look_for, alt : as of ``Figure``.
    """
    return Figure(slug, title, look_for, alt, inline_svg(drawing, slug, alt))


def anchor(text: str) -> str:
    """Return a name fit for files and anchors, ``[a-z0-9-]``."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "model"


def write_report(content: ReportContent, path: Path) -> None:
    """Write the page to ``path`` atomically."""
    write_text(path, render(content))


def reduced(case: Case, compared: tuple[str, str] | None = None, side: int = 448) -> Case:
    """Return a case no larger than the page stores it, so that many fit into memory.

    Parameters
    ----------
    compared : the gallery's pair; the count of their differing pixels is kept exact.
    side : pixels of the longest side, the gallery's.
    """
    size = stored_size(case.image.shape, side)
    differing = None
    if compared:
        differing = int(np.count_nonzero(case.masks[compared[0]] != case.masks[compared[1]]))
    factor = size[0] / case.image.shape[1]
    box = case.box_xyxy
    if box is not None:
        box = (box[0] * factor, box[1] * factor, box[2] * factor, box[3] * factor)
    grey = Image.fromarray(case.image.astype(np.float32)).resize(size, Image.Resampling.LANCZOS)
    return replace(
        case,
        image=np.asarray(grey),
        truth=None if case.truth is None else resized(case.truth, size),
        masks={name: resized(mask, size) for name, mask in case.masks.items()},
        box_xyxy=box,
        original=(case.size, differing),
    )


def render(content: ReportContent) -> str:
    """Return the page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("adalora_qat.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        kind=_kind, anchor=anchor, uri=_uri, svg=Markup, metric=metric_label, score=_score
    )
    environment.globals.update(
        csv_uri=_csv_uri, cell=_cell, sort_key=_sort_key, gallery_view=_gallery_view
    )
    page = environment.get_template("report.html.j2")
    return page.render(content=content, style=_asset("report.css"), script=_asset("report.js"))


def case_table(gallery: Gallery, metrics: Sequence[str], slug: str = "per-case") -> Table:
    """Return one row a case, each metric for each model, linked to the pictures."""
    columns = [Column("Case"), *(Column(f) for f in _fact_names(gallery))]
    columns += [
        Column(f"{metric_label(metric)} · {model}", metric_digits(metric))
        for metric in metrics
        for model in gallery.models
    ]
    rows: list[tuple[Value, ...]] = []
    for case in gallery.cases:
        values: list[Value] = [Link(case.id, f"#{anchor(gallery.slug + ' ' + case.id)}")]
        values += [case.facts.get(name) for name in _fact_names(gallery)]
        values += [
            case.metrics.get(model, {}).get(metric)
            for metric in metrics
            for model in gallery.models
        ]
        rows.append(tuple(values))
    caption = f"{len(gallery.cases)} cases; a name leads to its pictures."
    return Table(slug, "Every case", caption, tuple(columns), tuple(rows))


def _fact_names(gallery: Gallery) -> list[str]:
    return list(dict.fromkeys(name for case in gallery.cases for name in case.facts))


# What the template asks for.


def _kind(block: Block) -> str:
    return "Prose" if isinstance(block, str) else type(block).__name__


def _uri(data: bytes, media: str) -> str:
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def _csv_uri(table: Table) -> str:
    return _uri(csv_text(table).encode(), "text/csv")


def _cell(table: Table, row: int, column: int) -> str:
    return table.columns[column].shown(table.rows[row][column])


def _sort_key(value: Value) -> str:
    """Return what the page sorts a cell by: the number at full precision, or the text."""
    if isinstance(value, Spread):
        return repr(value.mean)
    if isinstance(value, int | float):
        return repr(value)
    return "" if value is None else getattr(value, "text", str(value))


def _score(value: float | None, metric: str) -> str:
    return Column(metric, metric_digits(metric)).shown(value)


def _asset(name: str) -> Markup:
    text = resources.files("adalora_qat.report").joinpath(name).read_text("utf-8")
    return Markup(text)


# Galleries: cases → layers of small pictures.


def _gallery_view(gallery: Gallery) -> dict[str, Any]:
    """Return what the template needs to draw a gallery: layers and encoded cases."""
    layers = []
    if any(case.truth is not None for case in gallery.cases):
        layers.append(_layer("truth", "Truth", TRUTH_COLOUR, shown=True))
    for index, model in enumerate(gallery.models):
        # At first only the last model lies over the truth: more outlines hide one another.
        shown = index == len(gallery.models) - 1
        layers.append(_layer(f"model{index}", model, MODEL_COLOURS[index], shown))
    if gallery.compared:
        layers.append(_layer("difference", "Where they differ", None, shown=False))
    sources = sorted({case.facts.get("source", "") for case in gallery.cases} - {""})
    cases = [_case_view(gallery, case) for case in gallery.cases]
    metrics = list(dict.fromkeys(m for c in gallery.cases for v in c.metrics.values() for m in v))
    return {"layers": layers, "sources": sources, "cases": cases, "metrics": metrics}


def _layer(
    key: str, label: str, colour: tuple[int, int, int] | None, shown: bool
) -> dict[str, Any]:
    return {"key": key, "label": label, "colour": _css(colour) if colour else "", "shown": shown}


def _case_view(gallery: Gallery, case: Case) -> dict[str, Any]:
    size = stored_size(case.image.shape, gallery.side)
    # Outlines over a small image are stored finer than its pixels, so that they stay thin.
    factor = max(1, round(gallery.side / max(size)))
    fine = (size[0] * factor, size[1] * factor)
    masks = {"truth": case.truth} if case.truth is not None else {}
    masks |= {f"model{i}": case.masks[name] for i, name in enumerate(gallery.models)}
    colours = {"truth": TRUTH_COLOUR, **{f"model{i}": c for i, c in enumerate(MODEL_COLOURS)}}
    layers = {
        key: _uri(mask_png(resized(mask, fine), colours[key]), "image/png")
        for key, mask in masks.items()
    }
    first, second = gallery.compared or (None, None)
    differing = None
    if first is not None and second is not None:
        a, b = case.masks[first], case.masks[second]
        differing = int(np.count_nonzero(a != b))
        if case.original and case.original[1] is not None:
            differing = case.original[1]
        colour_of = dict(zip(gallery.models, MODEL_COLOURS, strict=False))
        picture = difference_png(a, b, size, colour_of[first], colour_of[second])
        layers["difference"] = _uri(picture, "image/png")
    scores = [case.metrics.get(model, {}).get(gallery.metric) for model in gallery.models]
    return {
        "case": case,
        "anchor": anchor(f"{gallery.slug} {case.id}"),
        "image": _uri(grey_jpeg(case.image, size), "image/jpeg"),
        "layers": layers,
        "width": size[0],
        "height": size[1],
        "box": _scaled_box(case, size),
        "differing": differing,
        "pixels": case.size[0] * case.size[1],
        "scores": scores,
        "search": " ".join([case.id, *case.facts.values()]).lower(),
    }


def _scaled_box(case: Case, size: tuple[int, int]) -> dict[str, float] | None:
    if case.box_xyxy is None:
        return None
    factor = size[0] / case.image.shape[1]
    x0, y0, x1, y1 = (round(edge * factor, 1) for edge in case.box_xyxy)
    return {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0}


def _css(colour: tuple[int, int, int]) -> str:
    return f"rgb({colour[0]} {colour[1]} {colour[2]})"
