"""How fast each engine is on this machine, with one model and one image, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adalora_qat.errors import UserError
from adalora_qat.progress import Progress
from adalora_qat.runtime.engines import ENGINES
from adalora_qat.runtime.onnx_predictor import OnnxPredictor
from adalora_qat.runtime.packaged import GOLDEN, weights_folder


def time_engines(
    model: Path, rounds: int = 5, threads: int | None = None, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Segment the packaged phantom with each engine that is installed, one after the other.

    Engines take turns, so that what else the machine does is shared by all.

    Parameters
    ----------
    model : a file that ``adalora-qat export`` wrote.
    rounds : turns of each engine, after one that is not counted.
    threads : of each engine, None for one per processor that this process may use.
    progress : is told of each turn.

    Returns
    -------
    One row an engine: ``engine``, ``auto`` (whether ``engine="auto"`` takes it), and ``missing``
    (why it cannot run) or else ``name``, ``load_s``, ``least_s``, ``median_s`` and ``dice``, of
    its mask with ONNX Runtime's.

    Raises
    ------
    CheckpointError
        If the file is no model that this package wrote.
    """
    image, box = _image()
    rows: list[dict[str, Any]] = []
    running = []
    chosen = OnnxPredictor(model, threads, engine="auto").engine
    for engine in ENGINES[1:]:
        started = time.perf_counter()
        try:
            predictor = OnnxPredictor(model, threads, engine=engine)
        except UserError as error:
            if engine == "onnxruntime":
                raise
            rows.append({"engine": engine, "auto": False, "missing": str(error)})
            continue
        load = time.perf_counter() - started
        mask = predictor.predict(image, box).masks[0]
        name = predictor.engine
        row: dict[str, Any] = {"engine": engine, "auto": name == chosen, "name": name}
        row["load_s"] = load
        running.append((predictor, mask, row))
        rows.append(row)
    seconds = _in_turn([each[0] for each in running], image, box, rounds, progress)
    for (_, mask, row), times in zip(running, seconds, strict=True):
        row |= {"least_s": min(times), "median_s": statistics.median(times)}
        row["dice"] = _dice(mask, running[0][1])
    return rows


def _in_turn(
    predictors: Sequence[OnnxPredictor],
    image: NDArray[Any],
    box: NDArray[Any],
    rounds: int,
    progress: Progress | None,
) -> list[list[float]]:
    seconds: list[list[float]] = [[] for _ in predictors]
    for turn in range(1, rounds + 1):
        for predictor, times in zip(predictors, seconds, strict=True):
            started = time.perf_counter()
            predictor.predict(image, box)
            times.append(time.perf_counter() - started)
        if progress is not None:
            progress(turn, rounds, "engines")
    return seconds


def _image() -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the phantom that the package comes with, (H, W), and its box (1, 4)."""
    file = weights_folder() / GOLDEN
    if file.is_file():
        with np.load(file) as golden:
            return golden["image"], golden["box"][None]
    ramp = np.add.outer(np.arange(512), np.arange(512)).astype(np.uint16)
    return ramp, np.array([[100.0, 100.0, 400.0, 400.0]])


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    together = int(a.sum()) + int(b.sum())
    return 1.0 if not together else 2 * int((a & b).sum()) / together
