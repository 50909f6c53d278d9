"""Kill a real run at random moments: it must end as one that was left alone.

    PYTHONPATH=src python benchmarks/kills.py [--kills 20] [--at-once 4] [--images 104] [--set …]

writes kills.json into $OUT (or ./out). Both stages of the recipe litemedsam (random weights, on
phantoms) are trained twice without a kill, which says what the device's own order of additions
makes of one seed, and ``--at-once`` times with SIGKILL: each of those is started again until it
has had its share of the kills, and then left to end. Moments are drawn so that they fall all over
a run, start and validation included; a run that ends before its last kill was killed less often.
On a GPU: in bf16.

    python benchmarks/kills.py --join FILE ... results/training/kills_gpu.json

puts several of those files together and asks whether a stage that was killed lies further from
the run left alone than a stage that nobody killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch
from scipy.stats import mannwhitneyu

from _gpu_rows import machine
from _runs import difference
from adalora_qat.checkpoint import RunFolder
from adalora_qat.corpus.sources import read_source
from adalora_qat.files import write_json
from adalora_qat.phantom.phantom import write_phantoms
from adalora_qat.recipe import load_config
from adalora_qat.train.stages import Resources, Training

SIDE = 256
SETTINGS = ("model.init=random", "stage1.epochs=6", "adapt.schedule_epochs=6",
            "adapt.schedule=[{epoch: 1, rank: 43}, {epoch: 3, rank: 37}, {epoch: 4, rank: 32}]",
            "stage2.epochs=2")  # fmt: skip
STAGES = ("stage1", "stage2")


def child(path: Path, phantoms: Path) -> None:
    """Train the run in ``path``, or what is left of it; one phantom in thirteen validates."""
    records = sorted(read_source("phantom", phantoms).records, key=lambda r: r.id)
    train = records[: len(records) * 12 // 13]
    resources = Resources(cpu=not torch.cuda.is_available(), checkpoint_seconds=1.0)
    training = Training(RunFolder.open(path), train, records[len(train) :], resources)
    training.stage1()
    training.quantize()
    training.stage2()


def start(path: Path, phantoms: Path) -> subprocess.Popen[bytes]:
    """Start a process on a run."""
    command = [sys.executable, __file__, "--child", str(path), str(phantoms)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})


def unbroken(path: Path, phantoms: Path) -> float:
    """Train a run whole; return its seconds."""
    started = time.monotonic()
    with start(path, phantoms) as process:
        if process.wait():
            raise RuntimeError(f"the unbroken run {path.name} failed")
    return time.monotonic() - started


def killed(path: Path, phantoms: Path, kills: int, seconds: float, seed: int) -> dict[str, Any]:
    """Kill a run so many times, then let it end; return when it was killed and where it was."""
    moments: list[dict[str, Any]] = []
    draw = random.Random(seed)
    # On average an equal part of the run lies between two kills, so that they fall all over it.
    for number in range(kills):
        with start(path, phantoms) as process:
            time.sleep(draw.uniform(0.2, 2 * seconds / (kills + 1)))
            ended = process.poll() is not None
            process.send_signal(signal.SIGKILL)
        if ended:
            break
        done = [stage for stage in STAGES if RunFolder.open(path).finished(stage)]
        moments.append({"kill": number + 1, "finished_by_then": done})
    unbroken(path, phantoms)
    return {"kills": len(moments), "moments": moments}


def interrupted(row: dict[str, Any], stage: str) -> bool:
    """Return whether a kill hit the run before this stage's end."""
    return any(stage not in moment["finished_by_then"] for moment in row.get("moments", []))


def join(files: list[Path], out: Path) -> None:
    """Write the runs of several files, and how far killed and other runs lie from the first.

    Stage 1 alone says something on a GPU: stage 2 starts from one that is not the same to the bit.
    """
    runs = [json.loads(file.read_text()) for file in files]
    rows = [row for run in runs for row in run["rows"].values()]
    told: dict[str, Any] = {"kills": sum(run["kills"] for run in runs)}
    for key in ("loss_relative_difference", "val_dice_difference"):
        killed_ones = [r["stage1"][key] for r in rows if interrupted(r, "stage1")]
        others = [r["stage1"][key] for r in rows if not interrupted(r, "stage1")]
        told[key] = {
            "killed": {"runs": len(killed_ones), "median": median(killed_ones),
                       "largest": max(killed_ones)},
            "not_killed": {"runs": len(others), "median": median(others), "largest": max(others)},
            "mann_whitney_p": float(mannwhitneyu(killed_ones, others).pvalue),
        }  # fmt: skip
    write_json(out, {"stage1": told, "runs": runs})
    print(json.dumps(told, indent=1))


def main() -> None:
    """Train, kill, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--images", type=int, default=104)
    parser.add_argument("--set", action="append", default=[], help="section.key=value")
    parser.add_argument("--child", type=Path, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--join", type=Path, nargs="+", help="files to read, the last to write")
    given = parser.parse_args()
    if given.child:
        child(*given.child)
        return
    if given.join:
        join(given.join[:-1], given.join[-1])
        return
    precision = "precision=bf16" if torch.cuda.is_available() else "precision=fp32"
    overrides = (*SETTINGS, precision, *given.set)
    config = load_config("litemedsam", overrides)
    results: dict[str, Any] = {
        "command": ["python", *sys.argv], "machine": machine(), "overrides": overrides, "rows": {}
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(given.at_once) as pool:
        folder = Path(name)
        phantoms = folder / "phantoms"
        write_phantoms(phantoms, given.images, 0, config.model.side or SIDE)
        names = ["whole", "again", *(f"killed {n}" for n in range(given.at_once))]
        for each in names:
            RunFolder.create(folder / each, config)
        seconds = unbroken(folder / "whole", phantoms)
        again = pool.submit(unbroken, folder / "again", phantoms)
        share = [given.kills // given.at_once + (n < given.kills % given.at_once)
                 for n in range(given.at_once)]  # fmt: skip
        jobs = [pool.submit(killed, folder / names[2 + n], phantoms, kills, seconds, n)
                for n, kills in enumerate(share)]  # fmt: skip
        told = [job.result() for job in jobs]
        again.result()
        for each in names[1:]:
            results["rows"][each] = {
                stage: difference(folder / each, folder / "whole", stage) for stage in STAGES
            }
        for each, one in zip(names[2:], told, strict=True):
            results["rows"][each] |= one
    results["kills"] = sum(one["kills"] for one in told)
    results["unbroken_s"] = seconds
    file = Path(os.environ.get("OUT", "out")) / "kills.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1))
    print(json.dumps({"kills": results["kills"], **results["rows"]}, indent=1))


if __name__ == "__main__":
    main()
