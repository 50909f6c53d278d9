"""Whether a mask of both lungs is like those of the training set: size, balance, steadiness.

NumPy only. All limits are quantiles of the training set, widened; they are in the model's
file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adalora_qat.chest.caution import Caution
from adalora_qat.errors import DataError

IMPLAUSIBLE = "implausible_mask"
UNSTEADY = "unsteady_mask"
LOW = "low_confidence"
SPACING = "spacing_implausible"
# Width of a pair of lungs in cm: 8 to 9 in the newborn, up to 40 in large adults; a radiograph
# magnifies by a tenth or so, and a mask may reach beyond the lungs.
CHEST_CM = (8.0, 50.0)


@dataclass(frozen=True)
class Plausibility:
    """Limits on a mask.

    Attributes
    ----------
    least_area, most_area : share of the image that it covers.
    least_balance : the smaller of its halves, left and right of the middle of its box, as a
        share of the larger: a missed lung leaves one half empty.
    least_agreement : IoU of the first and the second pass of the automatic prompt.
    least_confidence : expected IoU.
    """

    least_area: float
    most_area: float
    least_balance: float
    least_agreement: float
    least_confidence: float

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            if not 0 <= limit <= 1:
                raise DataError(f"{name}={limit} must lie between 0 and 1")

    def look(
        self,
        mask: NDArray[np.bool_],
        confidence: float,
        first: NDArray[np.bool_] | None = None,
    ) -> list[Caution]:
        """Return what is odd about a mask (H, W), and about its first pass if there was one."""
        share = float(mask.mean())
        if share < self.least_area:
            return [Caution(IMPLAUSIBLE, "the mask is very small", share, self.least_area)]
        found = []
        if share > self.most_area:
            found.append(Caution(IMPLAUSIBLE, "the mask is very large", share, self.most_area))
        even = balance(mask)
        if even < self.least_balance:
            words = "one side of the mask is much smaller than the other"
            found.append(Caution(IMPLAUSIBLE, words, even, self.least_balance))
        same = 1.0 if first is None else agreement(first, mask)
        if same < self.least_agreement:
            words = "the mask changes much with the box"
            found.append(Caution(UNSTEADY, words, same, self.least_agreement))
        if confidence < self.least_confidence:
            words = "the model is not sure of the mask"
            found.append(Caution(LOW, words, confidence, self.least_confidence))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the model's metadata."""
        return {key: round(value, 5) for key, value in asdict(self).items()}


def spacing_caution(
    masks: NDArray[np.bool_], column_mm: float, *, whole: bool = True
) -> list[Caution]:
    """Return a caution if the size of a pixel makes a chest that nobody has.

    Parameters
    ----------
    masks : (N, H, W), of lungs; empty ones say nothing.
    column_mm : how far apart the columns are.
    whole : whether together they should be both lungs; else they may be narrower.
    """
    columns = np.flatnonzero(masks.any(axis=(0, 1)))
    width = 0.0 if columns.size == 0 else (columns[-1] + 1 - columns[0]) * column_mm / 10
    narrowest, widest = CHEST_CM
    if width == 0 or (width <= widest and (width >= narrowest or not whole)):
        return []
    words = f"the size of a pixel makes the lungs {width:.3g} cm wide: no areas in mm²"
    return [Caution(SPACING, words, width, narrowest if width < narrowest else widest)]


def balance(mask: NDArray[np.bool_]) -> float:
    """Return the area of the lesser half of a mask as a share of the other; 0 if it is empty."""
    columns = mask.sum(axis=0)
    filled = np.flatnonzero(columns)
    if filled.size == 0:
        return 0.0
    middle = (filled[0] + filled[-1] + 1) // 2
    halves = int(columns[:middle].sum()), int(columns[middle:].sum())
    return min(halves) / max(halves)


def agreement(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Return the IoU of two masks; two empty ones agree."""
    union = int((one | other).sum())
    return 1.0 if union == 0 else int((one & other).sum()) / union
