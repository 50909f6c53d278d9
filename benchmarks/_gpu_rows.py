"""Rows of a GPU benchmark: timed by device events, run in worker processes, saved one by one.

A row that fails, even one that takes the CUDA context with it, is recorded and the next one goes
on; rows that no time is left for are recorded as skipped.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _machine import describe_machine

Results = dict[str, Any]


def timed(step: Callable[[], Any], repeats: int, warm: int) -> tuple[float, float]:
    """Return the median and the worst seconds of ``step``."""
    for _ in range(warm):
        step()
    torch.cuda.synchronize()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    torch.cuda.synchronize()
    seconds = [before.elapsed_time(after) / 1e3 for before, after in itertools.pairwise(marks)]
    return statistics.median(seconds), max(seconds)


def relative_error(ours: Tensor, wanted: Tensor | None) -> float | None:
    """Return ‖ours − wanted‖/‖wanted‖, or None without a reference."""
    if wanted is None:
        return None
    wanted = wanted.to(ours.device)
    return ((ours.float() - wanted).norm() / wanted.norm()).item()


def reset() -> None:
    """Forget compiled code and free memory, so that no row profits from the one before."""
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def peak_gb() -> float:
    """Return the most memory allocated since the last reset, in GiB."""
    return torch.cuda.max_memory_allocated() / 2**30


def drive(rows: Sequence[str], name: str, deadline_s: float, config: Mapping[str, Any]) -> Results:
    """Run this script again as a worker until every row is recorded; return the results."""
    started = time.time()
    folder = Path(os.environ.get("OUT", "out"))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    head = {"command": ["python", *sys.argv], "config": dict(config), "machine": machine()}
    file.write_text(json.dumps({**head, "rows": {}}))
    end = started + deadline_s
    for _ in rows:
        # A row that hangs in a compiler must leave time to print what there is.
        command = [sys.executable, *sys.argv, "--worker", str(file), str(end)]
        try:
            code = subprocess.run(
                command, timeout=max(1.0, end + 45 - time.time()), check=False
            ).returncode
        except subprocess.TimeoutExpired:
            stopped: Results = json.loads(file.read_text())
            if stopped["rows"]:
                save(file, stopped, [*stopped["rows"]][-1], {"error": "stopped: out of time"})
            break
        if code == 0:
            break
    results: Results = json.loads(file.read_text())
    results["seconds"] = time.time() - started
    file.write_text(json.dumps(results, indent=1))
    return results


def work(
    rows: Sequence[str], file: Path, end: float, run: Callable[[str, Results], Results]
) -> None:
    """Run the rows that ``file`` lacks, saving after each; leave if the device is lost."""
    for row in rows:
        results: Results = json.loads(file.read_text())
        if row in results["rows"]:
            continue
        if time.time() > end:
            save(file, results, row, {"error": "skipped: out of time"})
            continue
        # Written first: if the process dies in this row, the next worker passes it by.
        save(file, results, row, {"error": "the process died"})
        started = time.perf_counter()
        lost = False
        try:
            figures = run(row, results)
        except Exception as problem:
            figures = {"error": f"{type(problem).__name__}: {str(problem)[:400]}"}
            lost = "CUDA error" in str(problem)
        figures["row_s"] = round(time.perf_counter() - started, 1)
        save(file, results, row, figures)
        print(f"{row}: {json.dumps(figures)}", flush=True)
        if lost:
            sys.exit(3)


def save(file: Path, results: Results, row: str, figures: Results) -> None:
    """Record a row."""
    results["rows"][row] = figures
    file.write_text(json.dumps(results, indent=1))


def table(results: Results) -> Iterator[str]:
    """Yield the lines of a table, one a row."""
    yield json.dumps(results["machine"])
    for row, figures in results["rows"].items():
        if "images_per_s" not in figures:
            yield f"{row:56s} {json.dumps(figures)}"
            continue
        errors = [f"{key} {figures[key]:.1e}" for key in figures if "error" in key and figures[key]]
        speed = f"{figures['images_per_s']:7.1f} images/s {figures['peak_gb']:6.1f} GB"
        yield f"{row:56s} {speed}  {'  '.join(errors)}"


def machine() -> Results:
    """Return the machine, the versions that decide its speed, and the commit.

    BENCHMARK_COMMIT names the commit of a copy that git does not know.
    """
    from importlib import metadata

    found: Results = describe_machine()
    found["commit"] = found["commit"] or os.environ.get("BENCHMARK_COMMIT")
    found["device_memory_gb"] = None
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        found["device_memory_gb"] = round(memory / 2**30, 1)
    for package in ("peft", "triton"):
        try:
            found["packages"][package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found["packages"][package] = None
    return found
