"""Boxes, points and sizes of pixels as callers give them, checked as far as they can be alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adalora_qat.errors import DataError
from adalora_qat.runtime.networks import INSIDE
from adalora_qat.runtime.result import PromptKind


class Prompt(NamedTuple):
    """What an image is asked with; nothing for the automatic prompt.

    Attributes
    ----------
    boxes : (N, 4), (x0, y0, x1, y1) in pixels of the image.
    points : (T, 2), (x, y).
    labels : (T,), 1 on the object, 0 beside it.
    """

    boxes: NDArray[np.float64] | None = None
    points: NDArray[np.float64] | None = None
    labels: NDArray[np.int64] | None = None

    @property
    def kind(self) -> PromptKind:
        """What results call it."""
        if self.points is not None:
            return "points"
        return "automatic" if self.boxes is None else "box"


def prompt_of(
    box: ArrayLike | None,
    boxes: ArrayLike | None,
    points: ArrayLike | None,
    labels: ArrayLike | None,
) -> Prompt:
    """Return what a caller gave as one prompt.

    Raises
    ------
    DataError
        If parts contradict each other, or one is not of finite numbers.
    """
    if box is not None and boxes is not None:
        raise DataError("give box= or boxes=, not both")
    if points is not None and boxes is not None:
        raise DataError("points show one object; give them alone or with one box=")
    if points is None:
        if labels is not None:
            raise DataError("labels= say what points= are; give points, too")
        return Prompt(boxes_of(boxes if box is None else [box]))
    places = _numbers(points, "points", "(T, 2) finite numbers x,y")
    kinds = np.full(len(places), INSIDE) if labels is None else np.asarray(labels)
    return Prompt(boxes_of(None if box is None else [box]), places, kinds)


def boxes_of(given: Any) -> NDArray[np.float64] | None:
    """Return boxes (N, 4); that they are such, and fit the image, is checked with the image.

    Raises
    ------
    DataError
        If they are not finite numbers.
    """
    if given is None:
        return None
    return np.atleast_2d(_numbers(given, "box", "four finite numbers x0,y0,x1,y1"))


def _numbers(given: ArrayLike, name: str, wanted: str) -> NDArray[np.float64]:
    try:
        array = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if not array.ndim or not np.isfinite(array).all():
        raise DataError(f"{name} {given!r}: give {wanted}")
    return array


def checked_spacing(given: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return the (row, column) size of a pixel in mm, if it is one.

    Raises
    ------
    DataError
        If it is not two positive numbers.
    """
    if given is None:
        return None
    wanted = "(row, column), two positive numbers in mm"
    spacing = _numbers(given, "spacing_mm", wanted)
    if spacing.shape != (2,) or (spacing <= 0).any():
        raise DataError(f"spacing_mm {given!r}: give {wanted}")
    return float(spacing[0]), float(spacing[1])
