"""Figures of training, evaluation and robustness, each drawn from a table.

Every function takes a DataFrame (its columns named in the docstring) and returns a
matplotlib figure; ``style.save_figure`` writes it, ``report.drawn`` puts it on a page.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from adalora_qat.errors import DataError
from adalora_qat.evaluate.style import (
    DASHES,
    FAINT,
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
    _need(history, "learning_curves", "stage", "epoch", "loss", "dice")
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
    _need(ranks, "ranks_by_layer", "epoch", "layer", "rank")
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
    _need(sizes, "file_sizes", "name", "bytes")
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


def _size_ratio(first: float, other: float) -> str:
    if abs(other / first - 1) < 0.005:
        return ""
    return (
        f" ({first / other:.2f}× smaller)" if other < first else f" ({other / first:.2f}× larger)"
    )


def _short_layer(name: str) -> str:
    """Drop what all layers share from a module's name."""
    return name.removeprefix("image_encoder.").removesuffix(".attn.qkv").removesuffix(".qkv")


def _need(table: pd.DataFrame, figure: str, *columns: str) -> None:
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError(
            f"figure {figure} needs the columns {', '.join(missing)}; "
            f"the table has {', '.join(map(str, table.columns))}"
        )
    if table.empty:
        raise DataError(f"figure {figure}: the table has no rows")
