"""LiteMedSAM at 256 px on one GPU: the package's training beside a plain eager FP32 loop.

    PYTHONPATH=src python benchmarks/litemedsam_training_speed.py [--deadline 150] [--only decoder]

writes litemedsam_training.json into $OUT (or ./out). Two things are trained, 16 images a step:
the decoder alone, and stage 1 (AdaLoRA r = 48 on qkv, and the decoder).

- plain: forward, the same losses, backward, PyTorch's default AdamW; FP32 without TF32; the
  images lie on the GPU already, so no feed slows it down.
- ours: ``Training.stage1`` of the recipe, in bf16 and compiled, on phantoms read from files by
  the real feed, losses logged, finite checks on. A step's seconds are those between two reports
  of the loop, the first of an epoch left out.

Weights are random: they decide no time. For our runs, a profile of some steps says where the
time goes: by kind of kernel, and idle.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from _gpu_rows import drive, peak_gb, reset, table, work
from adalora_qat.adapt.inject import inject
from adalora_qat.checkpoint import RunFolder
from adalora_qat.config import RunConfig
from adalora_qat.corpus.sources import read_source
from adalora_qat.model.sam import random_segmenter
from adalora_qat.phantom.phantom import write_phantoms
from adalora_qat.recipe import load_config
from adalora_qat.train.objective import LossWeights, Objective
from adalora_qat.train.selection import choose_trainable_stage1, parameter_groups
from adalora_qat.train.stages import Resources, Training
from adalora_qat.train.state import StepReport

SIDE, BATCH, IMAGES, VAL, EPOCHS = 256, 16, 320, 4, 4
RECIPES = {"decoder": "litemedsam-decoder-only", "stage 1": "litemedsam"}
OURS = ("precision=bf16", "compile=true", "model.init=random", f"stage1.epochs={EPOCHS}",
        f"adapt.schedule_epochs={EPOCHS}",
        f"adapt.schedule=[{{epoch: 1, rank: 43}}, {{epoch: {EPOCHS}, rank: 37}}]")  # fmt: skip
ROWS = {
    "decoder, plain eager FP32": {"what": "decoder"},
    "decoder, ours": {"what": "decoder", "ours": ()},
    "stage 1, plain eager FP32": {"what": "stage 1"},
    "stage 1, ours": {"what": "stage 1", "ours": ()},
    "stage 1, ours, 64 a step": {"what": "stage 1", "ours": ("stage1.batch_size=64",)},
    "stage 1, ours, FP32 without compile": {
        "what": "stage 1", "ours": ("precision=fp32", "compile=false"),
    },
}  # fmt: skip
CONFIG = {"model": "LiteMedSAM, random weights", "side": SIDE, "batch": BATCH, "rank": 48,
          "recipes": RECIPES, "ours": OURS, "images": IMAGES}  # fmt: skip
# Steps that are profiled, in the last epoch.
PROFILED = 5
KINDS = (
    ("window attention", ("_forward_kernel", "_backward_kernel", "fmha", "sdpa", "flash")),
    ("products", ("nvjet", "gemm", "cutlass", "splitK", "cublas")),
    ("convolutions", ("conv", "dgrad", "wgrad", "fprop")),
    ("norms, activations, losses (fused)", ("triton_",)),
    ("optimizer", ("multi_tensor", "Adam")),
    ("copies", ("Memcpy", "copy", "Memset")),
)


def config_of(what: str, *overrides: str) -> RunConfig:
    """Return a recipe for this benchmark."""
    chosen = [o for o in (*OURS, *overrides) if what == "stage 1" or "adapt" not in o]
    return load_config(RECIPES[what], chosen)


def plain(what: str) -> dict[str, Any]:
    """Time the loop that anyone would write."""
    reset()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    config = config_of(what)
    model = random_segmenter("litemedsam", 0)
    if what == "stage 1":
        inject(model.image_encoder, config.adapt, 0)
    choose_trainable_stage1(model, config)
    model.cuda()
    ortho = config.stage1.lambda_ortho if what == "stage 1" else 0.0
    objective = Objective(model, LossWeights(ortho), "image")
    groups = parameter_groups(model, config)
    optimizer = torch.optim.AdamW(groups)
    box = torch.tensor([[[20.0, 30.0, 200.0, 220.0]]], device="cuda")
    given = {
        "inputs": torch.rand(BATCH, 3, SIDE, SIDE, device="cuda"),
        "boxes": box.repeat(BATCH, 1, 1),
        "masks": (torch.rand(BATCH, 1, SIDE, SIDE, device="cuda") > 0.5).float(),
        "valid": torch.ones(BATCH, 1, SIDE, SIDE, device="cuda"),
        "weights": torch.full((BATCH,), 1 / BATCH, device="cuda"),
    }
    marks = []
    for _ in range(25):
        objective(given).total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        marks.append(time.perf_counter())
    return speed([b - a for a, b in itertools.pairwise(marks[4:])], BATCH)


def ours(what: str, overrides: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Time the package's own training, and profile its last steps."""
    reset()
    phantoms = folder / "phantoms"
    if not phantoms.is_dir():
        write_phantoms(phantoms, 32 + VAL, seed=0, side=SIDE)
    found = sorted(read_source("phantom", phantoms).records, key=lambda record: record.id)
    # The same few images again and again: a sample is read, prompted and stacked each time.
    train = [record for _ in range(IMAGES // 32) for record in found[:32]]
    config = config_of(what, *overrides)
    watch = Watch()
    name = f"{what}{len(overrides)}{overrides[:1]}".replace(" ", "")
    run = RunFolder.create(folder / name, config)
    resources = Resources(checkpoint_seconds=1e9, on_step=watch, cache=folder / "cache")
    Training(run, train, found[32:], resources).stage1()
    computed = json.loads((run.path / "provenance.json").read_text())["computed"]["stage1"]
    losses = (run.stage("stage1") / "history.csv").read_text().splitlines()
    return {
        **speed(watch.seconds(), config.stage1.batch_size),
        "computed": computed,
        "last_losses": losses[-1],
        "profile": watch.profile(),
    }


def speed(seconds: list[float], batch: int) -> dict[str, Any]:
    """Return the figures of a row."""
    median = statistics.median(seconds)
    return {
        "images_per_s": batch / median,
        "median_ms": median * 1e3,
        "worst_ms": max(seconds) * 1e3,
        "steps_timed": len(seconds),
        "peak_gb": peak_gb(),
    }


class Watch:
    """Told after each step: keeps the times, and profiles the last epoch but for its start."""

    def __init__(self) -> None:
        self.marks: list[tuple[int, float]] = []
        self.profiler: torch.profiler.profile | None = None
        self.events: Any = None
        self.span = 0.0

    def __call__(self, report: StepReport) -> None:
        """Note a step."""
        self.marks.append((report.epoch, time.perf_counter()))
        in_epoch = sum(epoch == report.epoch for epoch, _ in self.marks)
        if report.epoch != EPOCHS or report.steps < EPOCHS * (4 + PROFILED):
            return
        if in_epoch == 3:
            self.profiler = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CUDA]
            )
            self.profiler.__enter__()
            self.span = time.perf_counter()
        elif self.profiler is not None and in_epoch == 3 + PROFILED and self.events is None:
            torch.cuda.synchronize()
            self.span = time.perf_counter() - self.span
            self.profiler.__exit__(None, None, None)
            self.events = self.profiler.key_averages()

    def seconds(self) -> list[float]:
        """Return the seconds between steps of an epoch, none of them profiled."""
        found = []
        for epoch in range(2, EPOCHS):
            marks = [at for number, at in self.marks if number == epoch]
            found += [b - a for a, b in itertools.pairwise(marks[1:])]
        return found

    def profile(self) -> dict[str, float]:
        """Return milliseconds a step by kind of kernel, most first; what is left is idle."""
        if self.events is None:
            return {}
        spent: Counter[str] = Counter()
        for event in self.events:
            milliseconds = event.self_device_time_total / 1e3 / PROFILED
            kind = next(
                (kind for kind, marks in KINDS if any(m in event.key for m in marks)), "other"
            )
            spent[kind] += milliseconds
        busy = sum(spent.values())
        span = self.span * 1e3 / PROFILED
        shown = {kind: round(value, 3) for kind, value in spent.most_common()}
        return {**shown, "no kernel running": round(max(0.0, span - busy), 3)}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help="only rows whose name holds one of these")
    parser.add_argument("--deadline", type=float, default=150, help="seconds for everything")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    rows = [r for r in ROWS if not given.only or any(part in r for part in given.only)]
    if not given.worker:
        results = drive(rows, "litemedsam_training", given.deadline, CONFIG)
        print("\n".join(table(results)))
        return
    with tempfile.TemporaryDirectory() as folder:

        def run(row: str, _: Any) -> dict[str, Any]:
            options = ROWS[row]
            if "ours" in options:
                return ours(str(options["what"]), tuple(options["ours"]), Path(folder))
            return plain(str(options["what"]))

        work(rows, Path(given.worker[0]), float(given.worker[1]), run)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
