"""Whether a lung mask lies on the lungs of its image.

Lungs are darker than what surrounds them, nearly everywhere along their contour and in
nearly every disease. So along each normal of the mask's contour the strongest step from
dark (inside) to bright (outside) should lie at the contour. For a mask that is shifted,
mirrored or of another patient it lies anywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

# All lengths below are in pixels of an image of this longest side.
SIDE = 128
# Half the width over which a step is measured: ribs and vessels are finer.
STEP = 4
# How far along the normal the strongest step is sought.
REACH = 10
# How near the contour it has to be; 2.3 % of the side.
NEAR = 3
# Smoothing of image and contour normals.
IMAGE_SIGMA = 1.0
NORMAL_SIGMA = 1.5
# The image's own border is no contour of a lung.
BORDER = 3
# Fewer contour points than this say nothing.
MIN_POINTS = 20

Points = NDArray[np.float64]


def edge_agreement(grey: NDArray[np.uint8], lung: NDArray[np.bool_]) -> float:
    """Return the share of the lung contour whose dark-to-bright edge lies on it, in [0, 1].

    Parameters
    ----------
    grey : (H, W), bones bright.
    lung : (H, W), both lungs or one.

    Returns
    -------
    1.0 also where the contour is too short to tell.
    """
    image, mask = _small(grey, lung)
    at, outward = _contour(mask)
    if len(at) < MIN_POINTS:
        return 1.0
    reach = np.arange(-REACH - STEP, REACH + STEP + 1)
    along = at[:, None] + reach[None, :, None] * outward[:, None]
    rows, columns = (
        np.clip(np.round(along[..., axis]), 0, image.shape[axis] - 1).astype(int) for axis in (0, 1)
    )
    profile = image[rows, columns]
    steps = profile[:, 2 * STEP :] - profile[:, : -2 * STEP]
    distance = np.abs(steps.argmax(axis=1) - REACH)
    return float((distance <= NEAR).mean())


def _small(
    grey: NDArray[np.uint8], lung: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    height, width = grey.shape
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(grey).resize(size, Image.Resampling.BOX)
    mask = Image.fromarray(lung.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
    smooth = ndimage.gaussian_filter(np.asarray(image, dtype=np.float64), IMAGE_SIGMA)
    return smooth, np.asarray(mask) > 127


def _contour(mask: NDArray[np.bool_]) -> tuple[Points, Points]:
    """Return contour points (K, 2) as (row, column) and their unit outward normals (K, 2)."""
    inside = ndimage.distance_transform_edt(mask)
    outside = ndimage.distance_transform_edt(~mask)
    depth = ndimage.gaussian_filter(inside - outside, NORMAL_SIGMA)
    edge = mask & ~ndimage.binary_erosion(mask)
    at = np.argwhere(edge)
    limit = np.array(mask.shape) - BORDER
    at = at[((at >= BORDER) & (at < limit)).all(axis=1)]
    outward = -np.stack(np.gradient(depth), axis=-1)[at[:, 0], at[:, 1]]
    length = np.linalg.norm(outward, axis=1, keepdims=True)
    return at.astype(np.float64), outward / np.maximum(length, 1e-6)
