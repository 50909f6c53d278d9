"""A real prepare of image files: images per second and core, peak memory, killed and resumed.

Usage: ``python benchmarks/prepare_throughput.py DATA [--counts 1250 2500 5000] [--jobs 2]
[--work FOLDER] [--out RESULT.json]`` with DATA holding jsrt/ and shenzhen/. The files are cut
from those images (512-pixel JPEG with lung masks, turned and cropped so that they are distinct),
written before and not timed. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
from PIL import Image

from _machine import describe_machine
from adalora_qat.corpus.prepare import prepare
from adalora_qat.corpus.records import Record
from adalora_qat.corpus.sources import read_source
from adalora_qat.imaging.image_file import load_mask

SIDE = 512
OUTPUTS = ("manifest.csv", "manifest.parquet", "quarantine.csv", "groups.csv", "card.html")
SAMPLE_EVERY_S = 0.1


def main() -> None:
    """Write the files, then measure each count in its own process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[1250, 2500, 5000])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs") / "prepare_throughput")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measured(given.work, given.measure, given.jobs)))
        return
    rows = []
    for count in given.counts:
        write_files(given.data, given.work / f"files{count}", count)
        load = os.getloadavg()[0]
        done = run(given, count)
        rows.append(json.loads(done) | {"load_before": round(load, 2)})
        print(rows[-1], file=sys.stderr)
    result = {
        "what": "prepare: reading, quality gate, hashes, grouping, split, manifest, data card",
        "command": "python " + " ".join(["benchmarks/prepare_throughput.py", *sys.argv[1:]]),
        "files": f"{SIDE}-pixel JPEG, one lung mask each",
        "jobs": given.jobs,
        "rows": rows,
        "killed_and_resumed": killed_and_resumed(given, given.counts[0]),
        "machine": describe_machine(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text + "\n")


def command(given: argparse.Namespace, count: int) -> list[str]:
    """Return the command that measures one count."""
    own = [sys.executable, __file__, str(given.data), "--measure", str(count)]
    return [*own, "--jobs", str(given.jobs), "--work", str(given.work)]


def run(given: argparse.Namespace, count: int) -> str:
    """Measure one count in a fresh process and folder."""
    shutil.rmtree(given.work / f"out{count}", ignore_errors=True)
    done = subprocess.run(command(given, count), check=True, capture_output=True, text=True)
    return done.stdout


def write_files(data: Path, folder: Path, count: int) -> None:
    """Cut ``count`` distinct files, with masks, from the real images."""
    if folder.is_dir():
        return
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    names = ("jsrt", "shenzhen")
    records = [r for name in names for r in read_source(name, data / name).records]
    for index in range(count):
        image, mask = cut(records[index % len(records)], np.random.default_rng(index))
        image.save(folder / "images" / f"{index:05}.jpg", quality=90)
        mask.save(folder / "masks" / f"{index:05}.png")


def cut(record: Record, random: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Turn by up to 12 degrees and crop to 75–95 % of the side."""
    angle, share = random.uniform(-12, 12), random.uniform(0.75, 0.95)
    lungs = np.any([load_mask(path) for path in record.mask_parts("lung")], axis=0)
    pictures = []
    for picture in (Image.open(record.image).convert("L"), Image.fromarray(lungs)):
        width, height = picture.size
        left, top = (1 - share) / 2 * width, (1 - share) / 2 * height
        turned = picture.rotate(angle, Image.Resampling.NEAREST)
        box = (left, top, width - left, height - top)
        pictures.append(turned.resize((SIDE, SIDE), Image.Resampling.NEAREST, box=box))
    return pictures[0], pictures[1]


def measured(work: Path, count: int, jobs: int) -> dict[str, Any]:
    """Prepare once from nothing and once again; return times and peak memory."""
    sources, out = {"pairs": work / f"files{count}"}, work / f"out{count}"
    phases: dict[str, float] = {}
    with Memory() as memory:
        start = perf_counter()

        def progress(done: int, total: int, what: str) -> None:
            phases[what] = round(perf_counter() - start, 2)

        report = prepare(sources, out, jobs=jobs, progress=progress)
        seconds = perf_counter() - start
    cpu = sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
    first = [(out / name).read_bytes() for name in OUTPUTS]
    start = perf_counter()
    prepare(sources, out, jobs=jobs)
    return {
        "images": count,
        "used": report.used["pairs"],
        "groups": report.groups,
        "seconds": round(seconds, 2),
        "images_per_second_and_core": round(count / seconds / jobs, 1),
        "images_per_core_second": round(count / cpu, 1),
        "done_after_seconds": phases,
        "peak_mib_all_processes": round(memory.peak_mib),
        "again_seconds": round(perf_counter() - start, 2),
        "again_the_same_bytes": first == [(out / name).read_bytes() for name in OUTPUTS],
    }


def killed_and_resumed(given: argparse.Namespace, count: int) -> dict[str, Any]:
    """Kill a prepare half way, run it again, and compare with the run that was not killed."""
    out = given.work / f"out{count}"
    whole = [(out / name).read_bytes() for name in OUTPUTS]
    shutil.rmtree(out)
    started = subprocess.Popen(
        command(given, count), stdout=subprocess.DEVNULL, start_new_session=True
    )
    store = out / ".fingerprints" / "store.sqlite"
    # The kept fingerprints grow by about 13 kB an image.
    while not (store.is_file() and store.stat().st_size > 13_000 * count / 2):
        sleep(0.05)
        if started.poll() is not None:
            raise SystemExit("the prepare ended before it could be killed")
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    done = any((out / name).exists() for name in OUTPUTS)
    again = subprocess.run(command(given, count), check=True, capture_output=True, text=True)
    return {
        "images": count,
        "outputs_there_when_killed": done,
        "seconds_to_finish": json.loads(again.stdout)["seconds"],
        "same_bytes_as_never_killed": whole == [(out / name).read_bytes() for name in OUTPUTS],
    }


class Memory:
    """Watches the memory of this process and its children; pages they share count once."""

    def __init__(self) -> None:
        self.peak_mib = 0.0
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Memory:
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watch.join()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_EVERY_S):
            own = [os.getpid(), *children(os.getpid())]
            self.peak_mib = max(self.peak_mib, sum(map(proportional_mib, own)))


def children(pid: int) -> list[int]:
    """Return the process ids below one process."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(c) for c in found] + [deeper for c in found for deeper in children(int(c))]


def proportional_mib(pid: int) -> float:
    """Return a process's share of memory (PSS)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


if __name__ == "__main__":
    main()
