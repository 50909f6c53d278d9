"""From a predicted IoU to the IoU that such masks had on validation images: a monotone table.

A model's estimate of its own overlap is ordered well and scaled badly. The table is an isotonic
regression of the true IoU on the predicted one over validation masks, of images as they are and
of degraded ones; ``release.assure`` fits it. NumPy only: the deployed runtime reads the table
from the model's file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adalora_qat.errors import DataError


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
        if not np.isfinite(x).all() or not (y[0] >= 0 and y[-1] <= 1):
            raise DataError("a calibration gives expected IoUs between 0 and 1")

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
