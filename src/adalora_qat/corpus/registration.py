"""Whether two thumbnails show one exposure (or one chest) or two that look alike.

Chests resemble each other in the large. In the small, rib by rib and vessel by vessel, they
do not: the images are aligned (enhanced correlation coefficient: Evangelidis and Psarakis,
IEEE PAMI 2008) and fine detail is then compared block by block.

S = 128 pixels a thumbnail's side.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from adalora_qat.corpus.descriptor import THUMBNAIL_SIDE, WHOLE, Window, local_contrast

Affine = NDArray[np.float32]
Pair = tuple[NDArray[np.float32], NDArray[np.float32]]

# Median correlation of the blocks from which two images are taken for one. Measured at this
# size on JSRT, Shenzhen, COVID-19 Radiography and COVID-QU-Ex, nearest neighbours only:
# different chests reach at most 0.57; copies cropped, resized, re-encoded and changed in
# contrast at once have 0.7 and more, as have other exposures of one patient in one posture.
SAME_IMAGE = 0.62
# Correlation of the whole, after an alignment, below which no closer look is worth while:
# nine in ten different chests that resemble each other lie below it, copies and other
# exposures of one patient in one posture from 0.5 up.
HOPELESS = 0.45
# Correlation at half size that needs no closer look: different chests reach 0.6. Three in
# four copies have it after the best shift alone, by at most RIM pixels.
CLEAR, RIM = 0.75, 6
COARSE_SIDE = THUMBNAIL_SIDE // 2
MIN_OVERLAP = 0.6
# Copies settle in three or four iterations; what has not settled in twelve is none.
ITERATIONS = 12
# A block must be found within this many pixels of where the alignment puts it: breathing
# moves ribs a little, and an affine map cannot follow that.
BLOCK, STEP, SEARCH = 32, 16, 4
MIN_BLOCKS = 8
# Local contrast (in standard deviations) below which a block is empty: edge of the detector or air.
MIN_DETAIL = 0.25


def _level(
    half: bool, fine_px: float, coarse_px: float, spread_px: int
) -> cached_property[NDArray[np.float32]]:
    """Return a property that is the local contrast of a thumbnail, whole or at half size."""

    def level(layers: Layers) -> NDArray[np.float32]:
        values = layers.half if half else layers.whole
        detail = local_contrast(values, fine_px, coarse_px, spread_px, 1.0)
        # Labels and edges of the detector outshine anatomy; clipped, they count like the rest.
        return np.clip(detail, -2.5, 2.5)

    return cached_property(level)


class Layers:
    """One thumbnail (S, S) at the levels that a comparison needs, each made on first use.

    Attributes
    ----------
    coarse, fine : structures to align by, at half and at full size.
    coarse_detail, detail : fine structures to compare, at half and at full size.
    """

    coarse = _level(True, 0.7, 3, 13)
    coarse_detail = _level(True, 0, 1, 17)
    fine = _level(False, 0.7, 5, 27)
    detail = _level(False, 0.5, 1.5, 35)

    def __init__(self, thumbnail: NDArray[np.uint8]) -> None:
        self.whole = thumbnail
        half = cv2.resize(thumbnail, (COARSE_SIDE, COARSE_SIDE), interpolation=cv2.INTER_AREA)
        self.half = np.asarray(half, dtype=np.uint8)


def similarity(larger: Layers, other: Layers, window: Window = WHOLE) -> float:
    """Return how well the fine detail of two images agrees once they lie on each other.

    Parameters
    ----------
    larger, other : of thumbnails (S, S) uint8.
    window : of ``larger``, resembles the whole of ``other``.

    Returns
    -------
    Correlation of fine detail, at most 1, at the coarsest level that decides; −1 where no
    alignment was found. From ``SAME_IMAGE`` on, the two are one.
    """
    start = _window_to_affine(window, COARSE_SIDE)
    agreement = _shifted(_warp(larger.coarse_detail, start), other.coarse_detail)
    if agreement >= CLEAR:
        return agreement
    images, details = (larger.coarse, other.coarse), (larger.coarse_detail, other.coarse_detail)
    affine, agreement = _best(images, details, start)
    if affine is None or not HOPELESS <= agreement < CLEAR:
        return agreement
    # A shift in half-size pixels is twice as many in full-size ones.
    affine[:, 2] *= THUMBNAIL_SIDE / COARSE_SIDE
    images, details = (larger.fine, other.fine), (larger.detail, other.detail)
    affine, agreement = _best(images, details, affine)
    if affine is None or not HOPELESS <= agreement < SAME_IMAGE:
        return agreement
    return _blocks_correlation(_warp(larger.detail, affine), other.detail, _covered(affine))


def _window_to_affine(window: Window, side: int) -> Affine:
    (top, bottom), (left, right) = window
    return np.array(
        [[1 - left - right, 0, left * side], [0, 1 - top - bottom, top * side]], np.float32
    )


def _best(images: Pair, details: Pair, start: Affine) -> tuple[Affine | None, float]:
    """Align the images and return the map and how well the details agree; −1 without a map."""
    affine = _align(*images, start)
    return affine, -1.0 if affine is None else _correlation(*details, affine)


def _align(moving: NDArray[np.float32], fixed: NDArray[np.float32], start: Affine) -> Affine | None:
    """Return the affine map from ``fixed`` to ``moving`` pixels that fits best, or None."""
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, ITERATIONS, 2e-3)
    try:
        _, affine = cv2.findTransformECC(fixed, moving, start.copy(), cv2.MOTION_AFFINE, stop)
    except cv2.error:  # the iterations left the image: nothing to align
        return None
    return np.asarray(affine, dtype=np.float32)


def _warp(values: NDArray[np.float32], affine: Affine) -> NDArray[np.float32]:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(values, affine, values.shape[::-1], flags=flags))


def _shifted(moving: NDArray[np.float32], fixed: NDArray[np.float32]) -> float:
    """Return the best correlation of the middle of ``fixed`` within ``moving``."""
    middle = np.ascontiguousarray(fixed[RIM:-RIM, RIM:-RIM])
    if middle.std() < MIN_DETAIL or moving.std() < MIN_DETAIL:
        return -1.0  # of two flat images, the correlation is anything
    return float(cv2.matchTemplate(moving, middle, cv2.TM_CCOEFF_NORMED).max())


def _covered(affine: Affine, side: int = THUMBNAIL_SIDE) -> NDArray[np.float32]:
    """Return 1 where ``moving`` reaches, 0 elsewhere."""
    return _warp(np.ones((side, side), np.float32), affine)


def _correlation(moving: NDArray[np.float32], fixed: NDArray[np.float32], affine: Affine) -> float:
    """Return the correlation where both reach; detail has mean zero already."""
    covered = _covered(affine, len(moving))
    if float(covered.sum()) < MIN_OVERLAP * covered.size:
        return -1.0
    one, two = _warp(moving, affine), fixed * covered
    strength = float(np.vdot(one, one)) * float(np.vdot(two, two))
    return float(np.vdot(one, two)) / max(math.sqrt(strength), 1e-6)


def _blocks_correlation(
    aligned: NDArray[np.float32], fixed: NDArray[np.float32], covered: NDArray[np.float32]
) -> float:
    """Return the median over blocks of the best correlation within the search range."""
    best = []
    # Sums over any rectangle from the corners of these tables.
    reach, square = cv2.integral(covered), cv2.integral(fixed * fixed)
    for top in range(SEARCH, THUMBNAIL_SIDE - BLOCK - SEARCH + 1, STEP):
        for left in range(SEARCH, THUMBNAIL_SIDE - BLOCK - SEARCH + 1, STEP):
            if _mean(reach, top - SEARCH, left - SEARCH, BLOCK + 2 * SEARCH) < 0.95:
                continue
            if _mean(square, top, left, BLOCK) < MIN_DETAIL**2:
                continue
            block = fixed[top : top + BLOCK, left : left + BLOCK]
            around = np.s_[
                top - SEARCH : top + BLOCK + SEARCH, left - SEARCH : left + BLOCK + SEARCH
            ]
            best.append(cv2.matchTemplate(aligned[around], block, cv2.TM_CCOEFF_NORMED).max())
    return float(np.median(best)) if len(best) >= MIN_BLOCKS else -1.0


def _mean(sums: NDArray[Any], top: int, left: int, side: int) -> float:
    """Return the mean over a square.

    Parameters
    ----------
    sums : (S + 1, S + 1), from ``cv2.integral``.
    top, left, side : of the square, in pixels.
    """
    total = sums[top + side, left + side] - sums[top, left + side] - sums[top + side, left]
    return float(total + sums[top, left]) / side**2
