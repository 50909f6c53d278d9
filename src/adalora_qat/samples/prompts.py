"""Prompts drawn from a true mask: boxes exact, jittered or round the whole image, and points.

Everything here is in the model frame. A box round both lungs is the paper's; a box per organ
comes from calling with each organ's mask. Boxes are (x0, y0, x1, y1), kept inside the valid
extent (h, w) and at least one pixel wide and high.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adalora_qat.config import PromptConfig
from adalora_qat.errors import DataError
from adalora_qat.imaging.geometry import mask_box_inclusive, whole_box

Box = NDArray[np.float32]


def exact_box(mask: NDArray[Any], valid_hw: tuple[int, int]) -> Box:
    """Return the box of the mask: an oracle's, since it is drawn from the truth.

    Raises
    ------
    DataError
        If the mask has no foreground.
    """
    return _fitted(mask_box_inclusive(mask), valid_hw)


def jittered_box(
    mask: NDArray[Any], valid_hw: tuple[int, int], jitter_px: int, rng: np.random.Generator
) -> Box:
    """Return the box of the mask, each edge moved by its own uniform integer in ±jitter_px."""
    moved = mask_box_inclusive(mask) + rng.integers(-jitter_px, jitter_px, 4, endpoint=True)
    return _fitted(moved, valid_hw)


def whole_image_box(valid_hw: tuple[int, int]) -> Box:
    """Return the box that stands in for "no prompt": the image without its padding."""
    return whole_box(*valid_hw).astype(np.float32)


def training_box(
    mask: NDArray[Any],
    valid_hw: tuple[int, int],
    config: PromptConfig,
    rng: np.random.Generator,
) -> Box:
    """Return a box as the configured shares have it: exact, whole image, or jittered."""
    draw = rng.random()
    if draw < config.oracle:
        return exact_box(mask, valid_hw)
    if draw < config.oracle + config.whole_image:
        return whole_image_box(valid_hw)
    return jittered_box(mask, valid_hw, config.jitter_px, rng)


def points(
    mask: NDArray[Any],
    valid_hw: tuple[int, int],
    count: int,
    rng: np.random.Generator,
    *,
    foreground: bool = True,
) -> NDArray[np.float32]:
    """Return ``count`` points (x, y) at pixel centres, uniform over the mask or outside it.

    Drawn with replacement, so that small masks give as many points as large ones.

    Raises
    ------
    DataError
        If there is no such pixel, or the count is below 1.
    """
    h, w = valid_hw
    rows, columns = np.nonzero((mask[:h, :w] > 0) == foreground)
    if count < 1 or rows.size == 0:
        where = "inside" if foreground else "outside"
        raise DataError(f"cannot draw {count} points {where} a mask with {rows.size} such pixels")
    chosen = rng.integers(0, rows.size, count)
    return np.stack([columns[chosen] + 0.5, rows[chosen] + 0.5], axis=1).astype(np.float32)


def _fitted(box: NDArray[np.float64], valid_hw: tuple[int, int]) -> Box:
    h, w = valid_hw
    x0, y0, x1, y1 = box
    (x0, x1), (y0, y1) = _interval(x0, x1, w), _interval(y0, y1, h)
    return np.array([x0, y0, x1, y1], dtype=np.float32)


def _interval(start: float, stop: float, length: int) -> tuple[float, float]:
    # Jitter can turn a thin box inside out; its middle is still where the object is.
    if stop - start < 1:
        middle = (start + stop) / 2
        start, stop = middle - 0.5, middle + 0.5
    start = min(max(start, 0.0), length - 1.0)
    return start, max(min(stop, float(length)), start + 1)
