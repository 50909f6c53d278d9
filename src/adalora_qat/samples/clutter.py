"""What else lies on a radiograph: letters and plates, wires and batteries, a collimator's collar.

None of it belongs to an organ, and every hospital has its own. A model that has seen it drawn at
random over its training images is not drawn to it in others.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from adalora_qat.config import AugmentConfig

Unit = NDArray[np.float32]

_LETTERS = ("L", "R", "AP", "PA", "SUPINE", "PORTABLE", "12:30", "SITTING")
_MOST_WIRES = 4
# A collar leaves at least this margin round the masks, as a share of the side.
_MARGIN = 0.02


def cluttered(
    unit: Unit, masks: NDArray[np.bool_], config: AugmentConfig, rng: np.random.Generator
) -> Unit:
    """Draw devices, markers and a collar over an image, each with its own probability.

    Parameters
    ----------
    unit : (h, w) float32 in 0 to 1.
    masks : (N, h, w) bool; a collar stays outside them.
    rng : the same stream twice ahead draws, so that other augmentation is what it would be
        without clutter.

    Returns
    -------
    A new array in 0 to 1, or ``unit`` itself where nothing is drawn.
    """
    if not (config.markers or config.devices or config.collar):
        return unit
    bits: Any = rng.bit_generator
    own = np.random.Generator(bits.jumped(2))
    draws = own.random(3)
    if draws[0] < config.devices:
        unit = _with_devices(unit, own)
    if draws[1] < config.collar:
        unit = _with_collar(unit, masks, own)
    if draws[2] < config.markers:
        unit = _with_markers(unit, own)
    return unit


def _with_devices(unit: Unit, rng: np.random.Generator) -> Unit:
    """Lay bright lines over the image, and sometimes a battery at the end of one."""
    h, w = unit.shape
    layer = np.zeros((h, w), np.float32)
    for _ in range(rng.integers(1, _MOST_WIRES, endpoint=True)):
        thickness = int(rng.integers(1, 3, endpoint=True))
        cv2.polylines(layer, [_curve(h, w, rng)], False, 1.0, thickness, cv2.LINE_AA)
    if rng.random() < 0.3:
        at = (int(rng.uniform(0.1, 0.9) * w), int(rng.uniform(0.1, 0.5) * h))
        axes = (int(rng.uniform(0.03, 0.07) * w), int(rng.uniform(0.03, 0.07) * h))
        cv2.ellipse(layer, at, axes, float(rng.uniform(0, 180)), 0, 360, 1.0, -1, cv2.LINE_AA)
    strength = np.float32(rng.uniform(0.15, 0.7))
    layer *= strength
    drawn: Unit = unit + layer * (1 - unit)
    return drawn


def _curve(h: int, w: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """Return a cubic Bezier curve (32, 2) across the picture, in pixels (x, y)."""
    ends = rng.uniform(-0.1, 1.1, (4, 2)) * (w, h)
    t = np.linspace(0, 1, 32)[:, None]
    points: NDArray[Any] = (
        (1 - t) ** 3 * ends[0] + 3 * t * (1 - t) ** 2 * ends[1]
        + 3 * t**2 * (1 - t) * ends[2] + t**3 * ends[3]
    )  # fmt: skip
    rounded: NDArray[np.int32] = points.astype(np.int32)
    return rounded


def _with_markers(unit: Unit, rng: np.random.Generator) -> Unit:
    h, w = unit.shape
    layer = np.zeros((h, w), np.uint8)
    for _ in range(rng.integers(1, 3, endpoint=True)):
        x, y = (int(share) for share in rng.uniform(0, 0.25, 2) * (w, h))
        corner = (x if rng.random() < 0.5 else w - 1 - x, y if rng.random() < 0.7 else h - y)
        if rng.random() < 0.7:
            scale = float(rng.uniform(0.3, 0.9)) * h / 256
            text = _LETTERS[rng.integers(len(_LETTERS))]
            cv2.putText(layer, text, corner, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 1)
        else:
            far = (corner[0] + int(rng.uniform(0.03, 0.15) * w), corner[1] + int(0.05 * h))
            cv2.rectangle(layer, corner, far, 255, -1)
    brightness = np.float32(rng.uniform(0.85, 1.0) / 255)
    drawn: Unit = np.maximum(unit, layer * brightness)
    return drawn


def _with_collar(unit: Unit, masks: NDArray[np.bool_], rng: np.random.Generator) -> Unit:
    h, w = unit.shape
    seen = np.logical_or.reduce(masks)
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    if not len(rows):
        return unit
    margin = _MARGIN * max(h, w)
    limits = (rows[0] - margin, h - 1 - rows[-1] - margin,
              columns[0] - margin, w - 1 - columns[-1] - margin)  # fmt: skip
    top, bottom, left, right = (int(rng.random() * max(0.0, limit)) for limit in limits)
    shade = np.float32(0.0 if rng.random() < 0.8 else rng.uniform(0.8, 1.0))
    drawn = np.full_like(unit, shade)
    drawn[top : h - bottom, left : w - right] = unit[top : h - bottom, left : w - right]
    return drawn
