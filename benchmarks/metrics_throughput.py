"""How many cases a second the metrics and the whole evaluation take, and whether memory grows.

Usage: ``python benchmarks/metrics_throughput.py [--cases 6459] [--side 512] [--jobs 2]
[--out results/evaluation/metrics_throughput.json]``

Cases are phantoms; predictions are their lungs with a smoothly displaced contour, DSC about
0.97, and cost next to nothing: what is timed is reading, measuring and writing. The cases are
the same few images many times over, each read from disk and measured anew.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from _machine import describe_machine
from adalora_qat.corpus.records import Record
from adalora_qat.corpus.sources import read_source
from adalora_qat.evaluate.cases import evaluate_cases
from adalora_qat.evaluate.mask_files import load_truth
from adalora_qat.evaluate.metrics import case_metrics
from adalora_qat.files import write_json
from adalora_qat.imaging.image_file import load_image
from adalora_qat.phantom.phantom import write_phantoms
from adalora_qat.predictor import Prediction

Mask = NDArray[np.bool_]
SPACING_MM = (0.7, 0.7)


class Displaced:
    """Predicts the lungs of a known image, contour displaced; anything else with nothing."""

    name = "displaced-truth"

    def __init__(self, predictions: dict[int, Mask]) -> None:
        self.predictions = predictions

    def predict(
        self, image: NDArray[np.generic], boxes_xyxy_original: NDArray[np.generic]
    ) -> Prediction:
        """Return the prepared mask of a known image, once per box."""
        height, width = image.shape[:2]
        boxes = boxes_xyxy_original
        mask = self.predictions.get(key(image), np.zeros((height, width), np.bool_))
        return Prediction(
            np.repeat(mask[None], len(boxes), axis=0),
            np.ones(len(boxes), np.float32),
            np.zeros((len(boxes), 4, 4), np.float32),
            np.asarray(boxes, np.float32),
        )


def main() -> None:
    """Time the metrics alone, then the evaluation from files to table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=6459)
    parser.add_argument("--distinct", type=int, default=40)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(Path(folder) / "data", given.distinct, seed=0, side=given.side)
        records = list(read_source("phantom", Path(folder) / "data").records)
        pairs = [pair(record, seed) for seed, record in enumerate(records)]
        predictions = {
            key(load_image(r.image)): p for r, (_, p) in zip(records, pairs, strict=True)
        }
        result = {
            "what": "all metrics (px and mm) of two lungs in one mask; then files to table",
            "command": "python " + " ".join(["benchmarks/metrics_throughput.py", *sys.argv[1:]]),
            "load_average_before": round(load, 2),
            "side": given.side,
            "distinct_images": len(records),
            "mean_dsc": round(float(np.mean([case_metrics(*p)["dsc"] for p in pairs])), 4),
            "metrics_alone": [metrics_alone(pairs, jobs) for jobs in (1, given.jobs)],
            "evaluate_cases": whole(records, predictions, given.cases, given.jobs, Path(folder)),
        }
    result["machine"] = describe_machine()
    if given.out:
        write_json(given.out, result)
    print(result)


def pair(record: Record, seed: int) -> tuple[Mask, Mask]:
    """Return the true lungs and a prediction displaced by a few pixels, smoothly."""
    image = load_image(record.image)
    truth, _ = load_truth(record, "lung", image.shape[:2])
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=truth.shape), truth.shape[0] / 40)
    signed = ndimage.distance_transform_edt(truth) - ndimage.distance_transform_edt(~truth)
    return truth, np.asarray(signed + field / field.std() * 3 > 0)


def key(image: NDArray[np.generic]) -> int:
    """Return a checksum by which an image is known again."""
    return zlib.crc32(np.ascontiguousarray(image).tobytes())


def metrics_alone(pairs: list[tuple[Mask, Mask]], jobs: int, count: int = 400) -> dict[str, float]:
    """Time ``case_metrics`` on masks in memory, in ``jobs`` threads."""
    work = [pairs[i % len(pairs)] for i in range(count)]
    wall, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda p: case_metrics(*p, SPACING_MM), work))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "threads": jobs,
        "cases": count,
        "cases_per_second": round(count / wall, 1),
        "cpu_ms_per_case": round(1e3 * cpu / count, 2),
    }


def whole(
    records: list[Record], predictions: dict[int, Mask], count: int, jobs: int, folder: Path
) -> dict[str, object]:
    """Time ``evaluate_cases`` from image files to the written table; watch resident memory."""
    many = [
        replace(records[i % len(records)], id=f"phantom/{i}", spacing_mm=SPACING_MM)
        for i in range(count)
    ]
    memory: list[tuple[int, float]] = []

    def progress(done: int, total: int, what: str) -> None:
        if done % max(1, total // 20) == 0:
            memory.append((done, resident_mib()))

    wall, cpu = time.perf_counter(), time.process_time()
    table = evaluate_cases(
        Displaced(predictions), many, ["lung"], out=folder / "out", jobs=jobs, progress=progress
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    early = next(mib for done, mib in memory if done >= count * 0.2)
    return {
        "threads": jobs,
        "cases": len(table),
        "seconds": round(wall, 1),
        "cases_per_second": round(count / wall, 1),
        "cpu_seconds": round(cpu, 1),
        "share_of_one_core": round(cpu / wall, 2),
        "resident_mib": [[done, round(mib, 1)] for done, mib in memory],
        "growth_mib_after_the_first_fifth": round(memory[-1][1] - early, 1),
    }


def resident_mib() -> float:
    """Return the resident memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


if __name__ == "__main__":
    main()
