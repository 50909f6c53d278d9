"""Figures of robustness: a metric against box jitter and against each degradation.

Lines are means over cases, bands 95 % t intervals of the mean (Student). Cases are the same
at every strength, so lines of two models may be compared where their bands overlap: the
paired test is in the tables.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from adalora_qat.errors import DataError
from adalora_qat.evaluate.metrics import METRICS
from adalora_qat.evaluate.robustness import DEGRADATIONS, WHOLE_IMAGE, parse_altered
from adalora_qat.evaluate.summaries import summarize
from adalora_qat.report.figures import need_columns
from adalora_qat.report.style import DASHES, FAINT, MARKERS, SERIES, canvas, house_style
from adalora_qat.report.tables import Column, Spread, Table, Value, metric_digits, metric_label

# Asked with the whole image as the box, or looking at the image alone.
UNPROMPTED = (WHOLE_IMAGE, "none")

Parsed = Sequence[tuple[str, float] | None]


def jitter_figure(cases: pd.DataFrame, metric: str = "dsc") -> Figure:
    """Draw a metric against the jitter of the box (px of the original) and no prompt.

    Parameters
    ----------
    cases : columns ``model``, ``box`` (``oracle``, ``oracle+jitter5``, ``whole-image``), metric.
    """
    need_columns(cases, "jitter_figure", "model", "box", metric)
    jitter = cases["box"].map(_jitter)
    far = float(jitter.max()) if jitter.notna().any() else 0.0
    aside = max(far * 1.18, 5.0)
    with house_style():
        figure = canvas(5.4, 3.2)
        axes = figure.subplots()
        for m, (model, part) in enumerate(cases.groupby("model", sort=False)):
            known = part[jitter[part.index].notna()]
            if len(known):
                _line(axes, jitter[known.index], known[metric], m, str(model))
            whole = part.loc[part["box"].isin(UNPROMPTED), metric].dropna()
            if len(whole):
                mean, half = _interval(whole)
                place = aside + (m - 0.5) * far * 0.02
                axes.errorbar(
                    place,
                    mean,
                    yerr=half,
                    color=_color(m),
                    marker=MARKERS[m % len(MARKERS)],
                    capsize=2,
                    linestyle="none",
                    label=None if len(known) else str(model),
                )
        ticks = sorted(set(jitter.dropna()))
        names = [f"{tick:g}" for tick in ticks]
        if cases["box"].isin(UNPROMPTED).any():
            ticks, names = [*ticks, aside], [*names, "no\nprompt"]
            axes.axvline((far + aside) / 2, color=FAINT, linewidth=0.8, linestyle=":")
        axes.set_xticks(ticks, names)
        axes.set(
            xlabel="Each edge of the true box moved by up to ± px",
            ylabel=metric_label(metric),
            title=f"{metric_label(metric)} and the box{_counted(cases)}",
        )
        _within_bounds(axes, metric)
        axes.legend(loc="lower left")
    return figure


def degradation_figure(cases: pd.DataFrame, metric: str = "dsc") -> Figure:
    """Draw a metric against the strength of each degradation, a panel a kind.

    Parameters
    ----------
    cases : columns ``model``, ``altered`` (``as-read`` or ``kind=strength``) and metric.
    """
    need_columns(cases, "degradation_figure", "model", "altered", metric)
    parsed = [parse_altered(name) for name in cases["altered"]]
    kinds = [k for k in DEGRADATIONS if any(p is not None and p[0] == k for p in parsed)]
    if not kinds:
        raise DataError(
            "no degraded case in the table; evaluate with robustness.evaluate_degradations"
        )
    columns = min(3, len(kinds))
    rows = math.ceil(len(kinds) / columns)
    with house_style():
        figure = canvas(2.9 * columns, 0.5 + 2.3 * rows)
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes, kind in zip(grid.flat, kinds, strict=False):
            _degradation_panel(axes, cases, parsed, kind, metric)
        for axes in grid.flat[len(kinds) :]:
            axes.set_visible(False)
        for row in grid:
            row[0].set_ylabel(metric_label(metric))
        handles, labels = grid.flat[0].get_legend_handles_labels()
        title = _counted(cases).removeprefix(", ") or None
        figure.legend(handles, labels, loc="outside upper left", ncols=4, title=title)
        _within_bounds(grid.flat[0], metric)
    return figure


def sweep_table(cases: pd.DataFrame, slug: str, title: str, metric: str = "dsc") -> Table:
    """Return mean ± sd of each model at each box and alteration, with n and the change.

    Parameters
    ----------
    cases : columns ``model``, ``box``, ``altered`` and metric; the first setting of each model
        is what its others are compared with.
    """
    need_columns(cases, "sweep_table", "model", "box", "altered", metric)
    label = metric_label(metric)
    rows: list[tuple[Value, ...]] = []
    for model, part in cases.groupby("model", sort=False):
        first: float | None = None
        for (box, altered), at in part.groupby(["box", "altered"], sort=False):
            found = summarize(at[metric])
            first = found.mean if first is None else first
            spread = Spread(found.mean, found.sd)
            change = found.mean - first
            rows.append(
                (str(model), str(box), str(altered), found.n, found.dropped, spread, change)
            )
    columns = (
        Column("Model"), Column("Box"), Column("Image"), Column("n"), Column("dropped"),
        Column(label, metric_digits(metric)),
        Column(f"Δ {label}", metric_digits(metric), signed=True),
    )  # fmt: skip
    caption = (
        "Mean ± standard deviation over the same cases at every setting; Δ is the difference "
        "to the model's first row."
    )
    return Table(slug, title, caption, columns, tuple(rows))


def _degradation_panel(
    axes: Axes, cases: pd.DataFrame, parsed: Parsed, kind: str, metric: str
) -> None:
    degradation = DEGRADATIONS[kind]

    strengths = [found[1] if found and found[0] == kind else math.nan for found in parsed]
    values = pd.Series(strengths, index=cases.index, dtype=float)
    values = values.mask(cases["altered"] == "as-read", degradation.neutral)
    places = _places(kind, sorted(set(values.dropna())))
    for m, (model, part) in enumerate(cases.groupby("model", sort=False)):
        known = part[values[part.index].notna()]
        _line(axes, values[known.index].map(places), known[metric], m, str(model))
    axes.set_xticks(list(places.values()), [f"{value:g}" for value in places])
    axes.axvline(
        places.get(degradation.neutral, math.nan), color=FAINT, linewidth=0.8, linestyle=":"
    )
    axes.set_xlabel(degradation.axis)


def _places(kind: str, strengths: Sequence[float]) -> dict[float, float]:
    """Return where strengths stand: evenly, as the steps are geometric; degrees as they are.

    JPEG quality falls from left to right, so that every panel worsens away from its dotted line.
    """
    if kind == "rotation":
        return {value: value for value in strengths}
    ordered = sorted(strengths, reverse=kind == "jpeg")
    return {value: float(index) for index, value in enumerate(ordered)}


def _line(axes: Axes, x: pd.Series[float], y: pd.Series[float], index: int, label: str) -> None:
    table = pd.DataFrame({"x": x.astype(float), "y": y.astype(float)}).dropna()
    if table.empty:
        return
    places = sorted(set(table["x"]))
    found = [_interval(table.loc[table["x"] == place, "y"]) for place in places]
    mean = np.array([m for m, _ in found])
    half = np.array([h for _, h in found])
    color = _color(index)
    axes.fill_between(places, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)
    axes.plot(
        places, mean, color=color, marker=MARKERS[index % len(MARKERS)],
        linestyle=DASHES[index % len(DASHES)], label=label,
    )  # fmt: skip


def _interval(values: pd.Series[float]) -> tuple[float, float]:
    """Return the mean and half its 95 % t interval (0 for a single case)."""
    n = len(values)
    if n < 2:
        return float(values.mean()), 0.0
    half = float(stats.t.ppf(0.975, n - 1)) * float(values.std(ddof=1)) / math.sqrt(n)
    return float(values.mean()), half


def _counted(cases: pd.DataFrame) -> str:
    """Return ", n = 12 cases" where cases are named, for the figure itself."""
    return f", n = {cases['id'].nunique()} cases" if "id" in cases else ""


def _within_bounds(axes: Axes, metric: str) -> None:
    """Keep the axis within what a share can be: t intervals of few cases reach beyond."""
    if metric not in METRICS or METRICS[metric].unit:
        return
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, low), min(1.02, high))


def _jitter(box: str) -> float:
    found = re.fullmatch(r"oracle(?:\+jitter(\d+))?", box)
    return float(found[1] or 0) if found else math.nan


def _color(index: int) -> str:
    return SERIES[index % len(SERIES)]
