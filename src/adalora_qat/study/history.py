"""What training left of its course: losses, validation and ranks by epoch, read and drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from adalora_qat.report.figures import learning_curves, ranks_by_layer
from adalora_qat.report.page import Figure, anchor, drawn
from adalora_qat.report.style import save_figure

STAGE_NAMES = {"stage1": "Stage 1: AdaLoRA", "stage2": "Stage 2: QAT"}


def training_history(run: Path) -> pd.DataFrame:
    """Read the stages' ``history.csv`` and ``epochs.csv``.

    Returns
    -------
    Columns stage, epoch, loss (mean BCE + Dice over the epoch's steps, so that both stages
    can be compared: the orthogonality term is stage 1's alone) and dice (validation).
    """
    parts = []
    for stage, name in STAGE_NAMES.items():
        folder = run / stage
        steps, epochs = _rows(folder / "history.csv"), _rows(folder / "epochs.csv")
        if steps.empty or epochs.empty:
            continue
        task = (steps["bce"] + steps["dice"]).groupby(steps["epoch"]).mean()
        part = epochs.set_index("epoch")["val_dice"]
        table = pd.DataFrame({"loss": task, "dice": part}).rename_axis("epoch").reset_index()
        parts.append(table.assign(stage=name))
    columns = ["stage", "epoch", "loss", "dice"]
    return pd.concat(parts)[columns] if parts else pd.DataFrame(columns=columns)


def rank_history(run: Path) -> pd.DataFrame:
    """Read ``stage1/ranks.csv`` as columns epoch (0 = before any pruning), layer, rank.

    Of several prunings in one epoch (a cubic allocation) the last one counts.
    """
    events = _rows(run / "stage1" / "ranks.csv")
    if events.empty:
        return pd.DataFrame(columns=["epoch", "layer", "rank"])
    first = events[events["event"] == events["event"].min()]
    start = pd.DataFrame({"epoch": 0, "layer": first["layer"], "rank": first["rank_before"]})
    table = pd.concat([start, events[["epoch", "layer", "rank"]]], ignore_index=True)
    return table.drop_duplicates(["epoch", "layer"], keep="last", ignore_index=True)


def ranks_of(run: Path) -> dict[str, Any]:
    """Return the ranks by layer before the first and after the last pruning."""
    events = json.loads((run / "stage1" / "ranks.json").read_text("utf-8"))
    return {"before": events[0]["ranks_before"], "after": events[-1]["ranks"]} if events else {}


def draw_ranks(run: Path) -> list[Path]:
    """Draw ``stage1/ranks.png`` (and .svg, .pdf): ranks by layer and pruning.

    Returns
    -------
    The files; none where nothing was pruned (LoRA, a frozen encoder).
    """
    ranks = rank_history(run)
    return [] if ranks.empty else save_figure(ranks_by_layer(ranks), run / "stage1" / "ranks")


def curves_figure(history: pd.DataFrame, look_for: str, run: str = "") -> Figure:
    """Draw loss and Dice by epoch; ``run`` is named where a page shows several."""
    first, last = history.iloc[0], history.iloc[-1]
    alt = (
        f"Training loss and validation Dice by epoch; the loss falls from {first['loss']:.3f} to "
        f"{last['loss']:.3f}"
    )
    alt += "." if run else f", the last Dice is {last['dice']:.4f}."
    return drawn(*_named("curves", "Loss and Dice", run), look_for, alt, learning_curves(history))


def ranks_figure(ranks: pd.DataFrame, run: str = "") -> Figure:
    """Draw ranks by layer and pruning; ``run`` is named where a page shows several."""
    last = ranks.drop_duplicates("layer", keep="last")["rank"]
    return drawn(
        *_named("ranks", "Ranks by layer", run),
        "which layers keep their rank while the budget they share shrinks: there, adaptation "
        "matters most.",
        f"Rank of {len(last)} layers at the start and after each pruning; at the end from "
        f"{last.min()} to {last.max()}, {last.mean():.1f} on average.",
        ranks_by_layer(ranks),
    )


def _named(stem: str, title: str, run: str) -> tuple[str, str]:
    return (f"{stem}-{anchor(run)}", f"{title}, {run}") if run else (stem, title)


def _rows(path: Path) -> pd.DataFrame:
    if not path.is_file() or not path.read_text(encoding="utf-8").strip():
        return pd.DataFrame()
    return pd.read_csv(path)
