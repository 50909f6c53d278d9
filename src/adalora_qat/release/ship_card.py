"""The card of the model that ships, written from what was measured and nothing else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import adalora_qat
from adalora_qat.checkpoint import RunFolder, provenance
from adalora_qat.corpus.records import Record
from adalora_qat.release.fit_input_check import QUANTILE
from adalora_qat.runtime.onnx_predictor import OnnxPredictor


def ship_card(
    run: RunFolder,
    stage: str,
    predictor: OnnxPredictor,
    size_bytes: int,
    records: Mapping[str, Sequence[Record]],
    rows: Sequence[Mapping[str, Any]],
    calibration_error: float,
) -> str:
    """Return the card as Markdown.

    Parameters
    ----------
    run, stage : what was exported.
    predictor : the finished file.
    size_bytes : of the file.
    records : split → records.
    rows : what ``ship`` measured on the test images: box, source, n, mean, deviation, lowest.
    calibration_error : expected calibration error of the confidence on the test images.
    """
    metadata, confidence = predictor.metadata, predictor.assurance.confidence
    parity = metadata.parity
    card = resources.files("adalora_qat").joinpath("release", "ship_card.md").read_text("utf-8")
    return card.format(
        file=predictor.path.name,
        megabytes=size_bytes / 1e6,
        sha256=predictor.sha256,
        variant=metadata.variant,
        recipe=run.config.name,
        stage=stage,
        seed=run.config.seed,
        policy=metadata.policy,
        ranks=_ranks(run),
        version=adalora_qat.__version__,
        commit=str(provenance({}).get("commit", "unknown")),
        side=metadata.frame.side,
        normalize=metadata.frame.normalize,
        threshold=metadata.mask_threshold,
        dice_min=parity["dice_min"],
        pixels=parity["pixel_agreement"],
        cases=int(parity["cases"]),
        data=_data(records),
        rows="\n".join(map(_row, rows)),
        calibrated=0 if confidence is None else confidence.cases,
        error=calibration_error,
        quantile=QUANTILE,
    )


def _ranks(run: RunFolder) -> str:
    file = run.stage("stage1") / "ranks.json"
    events = json.loads(file.read_text("utf-8")) if file.is_file() else []
    if not events:
        return "none, or of a fixed rank"
    ranks = list(events[-1]["ranks"].values())
    mean = sum(ranks) / len(ranks)
    span = f"rank {mean:.1f} on average, {min(ranks)} to {max(ranks)}"
    return f"AdaLoRA on {len(ranks)} layers, merged; {span}"


def _data(records: Mapping[str, Sequence[Record]]) -> str:
    counts = {split: Counter(r.source for r in part) for split, part in records.items()}
    sources = sorted({source for part in counts.values() for source in part})
    head = "| source | " + " | ".join(counts) + " |\n|---|" + "---|" * len(counts)
    lines = [f"| {s} | " + " | ".join(str(part[s]) for part in counts.values()) + " |"
             for s in sources]  # fmt: skip
    return "\n".join([head, *lines])


def _row(row: Mapping[str, Any]) -> str:
    spread = f"{row['dice_mean']:.4f} ± {row['dice_std']:.4f}"
    return f"| {row['box']} | {row['source']} | {row['n']} | {spread} | {row['dice_min']:.4f} |"
