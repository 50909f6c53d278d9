"""Run the grid of chest.yaml: many short runs, several at once on one GPU.

    python benchmarks/study/chest_grid.py DATA WORK --processes 7 --deadline 560

DATA is a prepared folder (best resized to the model's side already). WORK keeps tensors, first
stages and ``results/NAME.json``, one file a run with its scores by case and no weights; a run
whose file is there is not run again, so that the same command goes on where time ran out.

The search over learning rates comes first, then whole blocks of one seed and split: what a
deadline cuts off are the last blocks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from chest_data import Corpus, read_corpus
from chest_run import PLAN, Plan, Task, first_stage, run_task

from adalora_qat.checkpoint import provenance
from adalora_qat.files import write_json
from adalora_qat.model.sam import variant
from adalora_qat.train.processes import accelerator_for

# A run that failed as often as this is left out.
TRIES = 2


class Grid:
    """What is to be run, what is running, and what has been.

    Parameters
    ----------
    plan, work : as in the module's text.
    only : rows to run; None runs all.
    """

    def __init__(self, plan: Plan, work: Path, only: list[str] | None = None) -> None:
        self.plan, self.work = plan, work
        self.results, self.runs = work / "results", work / "runs"
        for folder in (self.results, self.runs):
            folder.mkdir(parents=True, exist_ok=True)
        names = list(plan.rows)
        self.rows = [name for name in names if only is None or name in only]
        needed = {plan.rows[name].get("stage1") for name in self.rows}
        self.rows = [name for name in names if name in self.rows or name in needed]
        self.started = time.time()
        self.lock = threading.Condition()
        self.running: set[Task] = set()
        self.failures: dict[Task, int] = {}
        self.validation = {
            path.stem: json.loads(path.read_text())["validation"]
            for path in self.results.glob("*-x*.json")
        }
        for task in self.tasks():
            self.link(task)

    def tasks(self) -> Iterator[Task]:
        """Yield what is known to be run, in order: the search, then block after block."""
        budget = self.plan.budget
        seed, split = budget["seeds"][0], budget["splits"][0]
        for row in self.rows:
            if self.plan.rows[row].get("trains"):
                for factor in budget["search"]:
                    yield Task(row, seed, split, factor)
        for seed in budget["seeds"]:
            for split in budget["splits"]:
                for row in self.rows:
                    factor = self.factor(row)
                    if seed in self.plan.rows[row].get("seeds", budget["seeds"]) and factor:
                        yield Task(row, seed, split, factor)

    def factor(self, row: str) -> float | None:
        """Return the factor that the search chose for a row, None while it goes on."""
        if not self.plan.rows[row].get("trains"):
            return 1.0
        budget = self.plan.budget
        seed, split = budget["seeds"][0], budget["splits"][0]
        tried = {f: Task(row, seed, split, f) for f in budget["search"]}
        if any(self.open(task) for task in tried.values()):
            return None
        found = {f: self.validation.get(task.name, -1.0) for f, task in tried.items()}
        return max(found, key=lambda f: found[f])

    def open(self, task: Task) -> bool:
        """Whether a task is still to be done, or under way."""
        if task.name in self.validation or self.failed(task):
            return False
        source = self.plan.rows[task.row].get("stage1")
        factor = self.factor(source) if source else None
        return factor is None or not self.failed(Task(source, task.seed, task.split, factor))

    def failed(self, task: Task) -> bool:
        """Whether a task has failed too often."""
        return self.failures.get(task, 0) >= TRIES

    def link(self, task: Task) -> None:
        """Give the chosen first stage of a seed and split the name that second stages know."""
        own = first_stage(self.runs, task.row, task, task.factor)
        if own.is_file() and self.factor(task.row) == task.factor:
            chosen = first_stage(self.runs, task.row, task)
            if not chosen.exists():
                os.link(own, chosen)

    def next(self) -> Task | None:
        """Return a task that can start now, None if there is none; call it with the lock held."""
        for task in self.tasks():
            if task in self.running:
                continue
            source = self.plan.rows[task.row].get("stage1")
            needed = source and first_stage(self.runs, source, task)
            if self.open(task) and (not needed or needed.exists()):
                return task
            if source and self.open(task) and self.factor(source):
                # Its first stage was made by a machine that is gone: make it again.
                first = Task(source, task.seed, task.split, self.factor(source) or 1.0)
                if first not in self.running:
                    return first
        return None

    def left(self) -> bool:
        """Whether anything is running or still to be run."""
        return bool(self.running) or any(self.open(task) for task in self.tasks())


def work_on(grid: Grid, command: list[str], log: Path, end: float) -> None:
    """Feed one worker process with tasks until there are none; start it again if it dies."""
    process: subprocess.Popen[str] | None = None
    while time.time() < end:
        with grid.lock:
            task = grid.next()
            if task is None:
                if not grid.left():
                    break
                grid.lock.wait(1.0)
                continue
            grid.running.add(task)
        if process is None or process.poll() is not None:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("a"),
                text=True,
            )  # fmt: skip
            clock = threading.Timer(min(max(0.1, end - time.time()), 1e6), process.kill)
            clock.daemon = True
            clock.start()
        done = ask(process, task)
        with grid.lock:
            grid.running.discard(task)
            if done is None:
                grid.failures[task] = grid.failures.get(task, 0) + 1
            else:
                grid.validation[task.name] = done
                for each in grid.tasks():
                    grid.link(each)
            grid.lock.notify_all()
        said = "FAILED" if done is None else f"{done:.4f}"
        print(f"{time.time() - grid.started:6.1f} s  {task.name:32} {said}", flush=True)
    if process is not None:
        process.kill()


def ask(process: subprocess.Popen[str], task: Task) -> float | None:
    """Let a worker do a task; return its validation Dice, None if it failed."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(asdict(task)) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except OSError:
        return None
    return json.loads(answer)["validation"] if answer.startswith("{") else None


def worker(plan: Plan, work: Path, device_of: str) -> None:
    """Do the tasks that come on stdin, one a line."""
    import logging

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints goes to the log
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    precision = plan.config(Task(next(iter(plan.rows)), 0, 0, 1.0)).precision
    accelerator = accelerator_for(precision, cpu=device_of == "cpu")
    corpus = Corpus.load(work / "corpus.pt", accelerator.device)
    for line in sys.stdin:
        task = Task(**json.loads(line))
        try:
            result = run_task(task, plan, corpus, work / "runs", accelerator)
            write_json(work / "results" / f"{task.name}.json", result)
            answer: dict[str, Any] = {"validation": result["validation"]}
        except Exception:
            logging.exception(task.name)
            answer = {"validation": None}
        print(json.dumps(answer), file=answers, flush=True)


def prepare(plan: Plan, data: Path, work: Path, most: int | None) -> None:
    """Decode the data into ``corpus.pt``, and write what was run on what into the results."""
    file = work / "corpus.pt"
    config = plan.config(Task(next(iter(plan.rows)), 0, 0, 1.0))
    if not file.is_file():
        side = variant(config.model.variant).at_side(config.model.side).frame.side
        corpus = read_corpus(data, side, config.model.structures, plan.budget["splits"], most)
        corpus.save(file.with_suffix(".part"))
        file.with_suffix(".part").rename(file)
    corpus = Corpus.load(file, torch.device("cpu"))
    cases = {
        "structures": list(config.model.structures),
        "ids": corpus.ids,
        "sources": corpus.sources,
        "patients": corpus.patients,
        "splits": corpus.splits,
        "areas": corpus.masks.sum(dim=(2, 3)).tolist(),
        "union_areas": corpus.union.sum(dim=(1, 2)).tolist(),
        "extent": corpus.extent.tolist(),
    }
    write_json(work / "results" / "cases.json", cases)
    write_json(work / "results" / "plan.json", {**plan.values, "extra": list(plan.extra)})


def main() -> None:
    """Run the grid, or be one of its workers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--plan", type=Path, default=PLAN)
    parser.add_argument("--processes", type=int, default=1, help="runs at once")
    parser.add_argument("--deadline", type=float, default=1e9, help="seconds for everything")
    parser.add_argument("--only", nargs="*", help="rows to run")
    parser.add_argument("--steps", type=int, help="steps of both stages, for a dry run")
    parser.add_argument("--most", type=int, help="read only so many radiographs, for a dry run")
    parser.add_argument("--set", nargs="*", default=[], help="overrides, for a dry run")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    plan = Plan.read(args.plan, args.set, args.steps)
    if args.worker:
        worker(plan, args.work, "cpu" if args.cpu else "any")
        return
    started = time.time()
    grid = Grid(plan, args.work, args.only)
    prepare(plan, args.data, args.work, args.most)
    print(f"{time.time() - started:6.1f} s  data read", flush=True)
    command = [sys.executable, __file__, *sys.argv[1:], "--worker"]
    threads = [
        threading.Thread(
            target=work_on,
            args=(grid, command, args.work / f"worker{i}.log", started + args.deadline),
            daemon=True,
        )
        for i in range(args.processes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = {
        "machine": provenance({}),
        "processes": args.processes,
        "seconds": round(time.time() - started, 1),
        "done": len(grid.validation),
        "failed": sorted(task.name for task in grid.failures),
        "left": [task.name for task in grid.tasks() if grid.open(task)],
    }
    number = len(list(grid.results.glob("session-*.json")))
    write_json(grid.results / f"session-{number}.json", spent)
    print(f"{spent['seconds']} s: {spent['done']} done, {len(spent['left'])} left", flush=True)


if __name__ == "__main__":
    main()
