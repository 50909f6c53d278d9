"""Agreement of two masks: overlap, contour distance, boundary overlap.

Legend: T truth, P prediction, H W pixels of the original image; a mask is (H, W) bool.
Distances are between contour elements and in pixels unless a spacing (row, column) is given.

Where the definitions in use differ
-----------------------------------
Contours. DeepMind's surface-distance puts contour elements on pixel *corners* (every 2×2
neighbourhood that is neither empty nor full) and weighs each with the length of the contour
in it; MONAI does the same with ``use_subvoxels=True``. MONAI's default, medpy and most
challenge code take the *pixels* that an erosion removes, all of weight one. This module
uses corners and lengths throughout, so its NSD equals surface-distance and MONAI's subvoxel
mode, its HD95 equals surface-distance's ``compute_robust_hausdorff``, its ASSD the
length-weighted mean over both contours. MONAI's HD95 and ASSD lie within about one pixel
of these (other contour points, no weights, an interpolated percentile) and are not equal.
SciPy's ``directed_hausdorff`` on the corner points is HD100 and equals ``hausdorff`` at 100.

NSD of a one-slice volume (``nsd_medsam_2px``). surface-distance in 3-D counts the two flat
faces of the slice as surface, so that every pixel of the area counts and the contour hardly
does: it is nearer to a Dice of the areas, lenient by the tolerance, than to a contour
measure. The two NSDs of one pair can be 0.99 and 0.40. Never compare one with the other.

HD95 is the larger of the two directed 95th percentiles (surface-distance, MONAI), not the
percentile of both pooled (medpy).

Empty masks
-----------
Both empty: agreement is complete; every score is 1 and every distance 0. Exactly one empty:
every score is 0 and every distance is the image's diagonal, the largest possible, so that a
model that finds nothing is never rewarded by a dropped case. The libraries say otherwise
(surface-distance and MONAI: NaN or infinity; the MedSAM script: NSD 0 if both are empty).
Tables count these cases in the column ``empty``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from adalora_qat.errors import DataError
from adalora_qat.evaluate.contours import (
    ContourDistances,
    Mask,
    Spacing,
    contour_distances,
    crop,
    neighbour_codes,
)

TOLERANCE = 2.0
"""Of both NSD variants: 2 px as in the MedSAM protocol, and 2 mm where spacing is known."""
MEDSAM_MIN_DICE = 0.2
BOUNDARY_SHARE = 0.02
"""Width of the boundary band over the image diagonal (Cheng et al. 2021, Sec. 5.1)."""


@dataclass(frozen=True)
class Metric:
    """How to show and compare one column of the per-case table."""

    title: str
    unit: str
    higher_is_better: bool


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "dsc": Metric("DSC", "", True),
        "iou": Metric("IoU", "", True),
        "nsd_deepmind2d_2px": Metric("NSD (surface-distance 2-D, 2 px)", "", True),
        "nsd_medsam_2px": Metric("NSD (MedSAM protocol, 2 px)", "", True),
        "nsd_deepmind2d_2mm": Metric("NSD (surface-distance 2-D, 2 mm)", "", True),
        "hd95_px": Metric("HD95 (px)", "px", False),
        "hd95_mm": Metric("HD95 (mm)", "mm", False),
        "assd_px": Metric("ASSD (px)", "px", False),
        "assd_mm": Metric("ASSD (mm)", "mm", False),
        "precision": Metric("Precision", "", True),
        "recall": Metric("Recall", "", True),
        "boundary_iou": Metric("Boundary IoU (2 % of diagonal)", "", True),
    }
)
"""Every metric of ``case_metrics``, in the order of the table.

- ``dsc``: 2|T∩P|/(|T|+|P|) (Dice 1945, "coincidence index"; Sørensen 1948); ``iou``:
  |T∩P|/|T∪P| (Jaccard 1912); ``precision``: |T∩P|/|P|; ``recall``: |T∩P|/|T|.
- ``nsd_deepmind2d``: share of both contours, by length, within the tolerance of the other
  (Nikolov et al. 2021, "Clinically applicable segmentation of head and neck anatomy", J Med
  Internet Res 23(7), surface DSC), as surface-distance defines it in 2-D.
- ``nsd_medsam``: of the MedSAM protocol (LiteMedSAM, ``evaluation/compute_metrics.py``).
- ``hd95``: the larger of the two directed 95th percentiles over the length of each contour
  (Huttenlocher et al. 1993, Eq. 5, with the percentile of surface-distance).
- ``assd``: length-weighted mean distance over both contours together (Heimann et al. 2009,
  Sec. III-B, with contour lengths in place of the count of surface voxels).
- ``boundary_iou``: IoU of the pixels of each mask near its own contour (Cheng et al. 2021, Eq. 1).
"""


def dice(truth: Mask, prediction: Mask) -> float:
    """Return 2|T∩P|/(|T|+|P|) alone, 1 where both are empty.

    Parameters
    ----------
    truth, prediction : (H, W) bool.

    Raises
    ------
    DataError
        If the masks are not (H, W) bool of one size.
    """
    return _overlaps(*_checked(truth, prediction))["dsc"]


def band_px(shape: tuple[int, ...]) -> int:
    """Return the width in pixels of the boundary band of an image of (H, W), at least one."""
    return max(1, round(BOUNDARY_SHARE * math.hypot(shape[0], shape[1])))


def case_metrics(
    truth: Mask, prediction: Mask, spacing_mm: Spacing | None = None
) -> dict[str, float]:
    """Return every metric of one case; the expensive pass over the contours is made once.

    Parameters
    ----------
    truth, prediction : (H, W) bool, at the original size of the image.
    spacing_mm : (row, column) pixel spacing; adds the metrics in millimetres.

    Returns
    -------
    Name → value, names as in ``METRICS`` (those ending in ``mm`` only with a spacing).

    Raises
    ------
    DataError
        If the masks are not (H, W) bool of one size, or the spacing is not positive.
    """
    truth, prediction = _checked(truth, prediction)
    if spacing_mm is not None:
        _check_spacing(spacing_mm)
    cropped = crop(truth, prediction)
    values = _overlaps(*cropped)
    values["nsd_medsam_2px"] = _nsd_medsam(*cropped, TOLERANCE)
    values["boundary_iou"] = _boundary_iou(*cropped, band_px(truth.shape))
    pixels = contour_distances(*cropped)
    values |= _distance_metrics(pixels, truth, prediction, (1.0, 1.0), "px")
    if spacing_mm is not None:
        row, column = spacing_mm
        in_mm = pixels.scaled(row) if row == column else contour_distances(*cropped, spacing_mm)
        values |= _distance_metrics(in_mm, truth, prediction, spacing_mm, "mm")
    return {name: values[name] for name in METRICS if name in values}


def _distance_metrics(
    distances: ContourDistances, truth: Mask, prediction: Mask, spacing: Spacing, unit: str
) -> dict[str, float]:
    names = (f"nsd_deepmind2d_2{unit}", f"hd95_{unit}", f"assd_{unit}")
    score = _empty_value(truth, prediction, worst=0.0, best=1.0)
    if score is None:
        values = (distances.nsd(TOLERANCE), distances.hausdorff(95), distances.mean())
    else:
        far = 0.0 if score else _diagonal(truth.shape, spacing)
        values = (score, far, far)
    return dict(zip(names, values, strict=True))


def _overlaps(truth: Mask, prediction: Mask) -> dict[str, float]:
    both = int(np.count_nonzero(truth & prediction))
    true, predicted = int(np.count_nonzero(truth)), int(np.count_nonzero(prediction))
    empty = _empty_value(truth, prediction, worst=0.0, best=1.0)
    if empty is not None:
        return dict.fromkeys(("dsc", "iou", "precision", "recall"), empty)
    return {
        "dsc": 2 * both / (true + predicted),
        "iou": both / (true + predicted - both),
        "precision": both / predicted,
        "recall": both / true,
    }


def _nsd_medsam(truth: Mask, prediction: Mask, tolerance: float) -> float:
    """Return the NSD of the MedSAM protocol: zero where DSC ≤ 0.2.

    The 2-D mask as a volume of one slice, spacing 1, surface-distance in 3-D. The surfaces of
    both faces of the slice are alike, so one is counted; on it, every corner that touches a
    foreground pixel is a surface element.
    """
    overlap = _overlaps(truth, prediction)["dsc"]
    if overlap <= MEDSAM_MIN_DICE or not truth.any():
        return 1.0 if overlap == 1 else 0.0
    codes = [neighbour_codes(mask) for mask in (truth, prediction)]
    areas = [_ONE_SLICE_AREAS[code] for code in codes]
    surfaces = [(code != 0).astype(np.uint8) for code in codes]
    # "Within the tolerance of the other surface" is that surface grown by a disk.
    reach = math.floor(tolerance)
    steps = np.arange(-reach, reach + 1) ** 2
    disk = (np.add.outer(steps, steps) <= tolerance**2).astype(np.uint8)
    near = [cv2.dilate(s, disk, borderType=cv2.BORDER_CONSTANT, borderValue=0) for s in surfaces]
    within = areas[0][near[1] > 0].sum() + areas[1][near[0] > 0].sum()
    return float(within / (areas[0].sum() + areas[1].sum()))


def _boundary_iou(truth: Mask, prediction: Mask, width: int) -> float:
    """Return the IoU of the bands of ``width`` pixels along the contours.

    Distance is by the 3×3 neighbourhood (chessboard) as in the authors' code; the image's edge
    counts as contour.
    """
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    bands = []
    for mask in (truth, prediction):
        pixels = mask.astype(np.uint8)
        # The crop's outside is background, and so is the image's.
        inner = cv2.erode(pixels, square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
        bands.append(mask & (inner == 0))
    return _overlaps(bands[0], bands[1])["iou"]


def _one_slice_areas() -> NDArray[np.float64]:
    """Return the surface inside 2×2×2 voxels, one layer empty, by the code of the other.

    Marching cubes with unit spacing: one corner cut off is an equilateral triangle of side
    √½, two neighbours a strip 1 × √½, a full layer a unit square; three corners are a right
    triangle with legs 1 and three such equilateral ones.
    """
    triangle = math.sqrt(3) / 8
    by_count = [0, triangle, math.sqrt(0.5), 0.5 + 3 * triangle, 1]
    areas = np.array([by_count[code.bit_count()] for code in range(16)])
    areas[[0b0110, 0b1001]] = 2 * triangle  # two opposite corners do not touch
    return areas


_ONE_SLICE_AREAS = _one_slice_areas()


def _empty_value(truth: Mask, prediction: Mask, *, worst: float, best: float) -> float | None:
    empty = int(not truth.any()) + int(not prediction.any())
    return (None, worst, best)[empty]


def _diagonal(shape: tuple[int, ...], spacing: Spacing) -> float:
    return math.hypot(shape[0] * spacing[0], shape[1] * spacing[1])


def _checked(truth: Any, prediction: Any) -> tuple[Mask, Mask]:
    for name, mask in (("truth", truth), ("prediction", prediction)):
        is_array = isinstance(mask, np.ndarray)
        if not is_array or mask.ndim != 2 or mask.dtype != np.bool_ or not mask.size:
            given = f"{getattr(mask, 'dtype', type(mask).__name__)} {getattr(mask, 'shape', '')}"
            raise DataError(f"{name} must be an array (H, W) of bool, got {given.strip()}")
    if truth.shape != prediction.shape:
        raise DataError(
            f"truth is {truth.shape[0]}x{truth.shape[1]} and prediction "
            f"{prediction.shape[0]}x{prediction.shape[1]} pixels (height x width); "
            "compare both at the original size of the image"
        )
    return truth, prediction


def _check_spacing(spacing: Spacing) -> None:
    if len(spacing) != 2 or not all(math.isfinite(s) and s > 0 for s in spacing):
        raise DataError(f"spacing {spacing} must be two positive numbers (row, column)")
