"""Augmentation fit for radiographs: a small move of the patient, another exposure, noise.

OpenCV does the pixel work (it releases the GIL and runs in float32); the augmentation
libraries were not used, since what is needed is one affine map and one tone curve, and their
random state is global or per worker, while ours must depend on the sample alone.
"""

from __future__ import annotations

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
        an exposure that does not fill the range is what a marker or a film edge leaves of it.
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


def moved_masks(masks: Masks, matrix: NDArray[np.float64]) -> Masks:
    """Move masks (N, h, w) by an affine map (2, 3) of pixel indices; outlines stay in place.

    Interpolated linearly and cut at one half: nearest neighbour would shift an outline by up
    to half a pixel, to the upper left more often than not.
    """
    h, w = masks.shape[1:]
    solid = masks.astype(np.uint8) * np.uint8(255)
    planes = [cv2.warpAffine(mask, matrix, (w, h), flags=cv2.INTER_LINEAR) for mask in solid]
    result: Masks = np.stack(planes) > 127
    return result


def _affine(
    shape: tuple[int, ...], config: AugmentConfig, rng: np.random.Generator
) -> NDArray[np.float64]:
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


def _moved(unit: Unit, matrix: NDArray[np.float64]) -> Unit:
    h, w = unit.shape
    # What comes in from outside is the darkest grey, as behind a collimator.
    border = float(unit.min())
    moved: NDArray[Any] = cv2.warpAffine(
        unit, matrix, (w, h), flags=cv2.INTER_LINEAR, borderValue=(border, border, border, border)
    )
    return moved


def _toned(unit: Unit, config: AugmentConfig, rng: np.random.Generator) -> Unit:
    contrast, gamma, noise, blur = rng.uniform(-1, 1, 4)
    tones = _TONES ** np.float32((1 + config.gamma) ** gamma)
    gain = np.float32((1 + config.contrast) ** contrast)
    middle = np.float32(0.5)
    tones = np.clip((tones - middle) * gain + middle, 0, 1)
    # A table of 4096 tones: a power for each pixel would take longer than all the rest.
    result: NDArray[Any] = tones[(unit * np.float32(len(_TONES) - 1) + middle).astype(np.uint16)]
    if config.blur_px:
        sigma = abs(blur) * config.blur_px
        if sigma > 0.1:
            result = cv2.GaussianBlur(result, (0, 0), sigma)
    if config.noise:
        grain = _NORMAL * np.float32(abs(noise) * config.noise)
        drawn = np.frombuffer(rng.bytes(unit.size), np.uint8).reshape(unit.shape)
        result = np.clip(result + np.take(grain, drawn), 0, 1)
    return result


_TONES = np.linspace(0, 1, 4096, dtype=np.float32)
# Gaussian noise in 256 steps, by a random byte each: four times as fast as exact draws.
_NORMAL = np.array([NormalDist().inv_cdf((step + 0.5) / 256) for step in range(256)], np.float32)
