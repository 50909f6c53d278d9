"""From a run folder's artefacts to the content of its report page.

Reads what training and evaluation wrote (``summary.json``, the CSV histories of the
stages) and nothing else: no model is loaded here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from adalora_qat.report.figures import file_sizes, learning_curves, ranks_by_layer
from adalora_qat.report.page import (
    Block,
    Case,
    Fact,
    Gallery,
    ReportContent,
    Section,
    case_table,
    drawn,
)
from adalora_qat.report.tables import Column, Spread, Table

STAGE_NAMES = {"stage1": "Stage 1: AdaLoRA", "stage2": "Stage 2: QAT"}
ROW_NAMES = {
    "zero_shot": "Zero-shot (pretrained weights)",
    "decoder_only": "Decoder fine-tuning",
    "stage1": "Stage 1: AdaLoRA, FP32",
    "ptq": "INT8 without training (PTQ)",
    "qat": "Stage 2: INT8, QAT",
    "int8_runtime": "INT8 in ONNX Runtime, as shipped",
}
SIZE_NAMES = {
    "fp32": "FP32 weights",
    "fp32_onnx": "FP32 ONNX",
    "int8_packed": "INT8 packed weights",
    "int8_onnx": "INT8 ONNX, as shipped",
}
SHIPPED, REFERENCE = "int8_runtime", "stage1"
_GATHERED = {"rows", "sizes_bytes", "parity", "seconds", "ranks"}


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


def run_content(
    title: str,
    lede: str,
    summary: Mapping[str, Any],
    run: Path,
    cases: Sequence[Case],
    attachments: Mapping[str, str] | None = None,
) -> ReportContent:
    """Assemble the page of a two-stage run.

    Parameters
    ----------
    title, lede : heading and opening sentence.
    summary : as in ``summary.json``: ``rows`` (name, dice_mean, dice_std, iou_mean, n),
        ``sizes_bytes``, ``parity``, ``seconds`` by phase, ``ranks``; other plain values
        become provenance.
    run : the run folder with ``stage1`` and ``stage2``.
    cases : masks of the same models, in the same order, in each; the first two are compared.
    attachments : longer texts to keep (configuration, command).
    """
    sections = [
        _section("results", "Results", results_table(summary["rows"])),
        _training_section(run),
        _size_section(summary["sizes_bytes"]),
        _cases_section(cases),
        _section("time", "Time", _seconds_table(summary.get("seconds", {}))),
    ]
    return ReportContent(
        title,
        lede,
        tuple(section for section in sections if section.blocks),
        headline(summary),
        {k: _plain(v) for k, v in summary.items() if k not in _GATHERED and v is not None},
        dict(attachments or {}),
    )


def results_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return accuracy by stage, with each stage's difference to the FP32 model of stage 1."""
    reference = {row["name"]: row["dice_mean"] for row in rows}.get(REFERENCE)
    values = tuple(
        (
            ROW_NAMES.get(row["name"], row["name"]),
            Spread(row["dice_mean"], row["dice_std"]),
            row["iou_mean"],
            None if reference is None else row["dice_mean"] - reference,
            row["n"],
        )
        for row in rows
    )
    ours = frozenset(i for i, row in enumerate(rows) if row["name"] == SHIPPED)
    return Table(
        "accuracy",
        "Accuracy on the test images, by stage",
        "Mean ± standard deviation over test images, at the original size. Boxes come from "
        "the true masks (oracle boxes): a box drawn by hand will be less exact. PTQ beside QAT "
        "shows what training under quantization adds to rounding alone.",
        (
            Column("Model"),
            Column("DSC", 4),
            Column("IoU", 4),
            Column("Δ DSC to stage 1", 4, signed=True),
            Column("n"),
        ),
        values,
        ours,
    )


def headline(summary: Mapping[str, Any]) -> tuple[Fact, ...]:
    """Return the figures that a reader should leave with."""
    rows = {row["name"]: row for row in summary["rows"]}
    facts = []
    if SHIPPED in rows:
        shipped = rows[SHIPPED]["dice_mean"]
        note = f"n = {rows[SHIPPED]['n']}"
        if REFERENCE in rows:
            gap = shipped - rows[REFERENCE]["dice_mean"]
            note = f"{Column('', 4, signed=True).shown(gap)} against FP32, {note}"
        facts.append(Fact("Dice, INT8 as shipped", f"{shipped:.4f}", note))
        if "zero_shot" in rows:
            gain = shipped - rows["zero_shot"]["dice_mean"]
            note = f"Dice, from {rows['zero_shot']['dice_mean']:.4f} before training"
            facts.append(Fact("Gain", Column("", 4, signed=True).shown(gain), note))
    sizes = summary["sizes_bytes"]
    if "int8_onnx" in sizes and "fp32" in sizes:
        ratio = sizes["fp32"] / sizes["int8_onnx"]
        facts.append(
            Fact(
                "Size of the model",
                f"{sizes['int8_onnx'] / 1e6:.1f} MB",
                f"{ratio:.2f}× smaller than FP32, nothing left out",
            )
        )
    if parity := summary.get("parity"):
        note = f"lowest Dice between runtime and PyTorch; {parity['pixel_agreement']:.4%} of pixels"
        facts.append(Fact("Parity", f"{parity['dice_min']:.4f}", note))
    if seconds := summary.get("seconds"):
        facts.append(Fact("Time", f"{sum(seconds.values()) / 60:.1f} min", "all phases together"))
    return tuple(facts)


def _training_section(run: Path) -> Section:
    blocks: list[Block] = []
    history, ranks = training_history(run), rank_history(run)
    if not history.empty:
        last = history.iloc[-1]
        alt = (
            f"Training loss and validation Dice by epoch; the loss falls from "
            f"{history['loss'].iloc[0]:.3f} to {last['loss']:.3f}, the last Dice is "
            f"{last['dice']:.4f}."
        )
        look = "whether Dice holds at the dotted line, where weights and activations become INT8."
        blocks.append(drawn("curves", "Loss and Dice", look, alt, learning_curves(history)))
    if not ranks.empty:
        last = ranks[ranks["epoch"] == ranks["epoch"].max()]
        alt = (
            f"Rank of {len(last)} layers at the start and after each pruning; at the end from "
            f"{last['rank'].min()} to {last['rank'].max()}, {last['rank'].mean():.1f} on average."
        )
        look = (
            "which layers keep their rank while the budget they share shrinks: there, "
            "adaptation matters most."
        )
        blocks.append(drawn("ranks", "Ranks by layer", look, alt, ranks_by_layer(ranks)))
    return _section("training", "Training", *blocks)


def _size_section(sizes: Mapping[str, int]) -> Section:
    if not sizes:
        return _section("size", "Size")
    named = {SIZE_NAMES.get(name, name): size for name, size in sizes.items()}
    table = pd.DataFrame(list(named.items()), columns=["name", "bytes"])
    alt = "; ".join(f"{name}: {size / 1e6:.1f} MB" for name, size in named.items())
    look = "the last bar: the whole model in one file, image and box in, mask out."
    return _section("size", "Size", drawn("sizes", "Bytes on disk", look, alt, file_sizes(table)))


def _cases_section(cases: Sequence[Case]) -> Section:
    if not cases:
        return _section("cases-section", "Cases")
    models = tuple(cases[0].masks)
    compared = (models[0], models[1]) if len(models) > 1 else None
    gallery = Gallery("cases", "Test cases", tuple(cases), models, compared)
    metrics = list(dict.fromkeys(m for case in cases for v in case.metrics.values() for m in v))
    blocks: list[Block] = [gallery]
    if metrics:
        blocks.append(case_table(gallery, metrics[:3]))
    return _section("cases-section", "Cases", *blocks)


def _seconds_table(seconds: Mapping[str, float]) -> Table:
    rows = tuple((name.replace("_", " "), float(value)) for name, value in seconds.items())
    caption = "Wall-clock seconds, on the machine named under Provenance."
    return Table("seconds", "Seconds by phase", caption, (Column("Phase"), Column("s", 1)), rows)


def _section(slug: str, title: str, *blocks: Block) -> Section:
    kept = (block for block in blocks if not isinstance(block, Table) or block.rows)
    return Section(slug, title, tuple(kept))


def _rows(path: Path) -> pd.DataFrame:
    if not path.is_file() or not path.read_text(encoding="utf-8").strip():
        return pd.DataFrame()
    return pd.read_csv(path)


def _plain(value: Any) -> str:
    """Return a JSON value on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_plain, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
