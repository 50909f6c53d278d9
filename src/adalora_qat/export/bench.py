"""Latency, memory and load time of models on this machine, one process each, in turn.

A model that has just warmed its caches is not compared with one that has not: the models take
turns over several rounds, each round in a fresh process, and ratios are of medians.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from adalora_qat.data.geometry import load_image
from adalora_qat.errors import DataError
from adalora_qat.predictor import Predictor

Progress = Callable[[int, int, str], None]


def compare_speed(
    models: Mapping[str, Path],
    images: Sequence[Path],
    rounds: int = 3,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time the segmentation of ``images`` (already decoded) with each model.

    Parameters
    ----------
    models : name → a stage's ``model.safetensors`` (PyTorch, FP32) or an ONNX file.
    rounds : turns that each model takes.

    Returns
    -------
    ``models`` (name → median_s, p90_s, load_s, peak_mb, n) and ``speedup`` of the last model
    over each other.

    Raises
    ------
    DataError
        If there is no image to time.
    """
    if not images:
        raise DataError("speed is measured on images: give at least one")
    seconds: dict[str, list[float]] = {name: [] for name in models}
    loads: dict[str, list[float]] = {name: [] for name in models}
    peaks: dict[str, float] = dict.fromkeys(models, 0.0)
    turns = [(name, path) for _ in range(rounds) for name, path in models.items()]
    # A fresh interpreter: forked ones would share warmed-up thread pools and memory.
    context = multiprocessing.get_context("spawn")
    for done, (name, path) in enumerate(turns, start=1):
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            load, times, peak = pool.submit(_turn, path, tuple(images)).result()
        seconds[name] += times
        loads[name].append(load)
        peaks[name] = max(peaks[name], peak)
        if progress is not None:
            progress(done, len(turns), "speed")
    rows = {
        name: {
            "median_s": statistics.median(times),
            "p90_s": sorted(times)[int(0.9 * (len(times) - 1))],
            "load_s": statistics.median(loads[name]),
            "peak_mb": peaks[name],
            "n": len(times),
        }
        for name, times in seconds.items()
    }
    last = list(rows)[-1]
    speedup = {
        name: row["median_s"] / rows[last]["median_s"] for name, row in rows.items() if name != last
    }
    return {"models": rows, "speedup": speedup}


def _turn(path: Path, images: Sequence[Path]) -> tuple[float, list[float], float]:
    started = time.perf_counter()
    predictor = _open(path)
    load = time.perf_counter() - started
    pixels = [load_image(image) for image in images]
    predictor.predict(pixels[0], None)  # warm up: first calls allocate
    times = []
    for image in pixels:
        started = time.perf_counter()
        predictor.predict(image, None)
        times.append(time.perf_counter() - started)
    return load, times, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _open(path: Path) -> Predictor:
    if path.suffix == ".onnx":
        from adalora_qat.export.runtime import OnnxPredictor

        return OnnxPredictor(path)
    from adalora_qat.checkpoint import load_model
    from adalora_qat.model.predict import TorchPredictor

    return TorchPredictor(load_model(path)[0], path.parent.name)
