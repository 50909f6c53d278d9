"""Latency and memory of models on this machine, one process each, in turn.

A model that has just warmed its caches is not compared with one that has not: the models take
turns over several rounds, each round in a fresh process, and ratios are of medians. What this
module imports counts as the memory of every model: hence neither torch nor pandas here.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adalora_qat.errors import ConfigError, DataError
from adalora_qat.imaging.geometry import load_image, whole_box
from adalora_qat.predictor import Predictor
from adalora_qat.progress import Progress

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class BenchCase:
    """One image to time a model on.

    Attributes
    ----------
    image : path of the image file.
    box : x0, y0, x1, y1 in pixels of the original; None takes the whole image.
    truth : (H, W) bool, what the mask should be; None where it is not known.
    """

    image: Path
    box: tuple[float, float, float, float] | None = None
    truth: Mask | None = None


@dataclass
class Timing:
    """What was seen of one model over all of its turns; times in seconds, memory in MB."""

    seconds: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    masks: list[Mask] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Return median_s, p10_s, p90_s, load_s, peak_mb and n."""
        ordered = sorted(self.seconds)
        return {
            "median_s": statistics.median(ordered),
            "p10_s": ordered[round(0.1 * (len(ordered) - 1))],
            "p90_s": ordered[round(0.9 * (len(ordered) - 1))],
            "load_s": statistics.median(self.loads),
            "peak_mb": self.peak_mb,
            "n": len(ordered),
        }


def time_models(
    models: Mapping[str, Path],
    cases: Sequence[BenchCase],
    rounds: int = 3,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Timing]:
    """Time the segmentation of ``cases`` (already decoded) with each model, in turn.

    Each process also imports the caller's main module: what a script imports at its top counts
    as the memory of every model.

    Parameters
    ----------
    models : name → a stage's ``model.safetensors`` (PyTorch) or an ONNX file.
    rounds : turns that each model takes, each in a process of its own.
    threads : of each model, None for one per core.

    Raises
    ------
    DataError
        If there is no image to time.
    ConfigError
        If ``threads`` is not positive.
    """
    if not cases:
        raise DataError("speed is measured on images: give at least one")
    if threads is not None and threads < 1:
        raise ConfigError(f"threads={threads}: give at least 1, or none for one per core")
    measured = {name: Timing() for name in models}
    turns = [(name, path) for _ in range(rounds) for name, path in models.items()]
    asked = [(case.image, case.box) for case in cases]
    # A fresh interpreter: forked ones would share warmed-up thread pools and memory.
    context = multiprocessing.get_context("spawn")
    for done, (name, path) in enumerate(turns, start=1):
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            load, times, peak, masks = pool.submit(_turn, path, asked, threads).result()
        one = measured[name]
        one.seconds += times
        one.loads.append(load)
        one.peak_mb = max(one.peak_mb, peak)
        one.masks = [np.unpackbits(bits, count=h * w).reshape(h, w) > 0 for bits, (h, w) in masks]
        if progress is not None:
            progress(done, len(turns), "speed")
    return measured


def compare_speed(
    models: Mapping[str, Path],
    images: Sequence[Path],
    rounds: int = 3,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time the segmentation of ``images`` with each model; see ``time_models``.

    Returns
    -------
    ``models`` (name → median_s, p10_s, p90_s, load_s, peak_mb, n) and ``speedup`` of the last
    model over each other.
    """
    measured = time_models(
        models, [BenchCase(image) for image in images], rounds, progress=progress
    )
    rows = {name: one.figures() for name, one in measured.items()}
    last = list(rows)[-1]
    speedup = {
        name: row["median_s"] / rows[last]["median_s"] for name, row in rows.items() if name != last
    }
    return {"models": rows, "speedup": speedup}


def _turn(
    path: Path,
    cases: Sequence[tuple[Path, tuple[float, float, float, float] | None]],
    threads: int | None,
) -> tuple[float, list[float], float, list[tuple[NDArray[np.uint8], tuple[int, int]]]]:
    started = time.perf_counter()
    predictor = _open(path, threads)
    load = time.perf_counter() - started
    pixels = [load_image(image) for image, _ in cases]
    boxes = [
        np.asarray([whole_box(*image.shape[:2]) if box is None else box], np.float64)
        for image, (_, box) in zip(pixels, cases, strict=True)
    ]
    predictor.predict(pixels[0], boxes[0])  # warm up: first calls allocate
    times, masks = [], []
    for image, box in zip(pixels, boxes, strict=True):
        started = time.perf_counter()
        mask = predictor.predict(image, box).masks[0]
        times.append(time.perf_counter() - started)
        masks.append((np.packbits(mask), (mask.shape[0], mask.shape[1])))
    return load, times, peak_mb(), masks


def _open(path: Path, threads: int | None) -> Predictor:
    if path.suffix == ".onnx":
        from adalora_qat.runtime.onnx_predictor import OnnxPredictor

        return OnnxPredictor(path, threads=threads)
    import torch

    from adalora_qat.study.models import open_file

    if threads is not None:
        torch.set_num_threads(threads)
    # Adapters merged, as every other form of the model has them.
    return open_file(path, path.parent.name, merged=True)[0]


def peak_mb() -> float:
    """Return the most memory that this process held."""
    try:
        status = Path("/proc/self/status").read_text("ascii")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    # Not ru_maxrss: on Linux it survives exec, so a child's is never below what its parent
    # held when it was started.
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
