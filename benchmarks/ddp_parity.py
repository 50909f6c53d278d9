"""Whether one process and several compute the same ranks, masks and losses.

    python benchmarks/ddp_parity.py --device cpu --processes 2      # gloo
    python benchmarks/ddp_parity.py --device cuda --processes 2     # NCCL, on a host with 2 GPUs

The same recipe, seed and total batch is trained in FP32 by one process and by several (started
with torchrun), with and without gradient accumulation, and once more broken off and resumed.
Each row compares a run with the plain one of one process (the resumed one with the unbroken one
of as many processes): ranks of every layer at every pruning, the largest relative difference of
any loss, the largest difference of any weight and of the validation Dice.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from _machine import describe_machine
from _runs import difference
from adalora_qat.checkpoint import RunFolder
from adalora_qat.corpus.sources import read_source
from adalora_qat.files import write_json
from adalora_qat.phantom.phantom import write_phantoms
from adalora_qat.recipe import load_config
from adalora_qat.train.processes import join
from adalora_qat.train.stages import Resources, Training

TINY = (
    "name=ddp-parity",
    "precision=fp32",
    "model.variant=tiny-vit-test",
    "model.init=random",
    "model.side=null",
    "adapt.rank=8",
    "adapt.schedule_epochs=6",
    "adapt.schedule=[{epoch: 1, rank: 6}, {epoch: 2, rank: 5}, {epoch: 4, rank: 4}]",
    "stage1.epochs=6",
    "stage1.batch_size=4",
    "stage1.lr_encoder=1e-2",
    "stage1.lr_decoder=1e-3",
)
STOP = 11
"""The step at which the resumed run is broken off: between two prunings."""


class StopError(Exception):
    """Breaks a run off, as a kill would."""


def cases(processes: int) -> dict[str, tuple[str, ...]]:
    """Return name → overrides of what one launch runs."""
    shared = {"plain": (), "accumulated": ("stage1.accumulate=2",)}
    return shared if processes == 1 else {**shared, "resumed": ()}


def child(arguments: argparse.Namespace) -> None:
    """Be one process of a launch: run every case in turn."""
    cpu = arguments.device == "cpu"
    records = sorted(read_source("phantom", arguments.phantoms).records, key=lambda r: r.id)
    train, val = records[: -arguments.val], records[-arguments.val :]
    state = join(cpu=cpu)

    def stop(report: Any) -> None:
        if report.step == STOP:
            raise StopError

    for name, overrides in cases(state.num_processes).items():
        config = load_config("demo", (*TINY, *arguments.set, *overrides))
        with state.main_process_first():
            run = RunFolder.create(arguments.child / name, config)
        if name == "resumed":
            try:
                broken = Resources(cpu=cpu, on_step=stop, checkpoint_seconds=0.0)
                Training(run, train, val, broken).stage1()
            except StopError:
                pass
        Training(run, train, val, Resources(cpu=cpu)).stage1()
    state.destroy_process_group()


def launch(arguments: argparse.Namespace, processes: int, folder: Path, phantoms: Path) -> None:
    """Run the cases on so many processes."""
    script = [str(Path(__file__).resolve()), "--child", str(folder), "--phantoms", str(phantoms),
              "--device", arguments.device, "--val", str(arguments.val),
              *(part for each in arguments.set for part in ("--set", each))]  # fmt: skip
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), *script]
    environment = {**os.environ}
    if arguments.device == "cpu":
        environment["OMP_NUM_THREADS"] = "1"
    subprocess.run(command, check=True, env=environment)


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train on one process and on each other number of them; return the rows."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        side = load_config("demo", (*TINY, *arguments.set)).model.side or 64
        write_phantoms(work / "phantoms", arguments.images + arguments.val, 0, max(64, side))
        for processes in (1, *arguments.processes):
            launch(arguments, processes, work / str(processes), work / "phantoms")
            for case in cases(processes):
                run = work / str(processes) / case
                reference = work / "1" / "plain"
                if case == "resumed":
                    reference = work / str(processes) / "plain"
                rows.append({"processes": processes, "case": case, **difference(run, reference)})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Compare, and add the rows to the results of other devices in the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--processes", type=int, nargs="+", default=[2])
    parser.add_argument("--images", type=int, default=14)
    parser.add_argument("--val", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="section.key=value")
    parser.add_argument("--out", type=Path, default=Path("results/training/ddp_parity.json"))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--phantoms", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.backends.cudnn.deterministic = True
    torch.set_num_threads(1)
    if arguments.child:
        child(arguments)
        return
    runs = json.loads(arguments.out.read_text())["runs"] if arguments.out.exists() else []
    rows = compare(arguments)
    runs = [run for run in runs if run["device"] != arguments.device]
    runs.append(
        {
            "command": " ".join(["python", "benchmarks/ddp_parity.py", *sys.argv[1:]]),
            "device": arguments.device,
            "backend": "gloo" if arguments.device == "cpu" else "nccl",
            "overrides": [*TINY, *arguments.set],
            "rows": rows,
            "machine": describe_machine(),
        }
    )
    write_json(arguments.out, {"what": "one process against several", "runs": runs})
    if not all(each["ranks_and_masks_identical"] for each in rows):
        sys.exit("ranks or masks differ")


if __name__ == "__main__":
    main()
