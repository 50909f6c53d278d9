"""Train and measure the rows of the study, several at once on the GPUs there are.

    python benchmarks/study/run.py prepare jsrt=PATH shenzhen=PATH --external NAME=PATH --root ROOT
    python benchmarks/study/run.py all --root ROOT [--only ROW|JOB …] [--seeds 0] [--deadline 500]
    python benchmarks/study/run.py row ROW --seed 0 --root ROOT
    python benchmarks/study/run.py show            # the commands of every row, to run by hand

Every job is one process that runs the commands of ``plan.py`` one after another. Jobs that have
ended are not run again; interrupted ones resume. ``ROOT/jobs.json`` says how each one ended, in
which seconds, by which commands. At the deadline running jobs are stopped, and resume next time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plan import PLAN, Job, Place, jobs_of, read_plan

SOURCES = ("jsrt", "shenzhen")
DEGRADED_SEED = 1
"""The sweep over degraded images is long, and made with one seed."""
GIVE_UP = 4
"""So many failures are no accident: more jobs would only cost time."""


@dataclass
class Running:
    """A job's process."""

    job: Job
    gpu: str
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.time)


class Schedule:
    """Runs jobs in order, each on the GPU with the fewest, a job after the one that it needs."""

    def __init__(
        self, root: Path, plan: Path, gpus: list[str], slots: int, deadline_s: float
    ) -> None:
        self.root, self.place, self.plan = root, Place.under(root), plan
        self.gpus, self.slots = gpus, slots
        self.end = time.time() + deadline_s
        self.running: list[Running] = []
        self.failures = 0
        self.file = root / "jobs.json"
        known = json.loads(self.file.read_text("utf-8")) if self.file.is_file() else {}
        self.report: dict[str, dict[str, Any]] = {
            name: job for name, job in known.items() if job["status"] == "done"
        }
        (root / "logs").mkdir(parents=True, exist_ok=True)

    def run(self, jobs: list[Job]) -> None:
        """Run the jobs until all have ended or the time is over."""
        waiting = [job for job in jobs if self._status(job.name) != "done"]
        while (waiting or self.running) and time.time() < self.end:
            self._collect()
            if self.failures >= GIVE_UP:
                print(f"{self.failures} jobs failed: stopped, look at {self.root / 'logs'}")
                break
            ready = next((job for job in waiting if self._ready(job, waiting)), None)
            if ready is not None and len(self.running) < self.slots * len(self.gpus):
                waiting.remove(ready)
                self._start(ready)
                continue
            time.sleep(0.25)
        for each in self.running:
            each.process.terminate()
            self._note(each, "stopped")
        for job in waiting:
            self.report.setdefault(job.name, {"status": "not started"})
        self._save()

    def _status(self, name: str | None) -> str | None:
        return None if name is None else self.report.get(name, {}).get("status")

    def _ready(self, job: Job, waiting: list[Job]) -> bool:
        if job.needs is None or self._status(job.needs) == "done":
            return True
        if self._status(job.needs) == "failed":
            self.report[job.name] = {"status": "failed", "why": f"{job.needs} failed"}
            waiting.remove(job)
        return False

    def _start(self, job: Job) -> None:
        gpu = min(self.gpus, key=lambda each: sum(r.gpu == each for r in self.running))
        threads = max(2, (os.cpu_count() or 2) // (self.slots * len(self.gpus)))
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": gpu,
            "OMP_NUM_THREADS": str(threads),
            "COLUMNS": "160",
        }
        log = (self.root / "logs" / f"{job.name}.txt").open("ab")
        command = [sys.executable, __file__, "row", job.row.name, "--seed", str(job.seed)]
        process = subprocess.Popen(
            [*command, "--root", str(self.root), "--plan", str(self.plan)],
            env=environment,
            stdout=log,
            stderr=log,
        )
        self.running.append(Running(job, gpu, process))

    def _collect(self) -> None:
        for each in [r for r in self.running if r.process.poll() is not None]:
            self.running.remove(each)
            failed = each.process.returncode != 0
            self.failures += failed
            self._note(each, "failed" if failed else "done")
            self._save()

    def _note(self, each: Running, status: str) -> None:
        spent = round(time.time() - each.started, 1)
        commands = [" ".join(["adalora-qat", *c]) for c in each.job.commands(self.place)]
        self.report[each.job.name] = {
            "status": status, "seconds": spent, "gpu": each.gpu, "commands": commands
        }  # fmt: skip
        print(f"{status:8} {each.job.name:32} {spent:7.1f} s", flush=True)

    def _save(self) -> None:
        self.file.write_text(json.dumps(self.report, indent=1))


def run_row(job: Job, place: Place) -> None:
    """Run one job's commands in this process."""
    from adalora_qat.cli import app

    for arguments in job.commands(place):
        print("adalora-qat", *arguments, flush=True)
        started = time.perf_counter()
        app(arguments, standalone_mode=False)
        print(f"-- {time.perf_counter() - started:.1f} s", flush=True)
    if job.row.pack is not None:
        from pack import pack_stage

        pack_stage(place.runs / job.name, job.row.pack)
    if job.seed == DEGRADED_SEED:
        from robustness import sweep

        for stage in job.row.degraded:
            sweep(
                job.model(place, stage),
                place.data / job.row.data,
                place.evaluations / job.name / f"{stage}_degraded.csv",
            )


def prepare(sources: list[str], external: list[str], place: Place) -> None:
    """Make the manifests: both sources; one of them training and both testing; the external set."""
    import pandas as pd

    from adalora_qat.cli import app
    from adalora_qat.corpus.splits import read_manifest
    from adalora_qat.files import write_text

    main = place.data / "main"
    app(["prepare", *sources, "--out", str(main), "--jobs", "8"], standalone_mode=False)
    manifest = read_manifest(main)
    for source in SOURCES:
        own = manifest["source"] == source
        crossed: pd.DataFrame = manifest.assign(split=manifest["split"].where(own, "test"))
        write_text(place.data / f"only-{source}" / "manifest.csv", crossed.to_csv(index=False))
    if external:
        app(
            ["prepare", *external, "--out", str(place.data / "external-split"), "--jobs", "8"],
            standalone_mode=False,
        )
        everything = read_manifest(place.data / "external-split").assign(split="test")
        write_text(place.data / "external" / "manifest.csv", everything.to_csv(index=False))


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("prepare", help="make the manifests")
    data.add_argument("sources", nargs="+", metavar="NAME=PATH")
    data.add_argument("--external", nargs="*", default=[], metavar="NAME=PATH")
    every = commands.add_parser("all", help="run the plan")
    every.add_argument("--only", nargs="*", help="rows, or jobs: unet, unet-s1")
    every.add_argument("--seeds", nargs="*", type=int)
    every.add_argument("--gpus", default="0")
    every.add_argument("--slots", type=int, default=1, help="jobs at once on each GPU")
    every.add_argument("--deadline", type=float, default=1e9, help="seconds for everything")
    one = commands.add_parser("row", help="run one row with one seed")
    one.add_argument("row")
    one.add_argument("--seed", type=int, default=0)
    commands.add_parser("show", help="print the commands")
    for each in commands.choices.values():
        each.add_argument("--root", type=Path, default=Path("runs/study"))
        each.add_argument("--plan", type=Path, default=PLAN)
    given = parser.parse_args()
    place, rows = Place.under(given.root), read_plan(given.plan)
    if given.command == "prepare":
        prepare(given.sources, given.external, place)
    elif given.command == "row":
        run_row(Job(rows[given.row], given.seed), place)
    elif given.command == "show":
        for job in jobs_of(rows, given.plan):
            print("\n".join(" ".join(["adalora-qat", *c]) for c in job.commands(place)))
    else:
        chosen = [
            job
            for job in jobs_of(rows, given.plan)
            if (not given.only or {job.row.name, job.name} & set(given.only))
            and (given.seeds is None or job.seed in given.seeds)
        ]
        gpus = given.gpus.split(",")
        Schedule(given.root, given.plan, gpus, given.slots, given.deadline).run(chosen)


if __name__ == "__main__":
    main()
