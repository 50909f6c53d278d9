"""Measure the Python front door: time of the import, and memory over many images.

    python benchmarks/front_door.py [--images 1000] [--side 512] [--out results/front_door.json]

The import is timed in processes of its own, each from the start of ``import adalora_qat`` to its
end; the median of ten. Memory is what the process holds (resident set) while ``model.map`` of the
packaged model goes over phantoms, the same few files again and again, read from disk each time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from PIL import Image

import adalora_qat as aq
from _machine import describe_machine
from adalora_qat.files import write_json
from adalora_qat.phantom.phantom import phantom

IMPORT = """
import sys, time
started = time.perf_counter()
import adalora_qat
print(time.perf_counter() - started, "torch" in sys.modules, "numpy" in sys.modules)
"""
FIRST_USE = IMPORT.replace("import adalora_qat\n", "import adalora_qat\nadalora_qat.load\n")


def main() -> None:
    """Measure, print as JSON and, if asked, write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--distinct", type=int, default=20)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = {
        "import_ms": importing(IMPORT),
        "import_and_first_use_ms": importing(FIRST_USE),
        "map": mapping(given.images, given.distinct, given.side, given.threads),
        "command": "python " + " ".join(["benchmarks/front_door.py", *sys.argv[1:]]),
        "measured_on": describe_machine(),
    }
    print(json.dumps(found, indent=2))
    if given.out:
        write_json(given.out, found)


def importing(code: str, times: int = 10) -> dict[str, Any]:
    """Run some code in ``times`` processes and return median and largest time, in ms."""
    spent, loaded = [], set()
    for _ in range(times):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        seconds, torch, numpy = done.stdout.decode().split()
        spent.append(float(seconds) * 1e3)
        loaded |= {name for name, is_in in (("torch", torch), ("numpy", numpy)) if is_in == "True"}
    return {
        "median": round(statistics.median(spent), 2),
        "largest": round(max(spent), 2),
        "processes": times,
        "loaded": sorted(loaded),
    }


def mapping(images: int, distinct: int, side: int, threads: int | None) -> dict[str, Any]:
    """Segment ``images`` phantoms and return seconds each, and memory along the way, in MB."""
    model = aq.load(threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{seed}.png" for seed in range(distinct)]
        for seed, path in enumerate(paths):
            Image.fromarray(phantom(seed, side=side).image).save(path)
        held = {"loaded": resident_mb()}
        marks = {max(1, images * tenth // 10) for tenth in range(1, 11)}
        started = time.perf_counter()
        for done, _ in enumerate(model.map(islice(cycle(paths), images)), start=1):
            if done in marks:
                held[str(done)] = resident_mb()
        seconds = time.perf_counter() - started
    first, last = held[str(min(marks))], held[str(images)]
    return {
        "images": images,
        "side": side,
        "seconds_each": round(seconds / images, 4),
        "resident_mb": held,
        "growth_after_first_tenth_mb": round(last - first, 1),
    }


def resident_mb() -> float:
    """Return the memory that this process holds now, in MB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith("VmRSS:"))
    return round(int(kilobytes) / 1024, 1)


if __name__ == "__main__":
    main()
