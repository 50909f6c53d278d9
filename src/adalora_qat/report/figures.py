"""Figures of training, evaluation and robustness, each drawn from a table.

Every function takes a DataFrame (its columns named in the docstring) and returns a
matplotlib figure; ``style.save_figure`` writes it, ``report.drawn`` puts it on a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from adalora_qat.errors import DataError
from adalora_qat.report.style import (
    DASHES,
    FAINT,
    INK,
    MARKERS,
    SERIES,
    canvas,
    house_style,
)


def learning_curves(history: pd.DataFrame) -> Figure:
    """Draw training loss and validation Dice over the epochs of both stages.

    Parameters
    ----------
    history : columns ``stage`` (name), ``epoch`` (1-based within its stage), ``loss`` and
        ``dice`` (NaN where not validated), in the order in which they were run.
    """
    need_columns(history, "learning_curves", "stage", "epoch", "loss", "dice")
    with house_style():
        figure = canvas(7.2, 2.7)
        panels = figure.subplots(1, 2)
        offset = 0
        for index, (stage, part) in enumerate(history.groupby("stage", sort=False)):
            epochs = part["epoch"].to_numpy() + offset
            for axes, column in zip(panels, ("loss", "dice"), strict=True):
                line = {
                    "color": SERIES[index],
                    "marker": MARKERS[index],
                    "linestyle": DASHES[index],
                }
                axes.plot(epochs, part[column], label=str(stage), **line)
                if offset:
                    axes.axvline(offset + 0.5, color=FAINT, linewidth=0.8, linestyle=":")
            offset = int(epochs.max())
        panels[0].set(title="Training loss", xlabel="Epoch", ylabel="Loss")
        panels[1].set(title="Validation Dice", xlabel="Epoch", ylabel="Dice")
        for axes in panels:
            axes.xaxis.get_major_locator().set_params(integer=True)
        panels[0].legend()
    return figure


def ranks_by_layer(ranks: pd.DataFrame) -> Figure:
    """Draw the rank of each adapted layer at the start and after each pruning.

    Parameters
    ----------
    ranks : columns ``epoch`` (0 = before training), ``layer`` and ``rank``.
    """
    need_columns(ranks, "ranks_by_layer", "epoch", "layer", "rank")
    layers = list(dict.fromkeys(ranks["layer"]))
    grid = ranks.pivot_table(index="layer", columns="epoch", values="rank").loc[layers]
    with house_style():
        figure = canvas(1.9 + 0.95 * len(grid.columns) + 1.4, 0.8 + 0.26 * len(layers))
        axes = figure.subplots()
        values = grid.to_numpy(float)
        picture = axes.imshow(values, aspect="auto", vmin=0, vmax=values.max(), cmap="viridis")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_yticks(range(len(layers)), [_short_layer(name) for name in layers])
        means = values.mean(axis=0)
        heads = [f"epoch {epoch}" if epoch else "start" for epoch in grid.columns]
        axes.set_xticks(
            range(len(heads)),
            [f"{head}\nmean {mean:.1f}" for head, mean in zip(heads, means, strict=True)],
        )
        for (row, column), value in np.ndenumerate(values):
            # Light cells take dark figures: viridis is bright above 60 % of its range.
            tone = "#101418" if value > 0.6 * values.max() else "#ffffff"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=tone, fontsize=8)
        figure.colorbar(picture, ax=axes, label="Rank", shrink=0.9).outline.set_visible(False)
    return figure


def file_sizes(sizes: pd.DataFrame) -> Figure:
    """Draw bytes on disk as bars, each named with its size and its ratio to the first.

    Parameters
    ----------
    sizes : columns ``name`` and ``bytes``; the first row is what the others are compared to.
    """
    need_columns(sizes, "file_sizes", "name", "bytes")
    megabytes = sizes["bytes"].to_numpy(float) / 1e6
    with house_style():
        figure = canvas(6.4, 0.7 + 0.42 * len(sizes))
        axes = figure.subplots()
        places = np.arange(len(sizes))[::-1]
        axes.barh(places, megabytes, color=[SERIES[0], *[SERIES[2]] * (len(sizes) - 1)], height=0.6)
        for place, size in zip(places, megabytes, strict=True):
            text = f"{size:.1f} MB{_size_ratio(megabytes[0], size)}"
            axes.annotate(text, (size, place), (5, 0), textcoords="offset points", va="center")
        axes.set_yticks(places, sizes["name"])
        axes.set(xlabel="Size on disk (1 MB = 1 000 000 bytes)", xlim=(0, megabytes.max() * 1.35))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    return figure


def size_latency_dice(models: pd.DataFrame) -> Figure:
    """Draw all models by size and Dice, and by latency and Dice, with the Pareto front.

    Parameters
    ----------
    models : columns ``name``, ``bytes``, ``latency_ms`` (NaN where not measured), ``dsc``. A
        model without a latency is left out of the second panel. Dark rims mark the front:
        no other model is both cheaper and better.
    """
    need_columns(models, "size_latency_dice", "name", "bytes", "latency_ms", "dsc")
    panels = [("bytes", 1e-6, "Size on disk (MB)", "Size and Dice")]
    if models["latency_ms"].notna().any():
        panels.append(("latency_ms", 1.0, "CPU latency (ms)", "Latency and Dice"))
    styles = {name: index for index, name in enumerate(models["name"])}
    with house_style():
        figure = canvas(1.9 + 3.1 * len(panels), 3.0)
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (column, factor, label, title) in zip(grid, panels, strict=True):
            part = models[["name", column, "dsc"]].dropna().reset_index(drop=True)
            cost = part[column].to_numpy(float) * factor
            _front(axes, part, cost, styles)
            axes.set(title=title, xlabel=label, xscale="log")
            axes.margins(x=0.12, y=0.1)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xticks(_round_ticks(cost))
        grid[0].set_ylabel("DSC")
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper")
    return figure


def pareto(cost: Sequence[float], gain: Sequence[float]) -> list[int]:
    """Return the indices that no other beats in both (lower cost, higher gain), by cost."""
    best: list[int] = []
    for index in sorted(range(len(cost)), key=lambda i: (cost[i], -gain[i])):
        if not best or gain[index] > gain[best[-1]]:
            best.append(index)
    return best


def _front(
    axes: Axes, part: pd.DataFrame, cost: NDArray[np.float64], styles: Mapping[str, int]
) -> None:
    gain = part["dsc"].to_numpy(float)
    front = pareto(cost.tolist(), gain.tolist())
    axes.plot(cost[front], gain[front], color=FAINT, linewidth=1.0, linestyle="--", zorder=1)
    for index, name in enumerate(part["name"]):
        place = styles[name]
        # Past six models colours come again, each time with another marker.
        marker = MARKERS[(place + place // len(SERIES)) % len(MARKERS)]
        axes.plot(
            cost[index], gain[index], marker, color=SERIES[place % len(SERIES)], markersize=7,
            markeredgecolor=INK if index in front else "none", label=name,
        )  # fmt: skip


def _round_ticks(values: NDArray[np.float64]) -> list[float]:
    """Return 1–2–5 steps that span the values."""
    low, high = np.log10(values.min()), np.log10(values.max())
    powers = range(int(np.floor(low)) - 1, int(np.ceil(high)) + 1)
    steps = [m * 10.0**p for p in powers for m in (1, 2, 5)]
    return [s for s in steps if 0.6 * values.min() <= s <= 1.7 * values.max()]


def _size_ratio(first: float, other: float) -> str:
    if abs(other / first - 1) < 0.005:
        return ""
    return (
        f" ({first / other:.2f}× smaller)" if other < first else f" ({other / first:.2f}× larger)"
    )


def _short_layer(name: str) -> str:
    """Drop what all layers share from a module's name."""
    return name.removeprefix("image_encoder.").removesuffix(".attn.qkv").removesuffix(".qkv")


def need_columns(table: pd.DataFrame, figure: str, *columns: str) -> None:
    """Refuse a table that a figure cannot be drawn from.

    Raises
    ------
    DataError
        If a column is missing or there is no row.
    """
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError(
            f"figure {figure} needs the columns {', '.join(missing)}; "
            f"the table has {', '.join(map(str, table.columns))}"
        )
    if table.empty:
        raise DataError(f"figure {figure}: the table has no rows")
