"""From a study, or from what one run left, to the content of its page; no model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from adalora_qat.evaluate.summaries import POOLED
from adalora_qat.report.case_figures import dice_by_area, dice_by_group, reliability
from adalora_qat.report.figures import (
    file_sizes,
    size_latency_dice,
)
from adalora_qat.report.page import (
    Block,
    Case,
    Fact,
    Figure,
    Gallery,
    ReportContent,
    Section,
    case_table,
    drawn,
)
from adalora_qat.report.tables import Column, Spread, Table
from adalora_qat.study.history import (
    curves_figure,
    rank_history,
    ranks_figure,
    training_history,
)
from adalora_qat.study.study import Study, shown

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


def study_content(
    title: str,
    lede: str,
    study: Study,
    figures: Sequence[Figure] = (),
    galleries: Sequence[Gallery] = (),
    tables: Sequence[Table] = (),
    provenance: Mapping[str, str] | None = None,
    sections: Sequence[Section] = (),
) -> ReportContent:
    """Assemble the page of a comparison: the paper's tables, verdicts, figures and cases.

    Parameters
    ----------
    figures : further figures (SSIM maps, weight error, robustness), in order.
    galleries : cases to look through.
    tables : further tables, such as the weight error's.
    sections : further sections, placed before the galleries.
    """
    segmentation, differences, efficiency, ablation = study.tables
    dice = [
        said
        for said, c in zip(study.verdicts, study.comparisons, strict=True)
        if c.by == POOLED and c.metric == "dsc"
    ]
    body = [
        Section("segmentation", "Segmentation", (segmentation,)),
        # A single model has nothing to differ from.
        Section(
            "differences", "Differences", (*dice, *([differences] if differences.rows else []))
        ),
        Section("efficiency", "Efficiency", (efficiency, *_front(study))),
        Section("ablation", "Ablation", (ablation,)),
        Section("by-case", "Across cases", tuple(case_figures(study.cases))),
        Section("further", "Further figures", (*figures, *tables)),
        *sections,
        *(Section(f"{g.slug}-section", g.title, (g,)) for g in galleries),
    ]
    return ReportContent(
        title,
        lede,
        tuple(section for section in body if section.blocks),
        headline(study),
        dict(provenance or {}),
        {"Every comparison in words": "\n\n".join(study.verdicts)} if study.verdicts else {},
    )


def headline(study: Study) -> tuple[Fact, ...]:
    """Return one tile a model: its mean DSC, the difference to the baseline, what is shown."""
    signed = Column("", 4, signed=True)
    against = {
        c.model_a: c for c in study.comparisons if c.metric == "dsc" and c.by == POOLED and c.n
    }
    facts = []
    for model in study.models:
        dice = study.cases.loc[study.cases["model"] == model, "dsc"].dropna()
        if dice.empty:
            continue
        value, note, beside = f"{dice.mean():.4f}", f"n = {len(dice)}", ""
        if c := against.get(model):
            beside = f"Δ {signed.shown(c.mean_difference)}"
            note = f"{shown(c)} against {c.model_b}, n = {c.n}"
        elif against and model == study.baseline:
            note = f"the baseline, {note}"
        facts.append(Fact(f"DSC, {model}", value, note, beside))
    return tuple(facts)


def case_figures(cases: pd.DataFrame) -> list[Figure]:
    """Return the figures that every per-case table allows: by class, by set, by area, belief."""
    found = []
    for column, name in (("label", "class"), ("source", "data set")):
        if cases[column].nunique(dropna=False) > 1:
            found.append(
                drawn(
                    f"dice-by-{column}",
                    f"Dice by {name}",
                    f"a {name} whose box sits lower or spreads wider for every model: there the "
                    "cases are hard, not the model weak.",
                    f"Box plots of Dice by {name} and model, every case a point.",
                    dice_by_group(cases, column),
                )
            )
    found.append(
        drawn(
            "dice-by-area",
            "Dice by area",
            "whether small structures pull the line down: Dice punishes the same contour error "
            "more where the area is small.",
            "Dice against the area of the truth, a line of group means for each model.",
            dice_by_area(cases),
        )
    )
    if cases["score"].notna().any():
        found.append(
            drawn(
                "reliability",
                "Predicted against true IoU",
                "lines below the diagonal, where a model trusts its masks more than it should.",
                "IoU as predicted by each model against the IoU that was measured.",
                reliability(cases),
            )
        )
    return found


def _front(study: Study) -> list[Block]:
    dice = study.cases.groupby("model", sort=False)["dsc"].mean()
    table = pd.DataFrame(
        {
            "name": study.models,
            "bytes": [study.facts[m].bytes for m in study.models],
            "latency_ms": [study.facts[m].latency_ms for m in study.models],
            "dsc": [float(dice[m]) for m in study.models],
        }
    )
    table[["bytes", "latency_ms"]] = table[["bytes", "latency_ms"]].astype(float)
    table = table[table["bytes"].notna()]
    if table.empty:
        return []
    timed = bool(table["latency_ms"].notna().any())
    cost = ("Size, latency", "small or fast", "on disk and against CPU latency")
    title, good, costs = cost if timed else ("Size", "small", "on disk")
    return [
        drawn(
            "front",
            f"{title} and Dice",
            f"the upper left corner: {good}, and as exact. Dark rims mark models that no "
            "other beats in both.",
            f"Dice against bytes {costs}, a mark for each model.",
            size_latency_dice(table),
        )
    ]


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
        run_headline(summary),
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
    both = {"ptq", "qat"} <= {row["name"] for row in rows}
    rounding = (
        " PTQ beside QAT shows what training under quantization adds to rounding alone."
    ) * both
    return Table(
        "accuracy",
        "Accuracy on the test images, by stage",
        "Mean ± standard deviation over test images, at the original size. Boxes come from "
        f"the true masks (oracle boxes): a box drawn by hand will be less exact.{rounding}",
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


def run_headline(summary: Mapping[str, Any]) -> tuple[Fact, ...]:
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


def curves_note(history: pd.DataFrame) -> str:
    """Return what to look for in a run's curves; integers only where they were trained."""
    if history["stage"].nunique() > 1:
        return "whether Dice holds at the dotted line, where weights and activations become INT8."
    return "whether Dice still rises at the end."


def _training_section(run: Path) -> Section:
    blocks: list[Block] = []
    history, ranks = training_history(run), rank_history(run)
    if not history.empty:
        blocks.append(curves_figure(history, curves_note(history)))
    if not ranks.empty:
        blocks.append(ranks_figure(ranks))
    return _section("training", "Training", *blocks)


def _size_section(sizes: Mapping[str, int]) -> Section:
    if not sizes:
        return _section("size", "Size")
    named = {SIZE_NAMES.get(name, name): size for name, size in sizes.items()}
    table = pd.DataFrame(list(named.items()), columns=["name", "bytes"])
    alt = "; ".join(f"{name}: {size / 1e6:.1f} MB" for name, size in named.items())
    look = "the shortest bar: the fewest bytes for the same model."
    if "int8_onnx" in sizes:
        look = "the bar as shipped: the whole model in one file, image and box in, mask out."
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


def _plain(value: Any) -> str:
    """Return a JSON value on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_plain, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
