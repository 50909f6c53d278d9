"""Second stages of one first stage, at few bits: what each option of stage 2 wins back.

    adalora-qat train litemedsam --data DATA --out RUN
    python benchmarks/low_bit_study.py RUN DATA --runs runs/low_bit --out results/low_bit

trains every variant of ``VARIANTS`` from RUN's stage 1, and evaluates stage 1, each variant's
PTQ (its own stage 2 with no epochs) and its QAT on the validation and the test split, in
PyTorch, with oracle boxes. Choose a variant by its validation Dice; the test split is reported
for all. Writes ``low_bit.json`` and one per-case table a model. What is done is not done again,
so several calls may share the work by ``--only``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from _machine import describe_machine
from adalora_qat.checkpoint import MODEL_FILE, RunFolder, load_model
from adalora_qat.corpus.splits import read_manifest, records_of
from adalora_qat.evaluate.cases import evaluate_cases
from adalora_qat.evaluate.compare import compare, verdict
from adalora_qat.files import sha256_file, write_json, write_text
from adalora_qat.model.predict import TorchPredictor
from adalora_qat.recipe import load_config
from adalora_qat.study.size import DESCRIPTION, size_of
from adalora_qat.train.inherit import inherit_stage1, source_of_stage1
from adalora_qat.train.stages import Resources, Training

TARGET, SPLITS = "lung", ("val", "test")
PLAIN = "quantize.compensate=none"
NO_TEACHER = ("stage2.distill=0", "stage2.distill_embeddings=0")


def _rates(factor: float) -> tuple[str, ...]:
    """Return overrides that multiply every learning rate of the recipe."""
    stage2 = load_config("litemedsam-w4a8").stage2.model_dump()
    rates = (key for key in stage2 if key.startswith("lr_") and key != "lr_decay")
    return tuple(f"stage2.{key}={factor * stage2[key]:g}" for key in rates)


# Name → recipe and what is laid over it.
VARIANTS: dict[str, tuple[str, ...]] = {
    "lambda alone": ("litemedsam", "quantize.policy=w4a8"),
    "recipe": ("litemedsam-w4a8",),
    "no branches": ("litemedsam-w4a8", PLAIN),
    "no teacher": ("litemedsam-w4a8", *NO_TEACHER),
    "twice the rates": ("litemedsam-w4a8", *_rates(2)),
    "half the rates": ("litemedsam-w4a8", *_rates(0.5)),
    "a quarter of the rates": ("litemedsam-w4a8", *_rates(0.25)),
    "minmax": ("litemedsam-w4a8", "quantize.policy={minmax}"),
    "minmax, no branches": ("litemedsam-w4a8", "quantize.policy={minmax}", PLAIN),
    "branches alone": ("litemedsam-w4a8", "stage2.train=[lambda, adapters]"),
    "branches and decoder": ("litemedsam-w4a8", "stage2.train=[lambda, adapters, decoder]"),
    "loftq": ("litemedsam-w4a8", "quantize.compensate=loftq"),
    "neither branches nor teacher": ("litemedsam-w4a8", PLAIN, *NO_TEACHER),
    "rank 16, float16 scales": (
        "litemedsam-w4a8", "quantize.compensate_rank=16", "quantize.group_scales=float16",
    ),
    "full": ("litemedsam",),
    "int8-all": ("litemedsam", "quantize.policy=int8-all"),
}  # fmt: skip


def main() -> None:
    """Train, evaluate, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/low_bit"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=sorted(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--override", nargs="*", default=[], help="over every variant's recipe")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--cpu", action="store_true")
    given = parser.parse_args()
    manifest = read_manifest(given.data)
    records = {split: records_of(manifest, split, TARGET) for split in ("train", *SPLITS)}
    study = Study(given, records)
    study.measure("stage1", given.run / "stage1" / MODEL_FILE)
    study.take_earlier()
    for name in given.only:
        study.variant(name, *VARIANTS[name])
        study.write()


class Study:
    """What was trained and measured so far."""

    def __init__(self, given: argparse.Namespace, records: dict[str, list[Any]]) -> None:
        self.given, self.records = given, records
        self.device = torch.device("cuda" if torch.cuda.is_available() and not given.cpu else "cpu")
        self.tables: dict[tuple[str, str], pd.DataFrame] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        # w4a8 with the largest weight of each group at the largest integer: nothing is clipped.
        self.minmax = given.runs / "w4a8-minmax.yaml"
        write_text(self.minmax, policy_text("w4a8").replace("observer: mse", "observer: minmax"))

    def variant(self, name: str, recipe: str, *overrides: str) -> None:
        """Train one variant from stage 1, and measure its PTQ and its QAT."""
        overrides = tuple(each.format(minmax=self.minmax) for each in overrides)
        config = load_config(recipe, [*overrides, *self.given.override])
        run = RunFolder.create(self.given.runs / name.replace(" ", "-"), config)
        inherit_stage1(run, source_of_stage1(self.given.run, config))
        resources = Resources(cpu=self.given.cpu, cache=self.given.runs / "cache")
        started = time.monotonic()
        training = Training(run, self.records["train"], self.records["val"], resources)
        training.quantize()
        ptq_seconds = time.monotonic() - started
        training.stage2()
        seconds = time.monotonic() - started
        row: dict[str, Any] = {"recipe": [recipe, *overrides, *self.given.override]}
        self.rows[name] = row
        row["seconds"] = {"ptq": round(ptq_seconds, 1), "both": round(seconds, 1)}
        row["compensation"] = _compensation(run)
        for stage in ("ptq", "stage2"):
            row[stage] = self.measure(f"{name} {stage}", run.stage(stage) / MODEL_FILE)
        row["differences"] = {
            split: {
                "qat_minus_ptq": self._difference(f"{name} stage2", f"{name} ptq", split),
                "qat_minus_stage1": self._difference(f"{name} stage2", "stage1", split),
                "ptq_minus_stage1": self._difference(f"{name} ptq", "stage1", split),
            }
            for split in SPLITS
        }
        shown = {k: round(v["mean"], 5) for k, v in row["differences"]["test"].items()}
        print(f"{name:22} {seconds:6.0f} s  val {row['stage2']['val']:.4f}  {shown}", flush=True)

    def measure(self, name: str, file: Path) -> dict[str, Any]:
        """Evaluate one model file on both splits."""
        # Training in tf32 leaves it on for the process; what is measured is float32.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        segmenter, _ = load_model(file)
        counted = size_of(file)
        size = counted.total - sum(counted.parts[DESCRIPTION].values())
        predictor = TorchPredictor(segmenter.to(self.device), name)
        means: dict[str, Any] = {"sha256": sha256_file(file), "tensor_bytes": size}
        for split in SPLITS:
            folder = self.given.runs / "cases" / f"{name} {split}".replace(" ", "-")
            table = evaluate_cases(
                predictor, self.records[split], [TARGET], "oracle", folder, jobs=self.given.jobs,
                provenance={"model": means["sha256"]},
            )  # fmt: skip
            self.tables[name, split] = table
            means[split] = float(table["dsc"].mean())
            text = table.drop(columns=["seconds"], errors="ignore")
            file_name = f"cases_{name}_{split}.csv".replace(" ", "_")
            csv = text.to_csv(index=False, float_format="%.6g", lineterminator="\n")
            write_text(self.given.out / file_name, csv)
        self.rows.setdefault("stage1", means)
        return means

    def take_earlier(self) -> None:
        """Keep the rows that an earlier call wrote for the same stage 1."""
        file = self.given.out / "low_bit.json"
        earlier = json.loads(file.read_text("utf-8"))["models"] if file.is_file() else {}
        if earlier.get("stage1", {}).get("sha256") == self.rows["stage1"]["sha256"]:
            self.rows = {**earlier, **self.rows}

    def write(self) -> None:
        """Write what is there."""
        result = {
            "command": " ".join(["python", "benchmarks/low_bit_study.py", *sys.argv[1:]]),
            "box": "oracle",
            "runtime": "pytorch",
            **describe_machine(),
            "counts": {split: len(records) for split, records in self.records.items()},
            "models": self.rows,
        }
        write_json(self.given.out / "low_bit.json", result)

    def _difference(self, one: str, other: str, split: str) -> dict[str, Any]:
        found = compare(self.tables[one, split], self.tables[other, split], "dsc")
        return {
            "mean": found.mean_difference,
            "ci95": [_known(found.ci_low), _known(found.ci_high)],
            "equivalent_within_0.005": bool(found.equivalent),
            "wilcoxon_p": _known(found.wilcoxon.p),
            "verdict": verdict(found),
        }


def policy_text(name: str) -> str:
    """Return the table of a built-in policy."""
    return resources.files("adalora_qat.quantize").joinpath("policies", f"{name}.yaml").read_text()


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _compensation(run: RunFolder) -> dict[str, Any] | None:
    file = run.stage("ptq") / "compensation.json"
    if not file.is_file():
        return None
    rows = json.loads(file.read_text("utf-8"))
    return {
        "layers": len(rows),
        "bytes": sum(row["bytes"] for row in rows),
        "mean_error_before": sum(row["before"] for row in rows) / len(rows),
        "mean_error_after": sum(row["after"] for row in rows) / len(rows),
    }


if __name__ == "__main__":
    main()
