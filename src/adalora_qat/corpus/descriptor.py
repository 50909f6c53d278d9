"""A perceptual descriptor of a radiograph: what survives re-encoding, resizing and retouching.

An image is squeezed into a square thumbnail (an image that was stretched to a square
compares with its original), its local contrast is made uniform, and the low cosine
frequencies of that are kept. From these the descriptor of any window of the image follows
without going back to the pixels, so that an image can be compared with a cropped copy.

N images, F = 24 frequencies kept a direction, K = 16 compared.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray

THUMBNAIL_SIDE = 128
FREQUENCIES = 24
COMPARED = 16
# Band of the descriptor, in thumbnail pixels: noise and JPEG blocks lie below the finer
# Gaussian, exposure and the outline of the body above the coarser.
FINE_PX, COARSE_PX = 1.0, 8.0
SPREAD_PX = 27
# Grey levels of contrast below which a region counts as flat and is not blown up.
FLAT_CONTRAST = 2.0
# Ribs, vessels and markers alike end at this many local standard deviations.
CLIP = 2.0

# Shares cut off at the two ends of a side; a window cuts rows (top, bottom) and columns
# (left, right).
Cut = tuple[float, float]
Window = tuple[Cut, Cut]
UNCUT: Cut = (0.0, 0.0)
WHOLE: Window = (UNCUT, UNCUT)
# Copies lose up to a tenth of a side in all: about the middle, or toward one corner.
_EITHER: tuple[Cut, ...] = ((0.04, 0.0), (0.0, 0.04))
WINDOWS: tuple[Window, ...] = (
    WHOLE,
    *(((cut, cut), (cut, cut)) for cut in (0.025, 0.05)),
    *product(_EITHER, _EITHER),
)


def thumbnail(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Squeeze an image into a square by area, aspect not kept.

    Parameters
    ----------
    grey : (H, W).

    Returns
    -------
    (S, S), S = 128 pixels.
    """
    small = cv2.resize(grey, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.uint8)


def local_contrast(
    small: NDArray[np.uint8], fine_px: float, coarse_px: float, spread_px: int, flat: float
) -> NDArray[np.float32]:
    """Return a band of detail with equal local contrast, in local standard deviations.

    Parameters
    ----------
    small : (S, S) thumbnail.
    fine_px, coarse_px : the band between two Gaussians of these widths; 0 is no Gaussian.
    spread_px : side of the square that the local contrast is taken over.
    flat : contrast (grey levels) below which a region stays flat.
    """
    values = small.astype(np.float32)
    finest = cv2.GaussianBlur(values, (0, 0), fine_px) if fine_px else values
    band = finest - cv2.GaussianBlur(values, (0, 0), coarse_px)
    around = cv2.blur(band * band, (spread_px, spread_px), borderType=cv2.BORDER_REFLECT)
    spread = np.sqrt(around + np.float32(flat * flat))
    return np.asarray(band / spread, dtype=np.float32)


def describe(small: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Describe a thumbnail by the low cosine frequencies of its local contrast.

    Parameters
    ----------
    small : (S, S) from ``thumbnail``.

    Returns
    -------
    (F, F), lowest frequencies first, rows down the image.
    """
    detail = local_contrast(small, FINE_PX, COARSE_PX, SPREAD_PX, FLAT_CONTRAST)
    waves = _cosines(FREQUENCIES, UNCUT)
    return (waves @ np.clip(detail, -CLIP, CLIP) @ waves.T).astype(np.float16)


@cache
def window_map(window: Window) -> NDArray[np.float32]:
    """Return the linear map from a descriptor to that of a window of its image, weighted.

    Returns
    -------
    (K·K − 1, F·F): applied to a flattened descriptor, it gives the K·K low frequencies of the
    window, each divided by its usual size in chest radiographs; the mean, which says
    nothing, is left out.
    """
    down, across = (_cosines(COMPARED, cut) @ _cosines(FREQUENCIES, UNCUT).T for cut in window)
    return np.asarray((np.kron(down, across) / _usual_size().reshape(-1, 1))[1:])


@cache
def _cosines(count: int, cut: Cut) -> NDArray[np.float32]:
    """Return the orthonormal cosines (count, S) of what a cut leaves of the unit interval."""
    start, size = cut[0], 1 - cut[0] - cut[1]
    place = ((np.arange(THUMBNAIL_SIDE) + 0.5) / THUMBNAIL_SIDE - start) / size
    waves = np.cos(np.pi * np.arange(count)[:, None] * place) * ((place >= 0) & (place <= 1))
    waves *= np.sqrt(2 / (THUMBNAIL_SIDE * size))
    waves[0] /= np.sqrt(2)
    return waves.astype(np.float32)


@cache
def _usual_size() -> NDArray[np.float32]:
    # Standard deviation by frequency, measured on JSRT and Shenzhen: level up to about 10
    # cycles, then falling. It only sets the scale where a corpus is too small to tell its own.
    row, column = np.mgrid[:COMPARED, :COMPARED]
    radius = np.hypot(row, column)
    return np.asarray(6.5 / np.sqrt(1 + (radius / 14) ** 4), dtype=np.float32)
