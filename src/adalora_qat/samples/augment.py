"""Augmentation fit for radiographs: a small move of the patient, another exposure, noise.

OpenCV does the pixel work (it releases the GIL and runs in float32); the augmentation
libraries were not used, since what is needed is one affine map and one tone curve, and their
random state is global or per worker, while ours must depend on the sample alone.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from adalora_qat.config import AugmentConfig
from adalora_qat.samples.clutter import cluttered
from adalora_qat.samples.opacity import opacified

Unit = NDArray[np.float32]
Masks = NDArray[np.bool_]
Matrix = NDArray[np.float64]


def augment(
    unit: Unit,
    masks: Masks,
    config: AugmentConfig,
    rng: np.random.Generator,
    opaque: NDArray[np.bool_] | None = None,
) -> tuple[Unit, Masks]:
    """Move image and masks as one, paint opacities, then change the tones of the image.

    Parameters
    ----------
    unit : (h, w) float32 in 0–1, without padding.
    masks : (N, h, w) bool.
    config : ranges; every draw is made whatever they are, so that turning one kind off
        leaves the others as they were.
    opaque : (N,), in which of the masks opacities may be painted; None for all.

    Returns
    -------
    unit, masks : as given, new arrays. Grey values stay in 0–1 and are not stretched again:
        an exposure that does not fill the range is what a marker or a scan edge leaves of it.
        A move that would push a whole mask out of the picture is not made.
    """
    matrix = _affine(unit.shape, config, rng)
    moved = moved_masks(masks, matrix)
    if moved.any(axis=(1, 2)).all():
        unit, masks = _moved(unit, matrix), moved
    lungs = masks if opaque is None else masks[opaque]
    unit = opacified(unit, np.logical_or.reduce(lungs), config.opacity, rng)
    unit = _toned(unit, config, rng)
    return cluttered(unit, masks, config, rng), masks


def moved_masks(masks: Masks, matrix: Matrix) -> Masks:
    """Move masks (N, h, w) by an affine map (2, 3) of pixel indices; outlines stay in place.

    Interpolated linearly and cut at one half: nearest neighbour would shift an outline by up
    to half a pixel, to the upper left more often than not. Only the box round each mask is moved.
    """
    moved = np.zeros_like(masks)
    for mask, canvas in zip(masks, moved, strict=True):
        _move_into(canvas, mask, matrix)
    return moved


def _move_into(canvas: NDArray[np.bool_], mask: NDArray[np.bool_], matrix: Matrix) -> None:
    h, w = mask.shape
    x, y, across, down = cv2.boundingRect(mask.view(np.uint8))
    # One pixel of background round the box, where the picture has it, is what its edge fades to.
    x0, y0 = max(x - 1, 0), max(y - 1, 0)
    part = mask[y0 : y + down + 1, x0 : x + across + 1].astype(np.float32)
    reach = (part.shape[1] - 1) / 2, (part.shape[0] - 1) / 2
    middle = x0 + reach[0], y0 + reach[1]
    (left, right), (top, bottom) = (
        _span(row, middle, reach, size) for row, size in zip(matrix.tolist(), (w, h), strict=True)
    )
    if not across or right <= left or bottom <= top:
        return
    local = matrix.copy()
    local[:, 2] += matrix[:, :2] @ (x0, y0) - (left, top)
    size = right - left, bottom - top
    canvas[top:bottom, left:right] = cv2.warpAffine(part, local, size, flags=cv2.INTER_LINEAR) > 0.5


def _span(
    row: list[float], middle: tuple[float, float], reach: tuple[float, float], size: int
) -> tuple[int, int]:
    """Return the first and the last pixel, plus one, that a moved box covers along one axis."""
    at = row[0] * middle[0] + row[1] * middle[1] + row[2]
    far = abs(row[0]) * reach[0] + abs(row[1]) * reach[1]
    return max(0, math.floor(at - far)), min(size, math.ceil(at + far) + 1)


def _affine(shape: tuple[int, ...], config: AugmentConfig, rng: np.random.Generator) -> Matrix:
    h, w = shape
    angle, shift_x, shift_y, zoom = rng.uniform(-1, 1, 4)
    flipped = rng.random() < config.flip
    # The middle of the pixel grid turns in place.
    middle = ((w - 1) / 2, (h - 1) / 2)
    scale = (1 + config.scale) ** zoom
    matrix: NDArray[Any] = cv2.getRotationMatrix2D(middle, angle * config.rotate_deg, scale)
    if flipped:
        matrix = matrix @ np.array([[-1.0, 0, w - 1], [0, 1, 0], [0, 0, 1]])
    matrix[:, 2] += config.shift * max(h, w) * np.array([shift_x, shift_y])
    return matrix


def _moved(unit: Unit, matrix: Matrix) -> Unit:
    h, w = unit.shape
    # What comes in from outside is the darkest grey, as behind a collimator.
    border = float(unit.min())
    moved: NDArray[Any] = cv2.warpAffine(
        unit, matrix, (w, h), flags=cv2.INTER_LINEAR, borderValue=(border, border, border, border)
    )
    return moved


def _toned(unit: Unit, config: AugmentConfig, rng: np.random.Generator) -> Unit:
    contrast, gamma, noise, blur = rng.uniform(-1, 1, 4)
    tones = _exposed(_TONES, config.exposure, rng) ** np.float32((1 + config.gamma) ** gamma)
    gain = np.float32((1 + config.contrast) ** contrast)
    middle = np.float32(0.5)
    tones = np.clip((tones - middle) * gain + middle, 0, 1)
    # A table of 4096 tones: a power for each pixel would take longer than all the rest.
    steps = (unit * np.float32(len(_TONES) - 1) + middle).astype(np.uint16)
    result: NDArray[Any] = tones.take(steps)
    if config.blur_px:
        sigma = abs(blur) * config.blur_px
        if sigma > 0.1:
            result = cv2.GaussianBlur(result, (0, 0), sigma)
    if config.noise:
        grain = _NORMAL * np.float32(abs(noise) * config.noise)
        raw: NDArray[np.uint64] = rng.bit_generator.random_raw(-(-unit.size // 8))
        drawn = raw.view(np.uint8)[: unit.size].reshape(unit.shape)
        result = np.clip(result + cv2.LUT(drawn, grain), 0, 1)
    return result


def _exposed(tones: Unit, probability: float, rng: np.random.Generator) -> Unit:
    """Over- or underexpose: a gain that burns out or dims, a window that cuts off, or both.

    From a stream of its own, as ``clutter`` does, so that other draws stay what they are.
    """
    own = np.random.Generator(rng.bit_generator.jumped(3)) if probability else rng  # type: ignore[attr-defined]
    if not probability or own.random() >= probability:
        return tones
    kind = own.integers(3)
    gain = np.float32(np.exp(own.uniform(*np.log(_GAIN)))) if kind != 1 else np.float32(1)
    low, high = own.uniform(0, _CUT, 2).astype(np.float32) if kind else np.zeros(2, np.float32)
    exposed: Unit = np.clip((tones * gain - low) / (1 - high - low), 0, 1)
    return exposed


# What detectors and their automatic windows get wrong, at most: the gain, log-uniform, and the
# share of the range that a window cuts off at either end.
_GAIN = (0.6, 1.6)
_CUT = 0.2
_TONES = np.linspace(0, 1, 4096, dtype=np.float32)
# Gaussian noise in 256 steps, by a random byte each: four times as fast as exact draws.
_NORMAL = np.array([NormalDist().inv_cdf((step + 0.5) / 256) for step in range(256)], np.float32)
