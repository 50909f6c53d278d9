"""Sizes on disk: real packed files of whole models, every byte counted, against FP32.

    python benchmarks/size_table.py [--variants sam-vit-base litemedsam] [--out results/sizes]

writes ``sizes.json``: bytes by part and precision, the description in front of the tensors
included. Weights are random (``init: random``): a packed file's size depends on shapes and the
policy alone. Scales are those of one phantom. The float32 file has its batch norms folded, so
that it is the smallest one that could be shipped.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from _machine import describe_machine
from adalora_qat.config import QuantizeConfig
from adalora_qat.model.sam import random_segmenter
from adalora_qat.quantize.pack import load_packed
from adalora_qat.quantize.policy import load_policy
from adalora_qat.study.size import packed_size, quantize_on_phantom

Dtype = Literal["float32", "float16"]
# Policy, rank of the branches of ``quantize.compensate``, type of the scales of groups.
POLICIES: tuple[tuple[str, int, Dtype], ...] = (
    ("none", 0, "float32"),
    ("full", 0, "float32"),
    ("int8-all", 0, "float32"),
    ("w4a8", 0, "float32"),
    ("w4a8", 0, "float16"),
    ("w4a8", 8, "float16"),
    ("w4a8", 16, "float16"),
)
# What is asked of the files: at least this many times smaller, and at most this many bytes.
BARS = {
    ("sam-vit-base", "full"): (2.24, None),
    ("sam-vit-base", "int8-all"): (3.8, None),
    ("sam-vit-base", "w4a8"): (6.0, None),
    ("sam-vit-base", "w4a8, float16 scales, rank 8"): (6.0, None),
    ("litemedsam", "int8-all"): (3.6, 11_000_000),
}


def measure(variant: str, policy_name: str, rank: int, scales: Dtype) -> dict[str, Any]:
    """Pack one model, count its file, and check that the file loads."""
    policy = load_policy(policy_name)
    options = QuantizeConfig(group_scales=scales)
    segmenter = quantize_on_phantom(random_segmenter(variant, seed=0), policy, rank, options)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        size = packed_size(segmenter, policy, f"{variant} {policy_name}, packed", file)
        if policy.rows:
            load_packed(file, random_segmenter(variant, seed=1))
    return size.figures()


def with_bar(variant: str, policy: str, figures: dict[str, Any]) -> dict[str, Any]:
    """Add what was asked, and whether it is reached."""
    if (variant, policy) not in BARS:
        return figures
    ratio, most = BARS[variant, policy]
    reached = figures["ratio"] >= ratio and (most is None or figures["total_bytes"] <= most)
    return {**figures, "bar": {"ratio": ratio, "most_bytes": most, "reached": reached}}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", nargs="+", default=["sam-vit-base", "litemedsam"])
    parser.add_argument("--out", type=Path, default=Path("results/sizes"))
    given = parser.parse_args()
    models: dict[str, dict[str, Any]] = {}
    for variant in given.variants:
        for policy, rank, scales in POLICIES:
            name = policy if scales == "float32" else f"{policy}, {scales} scales"
            name = f"{name}, rank {rank}" if rank else name
            row = with_bar(variant, name, measure(variant, policy, rank, scales))
            models.setdefault(variant, {})[name] = row
            bar = row.get("bar")
            said = "" if bar is None else f"  bar {bar['ratio']}x reached: {bar['reached']}"
            mega = row["total_bytes"] / 1e6
            print(f"{variant:14} {name:29} {mega:8.2f} MB {row['ratio']:6.3f}x{said}", flush=True)
    result = {
        "command": " ".join(["python", "benchmarks/size_table.py", *sys.argv[1:]]),
        "init": "random",
        **describe_machine(),
        "models": models,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "sizes.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
