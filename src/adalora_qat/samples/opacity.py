"""Opacities painted into healthy lungs: what consolidation and effusion do to an outline.

Where a lung fills with fluid it grows as bright as the chest wall and its edge goes; the truth
still has it. A small training set holds few such cases, and a model that learned only edges
leaves the diseased part out. Two shapes are drawn: soft ellipses anywhere (consolidation,
masses) and a level that covers all below it (effusion).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Unit = NDArray[np.float32]

# Shares of the image side: from a lobe's segment to most of a lung.
_RADII = (0.04, 0.25)
# How much of the way to the brightness of the soft tissue a lung goes.
_STRENGTH = (0.3, 1.0)
# Quantiles of grey that soft tissue and mediastinum have in a chest radiograph.
_TISSUE = (0.60, 0.95)
_EFFUSION_SHARE = 0.3
_MOST = 3


def opacified(
    unit: Unit, mask: NDArray[np.bool_], probability: float, rng: np.random.Generator
) -> Unit:
    """Paint one to three opacities inside a mask, with a probability.

    Parameters
    ----------
    unit : (h, w) float32 in 0–1.
    mask : (h, w) bool, the organ that becomes opaque; outside nothing changes.
    rng : the same stream far ahead draws, so that the other augmentation is what it would be
        without opacities.

    Returns
    -------
    A new array, or ``unit`` itself where nothing is painted.
    """
    if not probability:
        return unit
    own = np.random.Generator(rng.bit_generator.jumped())  # type: ignore[attr-defined]
    if own.random() >= probability or not mask.any():
        return unit
    side = max(unit.shape)
    cover = np.zeros(unit.shape, np.float32)
    for _ in range(own.integers(1, _MOST, endpoint=True)):
        shape = _effusion if own.random() < _EFFUSION_SHARE else _ellipse
        cover = np.maximum(cover, own.uniform(*_STRENGTH) * shape(mask, side, own))
    # The organ's own edge stays soft by about a pixel, as projection leaves it.
    inside = _blurred(mask.astype(np.float32), 0.004 * side)
    some = unit[:: _step(side), :: _step(side)].ravel()
    rank = int(own.uniform(*_TISSUE) * (some.size - 1))
    tissue = np.partition(some, rank)[rank]
    cover *= inside
    # Vessels and ribs show through: what is brighter than tissue already stays.
    painted: Unit = unit + cover * np.maximum(tissue - unit, 0)
    return painted


def _ellipse(mask: NDArray[np.bool_], side: int, rng: np.random.Generator) -> Unit:
    """Cover a soft, ragged ellipse; drawn coarsely and enlarged, since it is smooth."""
    (h, w), step = mask.shape, _step(side)
    row, column = divmod(int(rng.choice(np.flatnonzero(mask))), w)
    across, along = rng.uniform(*_RADII, 2) * side
    angle = rng.uniform(0, np.pi)
    y, x = np.ogrid[: -(-h // step), : -(-w // step)]
    # The middle of a coarse pixel, in pixels from the middle of the ellipse.
    y, x = (y + 0.5) * step - 0.5 - row, (x + 0.5) * step - 0.5 - column
    u = (x * np.cos(angle) + y * np.sin(angle)) / across
    v = (y * np.cos(angle) - x * np.sin(angle)) / along
    # A plateau with a soft rim, ragged by smooth noise: no lesion is an ellipse.
    grain = rng.standard_normal((y.size, x.size), dtype=np.float32)
    ragged = _blurred(grain, 0.03 * side / step)
    ragged *= 0.4 / max(float(ragged.std()), 1e-6)
    distance = np.sqrt(u * u + v * v).astype(np.float32) + ragged
    coarse = np.clip(1.5 - distance, 0, 1)
    cover: NDArray[Any] = cv2.resize(coarse, (x.size * step, y.size * step))
    return cover[:h, :w]


def _step(side: int) -> int:
    # Pixels of the image to a pixel of the coarse grid, which has 64 along its longer side.
    return max(1, side // 64)


def _effusion(mask: NDArray[np.bool_], side: int, rng: np.random.Generator) -> Unit:
    """Cover one side of the chest below a level, with a slanted, soft surface."""
    rows = np.nonzero(mask.any(axis=1))[0]
    level = rng.uniform(0.3, 0.95) * (rows[-1] - rows[0]) + rows[0]
    slope = rng.uniform(-0.4, 0.4)
    y, x = np.ogrid[np.float32(0) : mask.shape[0], np.float32(0) : mask.shape[1]]
    middle = np.nonzero(mask.any(axis=0))[0].mean()
    soft = rng.uniform(0.01, 0.08) * side
    depth = (y - level) / soft + np.float32(0.5) - slope * (x - middle) / soft
    half = (x < middle) if rng.random() < 0.5 else (x >= middle)
    cover: Unit = (np.clip(depth, 0, 1) * half).astype(np.float32)
    return cover


def _blurred(plane: NDArray[Any], sigma: float) -> Unit:
    result: NDArray[Any] = cv2.GaussianBlur(plane, (0, 0), max(sigma, 0.3))
    return result
