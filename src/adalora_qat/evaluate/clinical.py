"""What a reader of the radiograph would measure from the masks: heart size, lung area, agreement.

Legend: H W pixels of the original image; a mask is (H, W) bool; a radiograph is seen upright, so
columns run across the patient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from adalora_qat.errors import DataError

Mask = NDArray[np.bool_]


def area_mm2(mask: Mask, spacing_mm: tuple[float, float] | None) -> float:
    """Return the area of a mask in mm², NaN where the spacing is unknown.

    Parameters
    ----------
    mask : (H, W) bool.
    spacing_mm : of a pixel, (row, column).
    """
    if spacing_mm is None:
        return math.nan
    return float(np.count_nonzero(mask) * spacing_mm[0] * spacing_mm[1])


def component_count(mask: Mask) -> int:
    """Return the number of connected components; pixels that touch at a corner connect.

    Parameters
    ----------
    mask : (H, W) bool.
    """
    labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0]
    return int(labels) - 1  # OpenCV counts the background


@dataclass(frozen=True)
class BlandAltman:
    """Agreement of two measurements of one quantity (Bland & Altman 1986, Lancet 327:307).

    Attributes
    ----------
    mean, difference : (n,) float64, per case: (prediction + truth)/2, prediction − truth.
    n, dropped : cases used, and cases left out because a value was not finite.
    bias, sd : mean and sample deviation of the differences.
    lower, upper : 95 % limits of agreement, bias ∓ 1.96 sd.
    bias_interval, lower_interval, upper_interval : 95 % confidence intervals, with standard
        errors sd/√n and √3·sd/√n as in that paper.

    All but ``n``, ``dropped`` and ``bias`` are NaN for fewer than two cases.
    """

    mean: NDArray[np.float64]
    difference: NDArray[np.float64]
    n: int
    dropped: int
    bias: float
    sd: float
    lower: float
    upper: float
    bias_interval: tuple[float, float]
    lower_interval: tuple[float, float]
    upper_interval: tuple[float, float]


def bland_altman(truth: ArrayLike | Sequence[float], prediction: ArrayLike) -> BlandAltman:
    """Return the agreement of predicted with true values, case by case.

    Parameters
    ----------
    truth, prediction : (n,) numbers; a pair with a value that is not finite is counted in
        ``dropped``.

    Raises
    ------
    DataError
        If the two are not equally long.
    """
    true, predicted = (np.asarray(values, dtype=np.float64) for values in (truth, prediction))
    if true.ndim != 1 or true.shape != predicted.shape:
        raise DataError(f"truth {true.shape} and prediction {predicted.shape} must pair one to one")
    kept = np.isfinite(true) & np.isfinite(predicted)
    true, predicted = true[kept], predicted[kept]
    difference, n = predicted - true, int(kept.sum())
    bias = float(difference.mean()) if n else math.nan
    sd = float(difference.std(ddof=1)) if n > 1 else math.nan
    lower, upper = bias - 1.96 * sd, bias + 1.96 * sd
    half = float(stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n) if n > 1 else math.nan
    wide = math.sqrt(3) * half
    return BlandAltman(
        mean=(true + predicted) / 2,
        difference=difference,
        n=n,
        dropped=int(kept.size - n),
        bias=bias,
        sd=sd,
        lower=lower,
        upper=upper,
        bias_interval=(bias - half, bias + half),
        lower_interval=(lower - wide, lower + wide),
        upper_interval=(upper - wide, upper + wide),
    )
