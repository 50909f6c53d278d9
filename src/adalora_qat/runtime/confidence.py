"""From a predicted IoU to the IoU that such a mask turned out to have: a monotone table.

A model's estimate of its own overlap is ordered well and scaled badly. The table is an isotonic
regression (Barlow et al., "Statistical Inference under Order Restrictions", 1972) of the true
IoU on the predicted one over validation masks: good ones, and ones spoilt on purpose. NumPy
only: the deployed runtime reads the table from the model's file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adalora_qat.errors import DataError

# As many steps as a table needs to follow a curve, each of enough masks to mean something.
_BINS = 16
_FEWEST = 20


@dataclass(frozen=True)
class Calibration:
    """Predicted IoU → expected IoU, linear between knots, level outside them.

    Attributes
    ----------
    predicted : (K,) rising.
    expected : (K,) not falling, in [0, 1].
    cases : validation masks that it was fitted on.
    """

    predicted: tuple[float, ...]
    expected: tuple[float, ...]
    cases: int

    def __post_init__(self) -> None:
        x, y = np.asarray(self.predicted), np.asarray(self.expected)
        fits = x.ndim == 1 and x.shape == y.shape and len(x) > 0
        if not fits or (np.diff(x) <= 0).any() or (np.diff(y) < 0).any():
            raise DataError("a calibration needs rising knots and values that do not fall")

    def __call__(self, predicted: ArrayLike) -> NDArray[np.float32]:
        """Return the expected IoU of masks with these predicted ones, any shape."""
        values = np.interp(np.asarray(predicted), self.predicted, self.expected)
        return np.asarray(values, dtype=np.float32)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the model's metadata."""
        return {
            "predicted": [round(value, 5) for value in self.predicted],
            "expected": [round(value, 5) for value in self.expected],
            "cases": self.cases,
        }

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Calibration:
        """Read what ``to_json`` gave."""
        return cls(tuple(given["predicted"]), tuple(given["expected"]), int(given["cases"]))


def fit_calibration(predicted: ArrayLike, true: ArrayLike) -> Calibration:
    """Fit the table on (n,) predicted and true IoUs of validation masks.

    Masks are first put in up to 16 groups of equal size by their predicted IoU, so that one
    odd mask makes no step; the groups' means are then made monotone.

    Raises
    ------
    DataError
        If there are fewer than 20 masks, or values are not finite.
    """
    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < _FEWEST:
        raise DataError(f"{x.size} masks are too few to calibrate with; give at least {_FEWEST}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("a predicted or true IoU is not finite")
    order = np.argsort(x, kind="stable")
    groups = np.array_split(order, min(_BINS, len(x) // 10))
    means = np.array([[x[group].mean(), y[group].mean()] for group in groups])
    knots, first = np.unique(means[:, 0], return_index=True)
    weights = np.add.reduceat([float(len(group)) for group in groups], first)
    totals = np.add.reduceat([y[group].sum() for group in groups], first)
    fitted = isotonic(totals / weights, weights)
    return Calibration(tuple(knots.tolist()), tuple(fitted.tolist()), len(x))


def isotonic(values: ArrayLike, weights: ArrayLike) -> NDArray[np.float64]:
    """Return the closest values that do not fall, by pooling adjacent violators."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(np.asarray(values), np.asarray(weights), strict=True):
        mean, mass, length = float(value), float(weight), 1
        while blocks and blocks[-1][0] > mean:
            before, heavy, longer = blocks.pop()
            mean = (before * heavy + mean * mass) / (heavy + mass)
            mass, length = heavy + mass, longer + length
        blocks.append((mean, mass, length))
    return np.concatenate([np.full(length, mean) for mean, _, length in blocks])
