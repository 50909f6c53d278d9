"""Grouping and splitting at the paper's 64,590 records: time, memory, and how they grow.

Usage: ``python benchmarks/scale_manifest.py [--counts 8000 16000 32000 64590] [--jobs 2]
[--work FOLDER] [--out RESULT.json]``. Thumbnails of phantoms, a third of them copies of others,
stand in for files that have been read; making them takes minutes to an hour and is not timed.
Each count runs in a process of its own. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

from _machine import describe_machine
from _phantom_corpus import PAPER_RECORDS, corpus
from adalora_qat.corpus.duplicates import group
from adalora_qat.corpus.fingerprint import Fingerprint
from adalora_qat.corpus.fingerprint_store import FingerprintStore
from adalora_qat.corpus.prepare import build_manifest, choose_splits, find_links
from adalora_qat.corpus.records import Record
from adalora_qat.corpus.splits import write_manifest

SOURCES = ("a", "b", "c", "d", "e")
LABELS = ("normal", "pneumonia", "tuberculosis")
# Of the copies, this share has the very pixels of its original.
SAME_PIXELS = 0.2
BATCH = 2000


def main() -> None:
    """Make the corpus and measure each count in its own process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[8000, 16000, 32000, PAPER_RECORDS]
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs") / "scale_manifest")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measured(given.work, given.measure, given.jobs)))
        return
    rows = []
    for count in given.counts:
        fill_store(given.work, count)
        command = [sys.executable, __file__, "--measure", str(count), "--jobs", str(given.jobs)]
        load = os.getloadavg()[0]
        done = subprocess.run(
            [*command, "--work", str(given.work)],
            check=True,
            capture_output=True,
            text=True,
            # The search has its own threads; BLAS is not to add to them.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        rows.append(json.loads(done.stdout) | {"load_before": round(load, 2)})
        print(rows[-1], file=sys.stderr)
    result = {
        "what": "duplicate search, grouping, split and manifest of records already read",
        "command": "python " + " ".join(["benchmarks/scale_manifest.py", *sys.argv[1:]]),
        "jobs": given.jobs,
        "rows": rows,
        # 1 is linear, 2 quadratic.
        "growth_exponent": [
            round(
                math.log(two["cpu_seconds"] / one["cpu_seconds"])
                / math.log(two["records"] / one["records"]),
                2,
            )
            for one, two in pairwise(rows)
        ],
        "machine": describe_machine(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text + "\n")


def records_and_truth(work: Path, count: int) -> tuple[list[Record], list[str], np.ndarray]:
    """Return the records, their pixel hashes, and the index each was copied from."""
    _, _, original = corpus(work, PAPER_RECORDS)
    random = np.random.default_rng(11)
    same = random.random(PAPER_RECORDS) < SAME_PIXELS
    records, hashes = [], []
    for index in range(count):
        source = SOURCES[index % len(SOURCES)]
        picture = work / "images" / f"{index:06}.png"
        masks = {"lung": work / "masks" / picture.name}
        label = LABELS[index % len(LABELS)]
        records.append(Record(f"{source}/{index:06}", source, picture, masks, label))
        hashes.append(str(original[index] if same[index] else index))
    return records, hashes, original[:count]


def fill_store(work: Path, count: int) -> None:
    """Put thumbnails and descriptors where prepare keeps them."""
    path = work / f"store{count}.sqlite"
    if path.is_file():
        return
    pictures, descriptors, _ = corpus(work, PAPER_RECORDS)
    thumbnails = np.load(pictures, mmap_mode="r")
    records, hashes, _ = records_and_truth(work, count)
    with FingerprintStore(path) as store:
        for at in range(0, count, BATCH):
            store.add(
                (
                    Fingerprint(
                        records[index],
                        height=512,
                        width=512,
                        pixel_hash=hashes[index],
                        thumbnail=np.asarray(thumbnails[index]),
                        descriptor=np.asarray(descriptors[index]),
                    )
                    for index in range(at, min(at + BATCH, count))
                ),
                {record.id: "" for record in records[at : at + BATCH]},
            )


def measured(work: Path, count: int, jobs: int) -> dict[str, Any]:
    """Group, split and write one manifest; return times, peak memory and the errors made."""
    records, _, original = records_and_truth(work, count)
    base_mib = peak_mib()
    phases: dict[str, float] = {}
    start, cpu = perf_counter(), process_time()

    def lap(name: str) -> None:
        phases[name] = round(perf_counter() - start - sum(phases.values()), 2)

    with FingerprintStore(work / f"store{count}.sqlite") as store:
        facts = store.facts(sorted(records, key=lambda record: record.id))
        lap("load")
        links = find_links(facts, store, jobs, None)
        lap("find links")
        groups = group(facts, links)
        sides = choose_splits(facts, groups, 0, (0.8, 0.1, 0.1), ())
        lap("group and split")
        write_manifest(build_manifest(facts, groups, sides), work / f"out{count}")
        lap("write manifest")
    seconds, cpu_seconds = perf_counter() - start, process_time() - cpu
    return {
        "records": count,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "phases": phases,
        "peak_mib": round(peak_mib()),
        "peak_mib_before": round(base_mib),
        **errors(records, original, groups),
    }


def errors(records: list[Record], original: np.ndarray, groups: dict[str, str]) -> dict[str, Any]:
    """Count the copies that stand with their originals, and the chests joined wrongly."""
    copies = np.flatnonzero(original != np.arange(len(original)))
    found = sum(groups[records[c].id] == groups[records[original[c]].id] for c in copies)
    chests: dict[str, set[int]] = defaultdict(set)
    for record, source in zip(records, original.tolist(), strict=True):
        chests[groups[record.id]].add(source)
    wrong = sum(len(each) - 1 for each in chests.values())
    return {
        "copies": len(copies),
        "recall": round(float(found / len(copies)), 5),
        "wrong_merges": wrong,
        "wrong_merges_per_1000": round(1000 * wrong / len(records), 4),
    }


def peak_mib() -> float:
    """Return the most memory this program has held (getrusage would count its parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
