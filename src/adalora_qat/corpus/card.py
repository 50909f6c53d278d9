"""The data card: one self-contained page that shows what a prepare made of the data.

No script, no network, no fonts or pictures from elsewhere. It embeds thumbnails of the
images and so belongs in the folder of the data, under the same terms.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from adalora_qat.corpus.fingerprint_store import FingerprintStore
from adalora_qat.corpus.outcome import Linked, PrepareReport, Quarantined
from adalora_qat.corpus.records import SPLITS, sort_structures
from adalora_qat.corpus.splits import records_of
from adalora_qat.errors import DataError
from adalora_qat.files import write_text
from adalora_qat.imaging.geometry import load_image, load_mask, to_grey_uint8

# Pictures a card shows at most; with more images it says "12 of 34,000", and stays a page
# that opens at once.
PER_SOURCE = 12
PER_REASON = 18
PER_LINK_REASON = 36
SIZES_SHOWN = 8
FILES_SHOWN = 5
PICTURE_SIDE = 200
JPEG_QUALITY = 80
CHEST_COLOURS = {
    "lung": "#56b4e9",
    "left_lung": "#4fd19a",
    "right_lung": "#e6a72f",
    "heart": "#ff6d5a",
    "infection": "#f0e442",
    "pneumothorax": "#e58fc0",
}


@dataclass(frozen=True)
class CardContents:
    """What the card is about.

    Attributes
    ----------
    report : the counts.
    manifest : the usable records, paths absolute.
    quarantine, linked : the rows of ``quarantine.csv`` and ``groups.csv``.
    """

    report: PrepareReport
    manifest: pd.DataFrame
    quarantine: Sequence[Quarantined]
    linked: Sequence[Linked]


@dataclass(frozen=True)
class Picture:
    """An embedded thumbnail.

    Attributes
    ----------
    width, height : of the thumbnail, in pixels.
    uri : JPEG as a data URI.
    outlines : (structure, SVG path in thumbnail pixels).
    """

    width: int
    height: int
    uri: str
    outlines: tuple[tuple[str, str], ...] = ()


def write_card(path: Path, contents: CardContents, store: FingerprintStore) -> None:
    """Write the page; the same contents give the same bytes."""
    report = contents.report
    sources = sorted(report.found)
    structures = sort_structures(name for masks in report.masks.values() for name in masks)
    page = _template().render(
        report=report,
        sources=sources,
        splits=[split for split in SPLITS if split in report.splits],
        classes=_classes(contents.manifest),
        structures=structures,
        colours=_colours(structures),
        patients=_patients(contents.manifest),
        spacing=contents.manifest.groupby("source")["spacing_row_mm"].count().to_dict(),
        sizes={source: _sizes(_of(contents.manifest, source)) for source in sources},
        levels=_levels(contents.manifest, store),
        sheets=[_sheet(source, _of(contents.manifest, source)) for source in sources],
        objections=_objections(contents.quarantine, store),
        links=_links(contents.linked, store),
    )
    write_text(path, page)


def _template() -> jinja2.Template:
    text = resources.files("adalora_qat.corpus").joinpath("card.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["count"] = lambda number: f"{number:,}"
    return environment.from_string(text)


def _colours(structures: Sequence[str]) -> dict[str, str]:
    """Return structure → CSS colour of its outline, on a dark image."""
    others = [name for name in structures if name not in CHEST_COLOURS]
    # Steps of the golden angle: whatever the number of structures, their hues differ.
    hues = {name: round(200 + 137.5 * index) % 360 for index, name in enumerate(others)}
    return {**CHEST_COLOURS, **{name: f"hsl({hue} 75% 62%)" for name, hue in hues.items()}}


def _patients(manifest: pd.DataFrame) -> dict[str, list[str]]:
    """Return which sources give a patient to every image, and which not."""
    unknown = set(manifest.loc[manifest["patient"].isna(), "source"])
    return {
        "known": sorted(set(manifest["source"]) - unknown),
        "unknown": sorted(unknown),
    }


def _of(manifest: pd.DataFrame, source: str) -> pd.DataFrame:
    return manifest[manifest["source"] == source]


def _classes(manifest: pd.DataFrame) -> list[dict[str, Any]]:
    """Return one row per source and class: counts by split."""
    labels = manifest["label"].fillna("")
    counts = Counter(zip(manifest["source"], labels, manifest["split"], strict=True))
    rows: dict[tuple[str, str], dict[str, int]] = {}
    for (source, label, split), number in sorted(counts.items()):
        rows.setdefault((source, label), {})[split] = number
    return [
        {"source": source, "label": label, "total": sum(by_split.values()), "splits": by_split}
        for (source, label), by_split in rows.items()
    ]


def _sizes(manifest: pd.DataFrame) -> dict[str, Any]:
    """Return the commonest (width, height) with their counts, and how many others there are."""
    counts = manifest.groupby(["width", "height"]).size().reset_index(name="count")
    counts = counts.sort_values(["count", "width", "height"], ascending=[False, True, True])
    rows = [(int(w), int(h), int(n)) for w, h, n in counts.itertuples(index=False)]
    rest = sum(number for _, _, number in rows[SIZES_SHOWN:])
    return {
        "common": rows[:SIZES_SHOWN],
        "others": len(rows[SIZES_SHOWN:]),
        "smallest": min((min(row[:2]) for row in rows), default=0),
        "largest": max((max(row[:2]) for row in rows), default=0),
        "rest": rest,
        "total": len(manifest),
    }


def _levels(manifest: pd.DataFrame, store: FingerprintStore) -> dict[str, dict[str, Any]]:
    """Return per source the average grey-level histogram, as an SVG path, and its summary."""
    source_of = dict(zip(manifest["id"], manifest["source"], strict=True))
    sums: dict[str, NDArray[np.float64]] = {}
    images: dict[str, int] = {}
    for record_id, counts in store.histograms():
        source = source_of.get(record_id)
        if source is not None:
            # Each image counts the same, whatever its size.
            sums[source] = sums.get(source, np.zeros(len(counts))) + counts / counts.sum()
            images[source] = images.get(source, 0) + 1
    return {source: _curve(total / images[source]) for source, total in sums.items()}


def _curve(shares: NDArray[np.float64]) -> dict[str, Any]:
    bins = len(shares)
    # A burnt-in black frame would flatten everything else: the scale leaves the ends out.
    top = float(max(shares[1:-1].max(), shares.max() / 4)) * 1.05
    heights = np.minimum(shares / top, 1)
    steps = [f"H{x * 256 // bins}V{100 * (1 - y):.1f}" for x, y in enumerate(heights)]
    mean = float(shares @ (np.arange(bins) + 0.5)) * 256 / bins
    cumulative = shares.cumsum()
    low, high = (int(np.searchsorted(cumulative, share)) * 256 // bins for share in (0.05, 0.95))
    return {
        "path": "M0 100" + "".join(steps) + "H256V100Z",
        "mean": round(mean),
        "low": low,
        "high": min(high + 256 // bins - 1, 255),
    }


def _sheet(source: str, manifest: pd.DataFrame) -> dict[str, Any]:
    """Return a contact sheet: records drawn by the hash of their id, classes in turn."""
    drawn = manifest.assign(
        draw=[hashlib.sha256(key.encode()).hexdigest() for key in manifest["id"]],
        label=manifest["label"].fillna(""),
    ).sort_values("draw")
    turn = drawn.groupby("label").cumcount()
    chosen = drawn.assign(turn=turn).sort_values(["turn", "label"]).head(PER_SOURCE)
    pictures = []
    for record in records_of(chosen.sort_values(["label", "id"])):
        try:
            grey = to_grey_uint8(load_image(record.image))
            outlines = {
                name: load_mask(record.masks[name]) for name in sort_structures(record.masks)
            }
        except DataError:  # changed since it was checked; the next prepare will say so
            continue
        pictures.append(
            {"id": record.id, "label": record.label, "picture": _picture(grey, outlines)}
        )
    return {"source": source, "total": len(manifest), "pictures": pictures}


def _objections(quarantine: Iterable[Quarantined], store: FingerprintStore) -> list[dict[str, Any]]:
    """Return the quarantine by stage, code and source, with pictures where there are any."""

    def what(row: Quarantined) -> tuple[str, str, str]:
        return row.stage, row.source, row.code if row.id else row.reason

    blocks = []
    for (stage, source, code), members in groupby(sorted(quarantine, key=what), key=what):
        rows = list(members)
        shown = [
            {
                "id": row.id,
                "reason": row.reason,
                "picture": _stored_picture(row.id, store, with_masks=code.startswith("mask")),
            }
            for row in rows[:PER_REASON]
            if row.id
        ]
        files = [] if shown else [Path(row.file).name for row in rows[:FILES_SHOWN]]
        blocks.append(
            {
                "stage": stage,
                "source": source,
                "code": code,
                "total": len(rows),
                "shown": shown,
                "files": files,
            }
        )
    return blocks


def _links(linked: Iterable[Linked], store: FingerprintStore) -> list[dict[str, Any]]:
    """Return the linked pairs by reason, the least alike first: those want a second look."""

    def rank(row: Linked) -> tuple[str, float, str, str]:
        return row.reason, row.similarity or 0, row.first, row.second

    blocks = []
    for reason, members in groupby(sorted(linked, key=rank), key=lambda row: row.reason):
        rows = list(members)
        pairs = [
            {
                "row": row,
                "pictures": [_stored_picture(key, store) for key in (row.first, row.second)],
            }
            for row in rows[:PER_LINK_REASON]
        ]
        blocks.append({"reason": reason, "total": len(rows), "pairs": pairs})
    return blocks


def _stored_picture(
    record_id: str, store: FingerprintStore, with_masks: bool = False
) -> Picture | None:
    """Return the kept thumbnail of an image; the image itself is not opened again."""
    small = store.thumbnail(record_id)
    if small is None:
        return None
    height, width, masks = store.size_and_masks(record_id)
    side = max(height, width)
    # The stored thumbnail is squeezed to a square; the original's shape is given back.
    shape = [max(1, round(len(small) * n / side)) for n in (width, height)]
    outlines = {}
    for structure in sort_structures(masks) if with_masks else ():
        with suppress(DataError):  # the caption says what is wrong with it
            outlines[structure] = load_mask(masks[structure])
    return _picture(np.asarray(cv2.resize(small, shape, interpolation=cv2.INTER_AREA)), outlines)


def _picture(
    grey: NDArray[Any], masks: dict[str, NDArray[np.bool_]], side: int = PICTURE_SIDE
) -> Picture:
    scale = min(1.0, side / max(grey.shape))
    width, height = (max(1, round(n * scale)) for n in (grey.shape[1], grey.shape[0]))
    small = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)
    stored = io.BytesIO()
    Image.fromarray(small).save(stored, "JPEG", quality=JPEG_QUALITY)
    uri = "data:image/jpeg;base64," + base64.b64encode(stored.getvalue()).decode()
    outlines = tuple((name, _outline(mask, width, height)) for name, mask in masks.items())
    return Picture(width, height, uri, outlines)


def _outline(mask: NDArray[np.bool_], width: int, height: int) -> str:
    """Return a mask's outline as an SVG path in the pixels of a (width, height) picture."""
    # At twice the size, the corners of the polygon lie on half pixels.
    size = (2 * width, 2 * height)
    large = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_LINEAR) > 127
    rings, _ = cv2.findContours(large.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_TC89_KCOS)
    paths = []
    for contour in rings:
        corners = [f"{x / 2:g} {y / 2:g}" for x, y in contour.reshape(-1, 2).tolist()]
        paths.append("M" + "L".join(corners) + "Z")
    return "".join(paths)
