"""The shape of a chest in numbers that limits can be set on, from masks of lungs and heart.

All numbers are shares or ratios, so that neither the size of a pixel nor of the image matters.
Sides are the patient's: the left lung lies on the right of the picture. Masks are looked at on a
grid of 256 cells along the longer side, so that the time does not grow with the image.

Shapes: H W pixels of the original, h w cells of the grid.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from adalora_qat.chest.measures import HEART, LEFT, RIGHT
from adalora_qat.imaging.components import label

Mask = NDArray[np.bool_]

GRID = 256
# Cells of a lung that lie this near to an edge of the image reach it.
_NEAR_EDGE = 1


def reduced(mask: Mask) -> Mask:
    """Return a mask (H, W) on the grid: the pixel in the middle of each cell."""
    scale = max(1.0, max(mask.shape) / GRID)
    rows, columns = (
        ((np.arange(max(1, round(n / scale))) + 0.5) * n / max(1, round(n / scale))).astype(int)
        for n in mask.shape
    )
    return np.asarray(mask[np.ix_(rows, columns)])


def lung_area(masks: Mapping[str, Mask]) -> float:
    """Return the share of the image that both lungs cover."""
    return float((masks[LEFT] | masks[RIGHT]).mean())


def chest_shape(masks: Mapping[str, Mask]) -> dict[str, float]:
    """Describe the masks of one chest.

    Parameters
    ----------
    masks : structure → (h, w), none of ``left_lung`` and ``right_lung`` empty; ``heart`` may be
        left out or be empty.

    Returns
    -------
    Name → number:

    ``right_share``
        area of the right lung as a share of both;
    ``tilt``
        degrees by which the line between the lungs' centres is turned, clockwise on the picture
        positive;
    ``height``
        of both lungs as a share of their greatest width;
    ``edge_left``, ``edge_right``, ``edge_top``, ``edge_bottom``
        how much of the lungs' extent along an edge of the picture lies on it;
    ``side``
        from right to left of the patient, how far the left lung lies beside the right one, in
        widths of the thorax: negative where they are exchanged;
    ``heart_side``
        the same of the heart's centre beside the middle between both lungs;
    ``heart_height``
        how far the heart's centre lies below the top of the lungs, in heights of the lungs;
    ``heart_area``
        of the heart as a share of both lungs'.
    """
    left, right = masks[LEFT], masks[RIGHT]
    both = left | right
    rows, columns = np.flatnonzero(both.any(axis=1)), np.flatnonzero(both.any(axis=0))
    top, height = int(rows[0]), int(rows[-1] + 1 - rows[0])
    width = int(_spans(both).max())
    (lx, ly), (rx, ry) = _centre(left), _centre(right)
    found = {
        "right_share": int(right.sum()) / int(left.sum() + right.sum()),
        "tilt": float(np.degrees(np.arctan2(ly - ry, abs(lx - rx) + 1e-6))),
        "height": height / width,
        "side": (lx - rx) / width,
        **_edges(both, len(rows), len(columns)),
    }
    heart = masks.get(HEART)
    if heart is not None and heart.any():
        hx, hy = _centre(heart)
        found |= {
            "heart_side": (hx - (lx + rx) / 2) / width,
            "heart_height": (hy - top) / height,
            "heart_area": int(heart.sum()) / int(both.sum()),
        }
    return found


def raggedness(mask: Mask) -> float:
    """Return how much of a mask (h, w) is loose: specks and holes, as a share of its area."""
    area = int(mask.sum())
    if not area:
        return 0.0
    _, specks = label(mask)
    _, gaps = label(np.pad(~mask, 1, constant_values=True))
    loose = int(specks.sum() - specks.max()) + int(gaps.sum() - gaps.max())
    return loose / area


def _edges(both: Mask, rows: int, columns: int) -> dict[str, float]:
    """Return how much of the lungs' extent lies on each edge of the picture."""
    near = slice(None, _NEAR_EDGE), slice(-_NEAR_EDGE, None)
    return {
        "edge_left": int(both[:, near[0]].any(axis=1).sum()) / rows,
        "edge_right": int(both[:, near[1]].any(axis=1).sum()) / rows,
        "edge_top": int(both[near[0]].any(axis=0).sum()) / columns,
        "edge_bottom": int(both[near[1]].any(axis=0).sum()) / columns,
    }


def _spans(mask: Mask) -> NDArray[np.int64]:
    """Return the span of each row (h,) from the first to the last cell of a mask, or 0."""
    first, stop = mask.argmax(axis=1), mask.shape[1] - mask[:, ::-1].argmax(axis=1)
    return np.asarray(np.where(mask.any(axis=1), stop - first, 0))


def _centre(mask: Mask) -> tuple[float, float]:
    """Return the centre (x, y) of a mask that is not empty."""
    rows, columns = np.nonzero(mask)
    return float(columns.mean()) + 0.5, float(rows.mean()) + 0.5
