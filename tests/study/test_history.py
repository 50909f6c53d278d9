"""Losses, validation and ranks as a run folder holds them."""

from pathlib import Path

import pytest

from adalora_qat.study.history import draw_ranks, rank_history, training_history


def test_of_several_prunings_in_an_epoch_the_last_counts(left_by_training: Path) -> None:
    with (left_by_training / "stage1" / "ranks.csv").open("a") as file:
        file.write("3,2,5,a.qkv,7,3,0.5\n3,2,5,b.qkv,1,0,0.4\n")
    table = rank_history(left_by_training)
    last = table[table["epoch"] == 2].set_index("layer")["rank"]
    assert last.to_dict() == {"a.qkv": 3, "b.qkv": 0}
    assert len(table) == 6


def test_history_is_the_mean_task_loss_by_epoch(left_by_training: Path) -> None:
    history = training_history(left_by_training)
    assert list(history["stage"]) == ["Stage 1: AdaLoRA"] * 3 + ["Stage 2: QAT"]
    # Two steps an epoch: bce 0.2/e and dice 0.1 and 1.1.
    assert history["loss"].tolist() == pytest.approx([0.8, 0.7, 0.2 / 3 + 0.6, 0.8])
    assert history["dice"].tolist() == pytest.approx([0.91, 0.92, 0.93, 0.91])


def test_ranks_begin_before_the_first_pruning(left_by_training: Path) -> None:
    grid = rank_history(left_by_training).pivot(index="layer", columns="epoch", values="rank")
    assert grid.loc["a.qkv"].tolist() == [8, 7, 7]
    assert grid.loc["b.qkv"].tolist() == [8, 5, 1]


def test_ranks_are_drawn_where_something_was_pruned(left_by_training: Path) -> None:
    assert {file.name for file in draw_ranks(left_by_training)} >= {"ranks.png", "ranks.svg"}
    (left_by_training / "stage1" / "ranks.csv").unlink()
    assert draw_ranks(left_by_training) == []
