"""One GPU against two of one host: SAM ViT-B's stage 1 by the package's own loop.

    PYTHONPATH=src python benchmarks/two_gpus.py [--runs NAME ...] [--deadline 200]

writes two_gpus.json into $OUT (or ./out). Every run is `Training.stage1` of the recipe
sam-vit-base (random weights, 1024², r = 48 on qkv and the whole decoder) on phantoms that are
written first, started by torchrun: real feed, real validation, real prunings.

- scaling: bf16 and torch.compile; 16 images a step on one GPU, 16 on two (strong), 32 on two
  (weak). A step's seconds are those between two reports of the loop, without the first steps of
  an epoch, in which validation, pruning or a compiler may lie.
- equality: FP32, 8 images a step on one GPU and on two; losses of every step, ranks and masks.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from _gpu_rows import machine
from adalora_qat.checkpoint import RunFolder
from adalora_qat.corpus.records import Record
from adalora_qat.phantom.phantom import phantom
from adalora_qat.recipe import load_config
from adalora_qat.train.feed import Feed
from adalora_qat.train.processes import join
from adalora_qat.train.sampling import plan_epoch
from adalora_qat.train.stages import Resources, Training

SIDE, DIFFERENT, TRAIN, VAL = 1024, 24, 96, 2
SHARED = ("model.init=random", "adapt.rank=48", "adapt.schedule_epochs=3",
          "adapt.schedule=[{epoch: 1, rank: 43}, {epoch: 3, rank: 37}]",
          "stage1.lr_encoder=1e-3", "stage1.lr_decoder=1e-4")  # fmt: skip
FAST = ("precision=bf16", "compile=true", "stage1.epochs=3")
EXACT = ("precision=fp32", "compile=false", "stage1.epochs=3", "stage1.batch_size=8")
# name → (processes, overrides, images to train on)
RUNS: dict[str, tuple[int, tuple[str, ...], int]] = {
    "one GPU, 16 a step": (1, (*FAST, "stage1.batch_size=16"), TRAIN),
    "two GPUs, 32 a step": (2, (*FAST, "stage1.batch_size=32"), 2 * TRAIN),
    "one GPU, FP32, 8 a step": (1, EXACT, 24),
    "two GPUs, FP32, 8 a step": (2, EXACT, 24),
    "two GPUs, 16 a step": (2, (*FAST, "stage1.batch_size=16"), TRAIN),
}
# The first steps of an epoch wait for the feed to fill, or for a compiler.
SKIP = 2
LOSSES = ("total", "bce", "dice", "ortho")


def write_images(folder: Path, count: int) -> None:
    """Write phantoms, ``DIFFERENT`` of them and copies that differ in a corner."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        list(pool.map(_write, [(folder, n, count) for n in range(DIFFERENT)]))


def _write(given: tuple[Path, int, int]) -> None:
    folder, first, count = given
    one = phantom(first, SIDE)
    mask = Image.fromarray(one.masks["left_lung"] | one.masks["right_lung"])
    for number in range(first, count, DIFFERENT):
        pixels = one.image.copy()
        pixels[0, 0], pixels[0, 1] = number % 256, number // 256
        Image.fromarray(pixels).save(folder / f"{number:03d}.png", compress_level=1)
        mask.save(folder / f"{number:03d}_mask.png")


def records(folder: Path, count: int) -> list[Record]:
    """Return what ``write_images`` wrote."""
    return [
        Record(f"phantom/{n}", "phantom", folder / f"{n:03d}.png",
               {"lung": folder / f"{n:03d}_mask.png"})
        for n in range(count)
    ]  # fmt: skip


def child(name: str, folder: Path) -> None:
    """Be one process of a run; the first writes the times of its steps."""
    _, overrides, count = RUNS[name]
    cpu = not torch.cuda.is_available()  # only to try the script out
    state = join(cpu=cpu)
    config = load_config("sam-vit-base", (*SHARED, *overrides))
    path = folder / name.replace(" ", "-").replace(",", "")
    with state.main_process_first():
        run = RunFolder.create(path, config)
    every = records(folder / "images", 2 * TRAIN + VAL)
    times: list[tuple[int, float]] = []
    resources = Resources(
        cpu=cpu,
        cache=folder / "cache",
        checkpoint_seconds=1e9,
        on_step=lambda report: times.append((report.epoch, time.perf_counter())),
    )
    training = Training(run, every[:count], every[-VAL:], resources)
    training.stage1()
    peak = torch.cuda.max_memory_allocated() / 2**30
    # All processes at once, as in training.
    found = {"times": times, "peak_gb": peak, "feed_images_per_s": feed_speed(training)}
    state.wait_for_everyone()
    if state.is_main_process:
        (path / "times.json").write_text(json.dumps(found))
    state.destroy_process_group()


def feed_speed(training: Training) -> float | None:
    """Return images/s of one process's feed alone, in batches of 16 sent to the GPU.

    None where there are too few images to time it.
    """
    dataset = training._dataset(_Shaped(training), "train")  # type: ignore[arg-type]
    feed = Feed(dataset, workers=training.resources.workers)
    steps = [step[0] for step in plan_epoch(len(dataset), 16, seed=0, epoch=1)]
    if len(steps) < 6:
        return None
    feed.begin(1, iter(steps), training.accelerator.device)
    feed.batch(steps[0], training.accelerator.device)
    started = time.perf_counter()
    for micro in steps[1:]:
        feed.batch(micro, training.accelerator.device)
    torch.cuda.synchronize()
    return 16 * (len(steps) - 1) / (time.perf_counter() - started)


class _Shaped:
    """Of a segmenter, what making a data set takes: its variant."""

    def __init__(self, training: Training) -> None:
        from adalora_qat.model.sam import variant

        self.variant = variant(training.config.model.variant)


def launch(name: str, folder: Path, timeout: float) -> None:
    """Start a run under torchrun."""
    processes = RUNS[name][0]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *torchrun, __file__, "--child", name, str(folder)]
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as agent:
        try:
            code = agent.wait(timeout)
        except subprocess.TimeoutExpired:
            # Not killed: the agent must end its processes first.
            agent.terminate()
            agent.wait(20)
            raise
    if code:
        raise subprocess.CalledProcessError(code, command)


def measured(name: str, folder: Path) -> dict[str, Any]:
    """Read what a run left: speed, losses, ranks."""
    path = folder / name.replace(" ", "-").replace(",", "")
    found = json.loads((path / "times.json").read_text())
    with (path / "stage1" / "history.csv").open() as file:
        history = [{key: float(row[key]) for key in LOSSES} for row in csv.DictReader(file)]
    events = json.loads((path / "stage1" / "ranks.json").read_text())
    seconds: list[float] = []
    last = max(epoch for epoch, _ in found["times"])
    for epoch in range(1, last + 1):
        marks = [at for number, at in found["times"] if number == epoch]
        seconds += [b - a for a, b in zip(marks[SKIP - 1 :], marks[SKIP:], strict=False)]
    size = next(int(o.partition("=")[2]) for o in RUNS[name][1] if "batch_size" in o)
    median = statistics.median(seconds)
    return {
        "images_per_s": size / median,
        "median_ms": median * 1e3,
        "worst_ms": max(seconds) * 1e3,
        "steps_timed": len(seconds),
        "peak_gb": found["peak_gb"],
        "feed_images_per_s": found["feed_images_per_s"],
        "computed": json.loads((path / "provenance.json").read_text())["computed"],
        "losses": history,
        "ranks": [event["ranks"] for event in events],
    }


def compared(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """Return how far two runs of the same steps lie apart."""
    pairs = list(zip(one["losses"], two["losses"], strict=True))
    apart = [abs(a[k] - b[k]) / max(abs(b[k]), 1e-3) for a, b in pairs for k in LOSSES]
    moved = sum(
        abs(rank - after[layer])
        for before, after in zip(one["ranks"], two["ranks"], strict=True)
        for layer, rank in before.items()
    )
    return {
        "steps": len(pairs),
        "loss_relative_difference": max(apart),
        "ranks_identical": one["ranks"] == two["ranks"],
        "triplets_apart": moved / 2,
    }


def main() -> None:
    """Run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", nargs="+", help="only runs whose name holds one of these")
    parser.add_argument("--deadline", type=float, default=200)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child[0], Path(given.child[1]))
        return
    file = Path(os.environ.get("OUT", "out")) / "two_gpus.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    started, results = time.time(), {"command": ["python", *sys.argv], "machine": machine()}
    results |= {"rows": {}, "compared": {}}
    chosen = [r for r in RUNS if not given.runs or any(part in r for part in given.runs)]
    results["config"] = {"shared": SHARED, "runs": {name: RUNS[name] for name in chosen}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images", 2 * TRAIN + VAL)
        rows = results["rows"]
        for run in chosen:
            try:
                launch(run, folder, max(1.0, given.deadline - (time.time() - started)))
                rows[run] = measured(run, folder)
            except subprocess.TimeoutExpired:
                rows[run] = {"error": "stopped: out of time"}
            except (subprocess.SubprocessError, OSError, ValueError) as problem:
                rows[run] = {"error": f"{type(problem).__name__}: {str(problem)[:300]}"}
            file.write_text(json.dumps(results, indent=1))
            shown = {k: v for k, v in rows[run].items() if k not in ("losses", "ranks")}
            print(run, shown, round(time.time() - started), flush=True)
    for one, two in (
        ("one GPU, 16 a step", "two GPUs, 16 a step"),
        ("one GPU, FP32, 8 a step", "two GPUs, FP32, 8 a step"),
    ):
        if "losses" in rows.get(one, {}) and "losses" in rows.get(two, {}):
            results["compared"][f"{one} | {two}"] = compared(rows[one], rows[two])
    results["seconds"] = time.time() - started
    file.write_text(json.dumps(results, indent=1))
    print(json.dumps(results["compared"], indent=1))


if __name__ == "__main__":
    main()
