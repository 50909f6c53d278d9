"""What the figures of training and size show, read back from their axes."""

import numpy as np
import pandas as pd
import pytest

from adalora_qat.errors import DataError
from adalora_qat.report.figures import (
    file_sizes,
    learning_curves,
    pareto,
    ranks_by_layer,
    size_latency_dice,
)


def texts(axes: object) -> list[str]:
    return [text.get_text() for text in axes.texts]  # type: ignore[attr-defined]


def test_learning_curves_run_on_through_stage_two() -> None:
    history = pd.DataFrame(
        {
            "stage": ["one"] * 3 + ["two"] * 2,
            "epoch": [1, 2, 3, 1, 2],
            "loss": [3.0, 2, 1, 0.9, 0.8],
            "dice": [0.5, np.nan, 0.7, 0.7, 0.71],
        }
    )
    loss, dice = learning_curves(history).axes
    drawn = [
        line.get_xdata()
        for line in loss.lines
        if len(line.get_xdata()) > 2 or line.get_marker() == "s"
    ]
    assert [list(x) for x in drawn] == [[1, 2, 3], [4, 5]]
    assert dice.get_ylabel() == "Dice"
    assert [t.get_text() for t in loss.get_legend().get_texts()] == ["one", "two"]


def test_ranks_stand_in_their_cells_with_the_mean_below() -> None:
    ranks = pd.DataFrame(
        {
            "epoch": [0, 0, 3, 3],
            "layer": ["image_encoder.layers.1.blocks.0.attn.qkv", "b.qkv"] * 2,
            "rank": [48, 48, 40, 8],
        }
    )
    axes = ranks_by_layer(ranks).axes[0]
    assert texts(axes) == ["48", "40", "48", "8"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["layers.1.blocks.0", "b"]
    assert [t.get_text() for t in axes.get_xticklabels()] == [
        "start\nmean 48.0",
        "epoch 3\nmean 24.0",
    ]


def test_all_ranks_zero_can_be_drawn() -> None:
    ranks_by_layer(pd.DataFrame({"epoch": [0], "layer": ["a"], "rank": [0]})).canvas.draw()


def test_sizes_name_bytes_and_ratio() -> None:
    sizes = pd.DataFrame({"name": ["a", "b", "c", "d"], "bytes": [40e6, 10e6, 50e6, 40.01e6]})
    axes = file_sizes(sizes).axes[0]
    assert texts(axes) == [
        "40.0 MB", "10.0 MB (4.00× smaller)", "50.0 MB (1.25× larger)", "40.0 MB",
    ]  # fmt: skip


def test_pareto_front_by_hand() -> None:
    assert pareto([1, 2, 3, 4], [0.5, 0.4, 0.9, 0.9]) == [0, 2]
    assert pareto([2, 2, 1], [0.5, 0.6, 0.1]) == [2, 1]
    assert pareto([], []) == []


def test_models_without_latency_are_in_the_first_panel_only() -> None:
    models = pd.DataFrame(
        {
            "name": ["a", "b"],
            "bytes": [1e6, 2e6],
            "latency_ms": [5.0, np.nan],
            "dsc": [0.9, 0.95],
        }
    )
    size, latency = size_latency_dice(models).axes
    labels = [
        [line.get_label() for line in axes.lines if not line.get_label().startswith("_")]
        for axes in (size, latency)
    ]
    assert labels == [["a", "b"], ["a"]]
    assert len(size_latency_dice(models.assign(latency_ms=np.nan)).axes) == 1


def test_what_cannot_be_drawn_is_told() -> None:
    with pytest.raises(DataError, match=r"file_sizes needs the columns bytes; the table has name"):
        file_sizes(pd.DataFrame({"name": ["a"]}))
    with pytest.raises(DataError, match="no rows"):
        file_sizes(pd.DataFrame({"name": [], "bytes": []}))
