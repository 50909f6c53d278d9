"""Figures of single cases: by group, the worst of them, agreement, and self-knowledge.

Each is drawn from a per-case table (``case_table.CASE_COLUMNS``) or what is named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from adalora_qat.errors import DataError
from adalora_qat.evaluate.clinical import bland_altman
from adalora_qat.report.figures import need_columns
from adalora_qat.report.style import (
    BLUE,
    DASHES,
    FAINT,
    GREEN,
    INK,
    MARKERS,
    ORANGE,
    SERIES,
    VERMILION,
    bare,
    canvas,
    house_style,
)
from adalora_qat.report.tables import metric_label

NO_CLASS: Final = "no class"
_WIDEST: Final = 7.2
"""Inches: the text width of an A4 page."""
Mask = NDArray[np.bool_]


def dice_by_group(
    cases: pd.DataFrame, by: str = "label", metric: str = "dsc", least: int = 2
) -> Figure:
    """Draw every case of every model as a point beside a box plot, grouped by a column.

    Parameters
    ----------
    cases : columns ``model``, ``metric`` and ``by``; a case without a class is a group.
    least : groups of fewer cases are drawn as points only.
    """
    need_columns(cases, "dice_by_group", "model", by, metric)
    groups = cases[by].astype(object).where(cases[by].notna(), NO_CLASS).astype(str)
    names, models = sorted(set(groups)), list(dict.fromkeys(cases["model"]))
    rng = np.random.default_rng(0)
    with house_style():
        # Wider than a page it would be shrunk to one, letters and all.
        wanted = 1.2 + 0.55 * len(names) * len(models)
        figure = canvas(min(max(4.8, wanted), _WIDEST), 3.2)
        axes = figure.subplots()
        width = 0.8 / len(models)
        for m, model in enumerate(models):
            for g, name in enumerate(names):
                chosen = (cases["model"] == model) & (groups == name)
                values = cases.loc[chosen, metric].dropna().to_numpy()
                place = g + (m - (len(models) - 1) / 2) * width
                _points_and_box(axes, values, place, width, SERIES[m % len(SERIES)], least, rng)
            color, marker = SERIES[m % len(SERIES)], MARKERS[m % len(MARKERS)]
            axes.plot([], [], color=color, marker=marker, linestyle="none", label=str(model))
        counts = groups[cases["model"] == models[0]].value_counts()
        heads = [f"{name}\nn = {counts.get(name, 0)}" for name in names]
        axes.set_xticks(range(len(names)), heads)
        axes.grid(visible=False, axis="x")
        axes.set(ylabel=metric_label(metric), title=f"{metric_label(metric)} by {by}")
        axes.legend(loc="lower left", ncols=min(3, len(models)))
    return figure


def dice_by_area(cases: pd.DataFrame, metric: str = "dsc", groups: int = 5) -> Figure:
    """Draw a metric against the area of the truth as a share of the image.

    Parameters
    ----------
    cases : columns ``model``, ``metric``, ``truth_area_px``, ``height``, ``width``.
    groups : equally many cases go to each; the line joins the groups' means.
    """
    need_columns(cases, "dice_by_area", "model", metric, "truth_area_px", "height", "width")
    with house_style():
        figure = canvas(5.4, 3.2)
        axes = figure.subplots()
        for m, (model, part) in enumerate(cases.groupby("model", sort=False)):
            size = part["height"].astype(float) * part["width"].astype(float)
            share = 100 * part["truth_area_px"].astype(float) / size
            color = SERIES[m % len(SERIES)]
            axes.plot(share, part[metric], ".", color=color, alpha=0.35, markersize=4)
            number = max(1, min(groups, len(part) // 4))
            rank = share.rank(method="first", pct=True)
            place = np.minimum((rank * number).astype(int), number - 1)
            line = pd.DataFrame({"x": share, "y": part[metric]}).groupby(place).mean()
            marker, dash = MARKERS[m % len(MARKERS)], DASHES[m % len(DASHES)]
            axes.plot(
                line["x"], line["y"], color=color, marker=marker, linestyle=dash, label=str(model)
            )
        axes.set(
            xlabel="Area of the truth (% of the image)",
            ylabel=metric_label(metric),
            title=f"{metric_label(metric)} by area",
        )
        axes.legend(loc="lower right")
    return figure


@dataclass(frozen=True)
class OutlinedCase:
    """One case to be drawn with outlines.

    Attributes
    ----------
    id, caption : its name, and a short line under it ("DSC 0.71").
    image : (H, W) grey.
    truth : (H, W) bool.
    masks : model → (H, W) bool.
    """

    id: str
    caption: str
    image: NDArray[Any]
    truth: Mask
    masks: Mapping[str, Mask]


def worst_ids(cases: pd.DataFrame, model: str, metric: str = "dsc", count: int = 10) -> list[str]:
    """Return the ids of a model's worst cases, worst first; a case without a result is worst.

    Raises
    ------
    DataError
        If the model is not in the table.
    """
    part = cases[cases["model"] == model]
    if part.empty:
        known = ", ".join(map(str, dict.fromkeys(cases["model"])))
        raise DataError(f"no case of model {model!r}; the table has {known}")
    ordered = part.sort_values([metric, "id"], na_position="first", kind="stable")
    return list(dict.fromkeys(ordered["id"].astype(str)))[:count]


def outlines(cases: Sequence[OutlinedCase], columns: int = 5) -> Figure:
    """Draw cases with the outline of the truth and of each model's mask."""
    if not cases:
        raise DataError("there is no case to outline")
    models = list(cases[0].masks)
    lines = {"Truth": GREEN} | dict(zip(models, (ORANGE, BLUE, VERMILION), strict=False))
    rows = math.ceil(len(cases) / columns)
    with house_style():
        figure = canvas(1.85 * min(columns, len(cases)), 0.4 + 2.2 * rows)
        grid = figure.subplots(rows, min(columns, len(cases)), squeeze=False)
        for axes in grid.flat:
            bare(axes)
        for axes, case in zip(grid.flat, cases, strict=False):
            axes.imshow(case.image, cmap="gray")
            shapes = {"Truth": case.truth} | {name: case.masks[name] for name in models}
            for (name, mask), dash in zip(shapes.items(), ("-", "--", ":", "-."), strict=False):
                if mask.any() and not mask.all():
                    axes.contour(
                        mask, levels=[0.5], colors=[lines[name]], linewidths=1.1, linestyles=[dash]
                    )
            axes.set_title(case.id.rsplit("/", 1)[-1], fontsize=7.5, loc="left")
            axes.set_xlabel(case.caption, fontsize=7.5)
        handles = [
            axes.plot([], [], color=color, linestyle=dash, label=name)[0]
            for (name, color), dash in zip(lines.items(), ("-", "--", ":", "-."), strict=False)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def agreement(
    truth: Sequence[float] | NDArray[np.float64],
    prediction: Sequence[float] | NDArray[np.float64],
    quantity: str,
) -> Figure:
    """Draw a Bland–Altman plot of a measured quantity ("Lung area (cm²)").

    The shaded bands are 95 % confidence intervals of the bias and of both limits.

    Parameters
    ----------
    truth, prediction : (N,), one value a case, in the unit that ``quantity`` names.
    """
    found = bland_altman(np.asarray(truth, float), np.asarray(prediction, float))
    if not found.n:
        raise DataError(f"no pair of finite values of {quantity}")
    with house_style():
        figure = canvas(5.4, 3.2)
        axes = figure.subplots()
        axes.plot(found.mean, found.difference, ".", color=BLUE, alpha=0.6)
        for value, interval, label in (
            (found.bias, found.bias_interval, "bias"),
            (found.upper, found.upper_interval, "+1.96 SD"),
            (found.lower, found.lower_interval, "−1.96 SD"),
        ):
            if not math.isfinite(value):
                continue
            dash = "-" if label == "bias" else "--"
            axes.axhline(value, color=VERMILION, linewidth=1.1, linestyle=dash)
            if all(map(math.isfinite, interval)):
                axes.axhspan(*interval, color=VERMILION, alpha=0.1, linewidth=0)
            axes.annotate(
                f"{label} {value:.3g}", (1.01, value), xycoords=("axes fraction", "data"),
                va="center", fontsize=8, color=INK,
            )  # fmt: skip
        axes.set(
            xlabel=f"Mean of truth and prediction: {quantity}",
            ylabel="Prediction − truth",
            title=f"Agreement, n = {found.n}",
        )
    return figure


def reliability(cases: pd.DataFrame, groups: int = 10) -> Figure:
    """Draw what a model believes of its masks (``score``, predicted IoU) against their IoU.

    Cases are put into ``groups`` of equal size by score; the legend gives the mean distance
    between belief and truth over cases (|score − IoU|) and Spearman's rank correlation,
    which says whether the score can at least sort good masks from bad.
    """
    need_columns(cases, "reliability", "model", "score", "iou")
    with house_style():
        figure = canvas(4.6, 3.8)
        axes = figure.subplots()
        low = 1.0
        for m, (model, part) in enumerate(cases.groupby("model", sort=False)):
            pair = part[["score", "iou"]].dropna()
            if pair.empty:
                continue
            number = max(1, min(groups, len(pair) // 3))
            place = (pair["score"].rank(method="first", pct=True) * number).apply(math.ceil)
            line = pair.groupby(place).mean()
            gap = (pair["score"] - pair["iou"]).abs().mean()
            sorts = pair.nunique().min() > 1
            order = pair["score"].corr(pair["iou"], method="spearman") if sorts else math.nan
            color, marker = SERIES[m % len(SERIES)], MARKERS[m % len(MARKERS)]
            axes.plot(pair["score"], pair["iou"], ".", color=color, alpha=0.2, markersize=3)
            label = f"{model}: off by {gap:.3f}, ρ = {order:.2f}"
            axes.plot(
                line["score"], line["iou"], color=color, marker=marker,
                linestyle=DASHES[m % len(DASHES)], label=label,
            )  # fmt: skip
            low = min(low, float(pair.min().min()))
        ends = [max(0.0, low - 0.02), 1.0]
        axes.plot(ends, ends, color=FAINT, linewidth=0.9)
        axes.set(
            xlabel="IoU as the model predicts it", ylabel="IoU as it is",
            title="Does the model know?", xlim=ends, ylim=ends,
        )  # fmt: skip
        axes.legend(loc="upper left")
    return figure


def _points_and_box(
    axes: Axes,
    values: NDArray[np.float64],
    place: float,
    width: float,
    color: str,
    least: int,
    rng: np.random.Generator,
) -> None:
    spread = place + (rng.random(len(values)) - 0.5) * width * 0.5
    axes.plot(spread, values, ".", color=color, alpha=0.35, markersize=3)
    if len(values) >= least:
        line = {"color": color, "linewidth": 1.2}
        axes.boxplot(
            values, positions=[place], widths=width * 0.7, showfliers=False, manage_ticks=False,
            medianprops=line | {"linewidth": 2.0}, boxprops=line, whiskerprops=line, capprops=line,
        )  # fmt: skip
