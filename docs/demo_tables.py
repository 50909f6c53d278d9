"""The tables of ``make demo``, from its ``summary.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ROWS = {
    "zero_shot": "Zero-shot, pretrained weights",
    "decoder_only": "Decoder fine-tuning, FP32",
    "stage1": "Stage 1: AdaLoRA and decoder, FP32",
    "ptq": "INT8 after training only (PTQ)",
    "qat": "Stage 2: INT8, fine-tuned (QAT)",
    "int8_runtime": "INT8 in ONNX Runtime, as shipped",
}
SIZES = {
    "fp32": "FP32 ONNX",
    "fp32_onnx": "FP32 ONNX",
    "int8_packed": "packed INT8 weights",
    "int8_onnx": "INT8 ONNX, as shipped",
}
VERSIONS = ("python", "torch", "onnxruntime")


def demo_text(summary: Mapping[str, Any]) -> str:
    """Return the demo: its data, its rows, then sizes, agreement, ranks, speed and origin."""
    lines = [_cases(summary), _rows(summary["rows"])]
    facts = [_sizes(summary), _parity(summary), _ranks(summary), _seconds(summary)]
    lines += ["\n".join(f"- {fact}" for fact in facts if fact)]
    speed = _speed(summary.get("speed"))
    lines += [speed] if speed else []
    lines += [_origin(summary)]
    return "\n\n".join(line for line in lines if line)


def _cases(summary: Mapping[str, Any]) -> str:
    data = summary.get("data") or {}
    counts = [f"{data[split]} {split}" for split in ("train", "val", "test") if split in data]
    known = [f"{', '.join(counts)} images"] if counts else []
    known += [f"seed {summary['seed']}"] if "seed" in summary else []
    return f"{'; '.join(known)}." if known else ""


def _rows(rows: Any) -> str:
    lines = ["| model | Dice, mean ± sd | IoU | cases |", "|---|---|---|---|"]
    for row in rows:
        name = ROWS.get(row["name"], row["name"])
        dice = f"{row['dice_mean']:.4f} ± {row['dice_std']:.4f}"
        lines.append(f"| {name} | {dice} | {row['iou_mean']:.4f} | {row['n']} |")
    dropped = [f"{row['name']} {row['dropped']}" for row in rows if row.get("dropped")]
    if dropped:
        lines.append(f"\nCases without a figure, left out of the means: {', '.join(dropped)}.")
    return "\n".join(lines)


def _sizes(summary: Mapping[str, Any]) -> str | None:
    sizes = summary.get("sizes_bytes") or {}
    known = [f"{SIZES.get(key, key)} {value / 1e6:.2f} MB" for key, value in sizes.items()]
    if not known:
        return None
    full, small = sizes.get("fp32", sizes.get("fp32_onnx")), sizes.get("int8_onnx")
    ratio = f" ({full / small:.2f}× smaller)" if full and small else ""
    return f"Bytes on disk, whole model: {', '.join(known)}{ratio}."


def _parity(summary: Mapping[str, Any]) -> str | None:
    parity = summary.get("parity") or {}
    if not {"dice_min", "pixel_agreement"} <= set(parity):
        return None
    return (
        "ONNX Runtime against the quantized PyTorch model, validation images: lowest Dice "
        f"{parity['dice_min']:.4f}, equal pixels {parity['pixel_agreement']:.4%}."
    )


def _ranks(summary: Mapping[str, Any]) -> str | None:
    ranks = summary.get("ranks") or {}
    before, after = ranks.get("before"), ranks.get("after")
    if not before or not after:
        return None
    values = list(after.values())
    return (
        f"Ranks: {sum(before.values()) / len(before):.0f} a layer before pruning, "
        f"{sum(values) / len(values):.1f} on average after it "
        f"({min(values)} to {max(values)} over {len(values)} layers)."
    )


def _seconds(summary: Mapping[str, Any]) -> str | None:
    seconds = summary.get("seconds") or {}
    if not seconds:
        return None
    known = ", ".join(f"{phase.replace('_', ' ')} {value:.0f}" for phase, value in seconds.items())
    return f"Seconds: {sum(seconds.values()):.0f} in all ({known})."


def _speed(speed: Any) -> str | None:
    """Return the latencies of one run as a table, with the ratio of each to the last."""
    if not isinstance(speed, Mapping) or not speed.get("models"):
        return None
    models, ratios = speed["models"], speed["speedup"]
    lines = ["| one image on this machine, one run | median | ratio to the last |", "|---|---|---|"]
    lines += [
        f"| {name.replace('_', ' ')} | {row['median_s']:.2f} s | "
        f"{f'{ratios[name]:.2f}×' if name in ratios else '1'} |"
        for name, row in models.items()
    ]
    return "\n".join(lines)


def _origin(summary: Mapping[str, Any]) -> str | None:
    versions, machine = summary.get("versions") or {}, summary.get("machine") or {}
    parts = [f"{name} {versions[name]}" for name in VERSIONS if name in versions]
    place = machine.get("gpu") or machine.get("processor")
    parts += [f"{place}, {machine['cores']} CPU cores"] if place and "cores" in machine else []
    commit = summary.get("commit")
    parts += [f"commit `{commit[:12]}{'-dirty' if commit.endswith('-dirty') else ''}`"] * bool(
        commit
    )
    return f"Made with {', '.join(parts)}." if parts else None
