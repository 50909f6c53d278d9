"""Where a finding begins: the one table of its limits, and where each comes from.

``benchmarks/chest_limits.py`` prints the quantiles behind it: of the shape (``chest.shape``) of the
masks drawn by hand on the training and validation images of JSRT (216, adults, upright PA, with
hearts) and Shenzhen (507, lungs alone). No test image and no image of another source took part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Limit(NamedTuple):
    """The range without a finding.

    Attributes
    ----------
    low, high : inclusive; None where there is no such limit.
    source : where they come from.
    """

    low: float | None
    high: float | None
    source: str


LIMITS: Mapping[str, Limit] = {
    "lung_area": Limit(
        0.05, 0.6, "least 0.083 and most 0.46 of the image, widened for wide and close framing"
    ),
    "right_share": Limit(0.25, 0.8, "least 0.31 and most 0.73, scarred lungs among them, widened"),
    "even_share": Limit(0.43, 0.65, "quantiles 0.01 and 0.99 of right_share"),
    "tilt": Limit(-14.0, 12.0, "quantiles 0.003 and 0.997 in degrees; lungs are not quite even"),
    "height": Limit(0.67, None, "quantile 0.005"),
    "side": Limit(0.25, None, "least 0.50; half of it"),
    "heart_side": Limit(-0.015, None, "least 0.006; mirrored pictures have at most −0.006"),
    "heart_height": Limit(0.48, None, "least 0.60; turned upside down at most 0.40"),
    "heart_area": Limit(0.1, 0.9, "least 0.18 and most 0.53, widened for large hearts"),
    "edge": Limit(None, 0.12, "most 0.06 in JSRT, quantile 0.999 in Shenzhen 0.08"),
    "ragged": Limit(None, 0.01, "most 0.002 of a mask drawn by hand"),
    "age": Limit(16.0, None, "the training images are of adults (JSRT from 16 years)"),
}
