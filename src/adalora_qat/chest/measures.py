"""Areas, ratios and diameters from the masks of lungs and heart, each behind its gate.

A number is given only where it can be trusted: what withholds it is listed beside it. Masks of
the JSRT data set, from which models learn these structures, end at the heart, the mediastinum and
the diaphragm: what of a lung lies behind these is in no area, and no area is a volume.

Shapes: H W pixels of the original image. Sides are the patient's: the left lung lies on the right
of the picture. Points are (x, y) in continuous pixels from the outer corner of the top left one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adalora_qat.errors import DataError
from adalora_qat.imaging.components import largest_components

Mask = NDArray[np.bool_]
Line = tuple[tuple[float, float], tuple[float, float]]

LEFT, RIGHT, HEART = "left_lung", "right_lung", "heart"
RATIO = "cardiothoracic_ratio"
# Warnings after which no number is given at all.
GATES = frozenset(
    {
        "rotated", "inverted", "not_a_chest", "unlike_training_data", "implausible_mask",
        "unsteady_mask", "low_confidence",
        "lung_cut_off", "lung_missing", "ragged_mask", "upside_down", "tilted", "patient_rotated",
        "lateral_view", "view_disagrees",
    }
)  # fmt: skip
MISSING = "structure_missing"
NO_SPACING = "no_spacing"
SPACING = "spacing_implausible"
# Beside a ratio: the heart looks larger the nearer it lies to the tube, as it does from the front.
NOT_PA = "not_comparable_ap"
VIEW_UNKNOWN = "not_comparable_view_unknown"


@dataclass(frozen=True)
class Measure:
    """One number of a radiograph.

    Attributes
    ----------
    value : None where it is withheld.
    unit : ``px``, ``cm``, ``cm2``, or empty for a ratio.
    confidence : the least of the expected IoU of the masks that it was taken from; None where the
        model is not calibrated.
    withheld : codes of the reasons why there is no value.
    notes : codes of what to bear in mind about a value that is given.
    lines : name → its two end points, in pixels of the original.
    """

    value: float | None
    unit: str
    confidence: float | None
    withheld: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    lines: Mapping[str, Line] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "value": self.value,
            "unit": self.unit,
            "confidence": self.confidence,
            "withheld": list(self.withheld),
            "notes": list(self.notes),
            "lines": {name: [list(end) for end in line] for name, line in self.lines.items()},
        }


def measure(
    masks: Mapping[str, Mask],
    *,
    spacing_mm: tuple[float, float] | None = None,
    view: str | None = None,
    confidence: Mapping[str, float] | None = None,
    warned: Collection[str] = (),
) -> dict[str, Measure]:
    """Measure a chest.

    Parameters
    ----------
    masks : structure → (H, W), of ``left_lung``, ``right_lung`` and ``heart``; what is not there
        is not measured.
    spacing_mm : (row, column) size of a pixel; lengths and areas in cm need it.
    view : ``PA``, ``AP`` or another word of DICOM's View Position; None where it is not known.
    confidence : structure → expected IoU of its mask.
    warned : codes of the warnings about the image and its masks.

    Returns
    -------
    Name → number. ``left_lung_area_px`` and ``left_lung_area`` (cm²), the same for the right;
    ``right_left_area_ratio``; ``thorax_width`` and ``thorax_height`` (cm) with their lines;
    ``cardiothoracic_ratio`` with the lines ``heart`` and ``thorax``. Empty where no lung is given.
    """
    known = {name: mask for name, mask in masks.items() if name in (LEFT, RIGHT, HEART)}
    if LEFT not in known and RIGHT not in known:
        return {}
    return _Chest(known, spacing_mm, view, confidence or {}, warned).measures()


class _Chest:
    """Masks of one chest and what stands in the way of numbers."""

    def __init__(
        self,
        masks: Mapping[str, Mask],
        spacing_mm: tuple[float, float] | None,
        view: str | None,
        confidence: Mapping[str, float],
        warned: Collection[str],
    ) -> None:
        # Specks beside an organ would stretch its diameter.
        self.masks = {name: largest_components(mask, 1) for name, mask in masks.items()}
        self.whole = masks
        self.spacing_mm, self.view, self.confidence = spacing_mm, view, confidence
        self.gates = tuple(sorted(GATES & set(warned)))
        missing_size = (NO_SPACING,) if spacing_mm is None else ()
        self.size_gates = (SPACING,) if SPACING in warned else missing_size

    def measures(self) -> dict[str, Measure]:
        found: dict[str, Measure] = {}
        lungs = [name for name in (LEFT, RIGHT) if name in self.masks]
        for name in lungs:
            pixels = int(self.whole[name].sum())
            found[f"{name}_area_px"] = self._given(pixels, "px", [name])
            found[f"{name}_area"] = self._given(pixels * self._cm2, "cm2", [name], sized=True)
        if len(lungs) < 2:
            return found
        left, right = int(self.whole[LEFT].sum()), int(self.whole[RIGHT].sum())
        found["right_left_area_ratio"] = self._given(right / max(left, 1), "", lungs)
        return found | self._thorax(lungs)

    def _thorax(self, lungs: list[str]) -> dict[str, Measure]:
        both = self.masks[LEFT] | self.masks[RIGHT]
        across, down = widest_row(both), _extent(both, axis=1)
        spacing = self.spacing_mm or (0.0, 0.0)
        width, height = _length(across), _length(down)
        found = {
            "thorax_width": self._given(
                width * spacing[1] / 10, "cm", lungs, {"thorax": across}, sized=True
            ),
            "thorax_height": self._given(
                height * spacing[0] / 10, "cm", lungs, {"height": down}, sized=True
            ),
        }
        if HEART in self.masks:
            heart = _extent(self.masks[HEART], axis=0)
            lines = {"heart": heart, "thorax": across}
            ratio = _length(heart) / max(width, 1)
            found[RATIO] = self._given(ratio, "", [*lungs, HEART], lines, notes=self._view_notes())
        return found

    def _view_notes(self) -> tuple[str, ...]:
        if self.view == "PA":
            return ()
        return (VIEW_UNKNOWN,) if self.view in (None, "") else (NOT_PA,)

    @property
    def _cm2(self) -> float:
        return 0.0 if self.spacing_mm is None else self.spacing_mm[0] * self.spacing_mm[1] / 100

    def _given(
        self,
        value: float,
        unit: str,
        structures: list[str],
        lines: Mapping[str, Line] | None = None,
        *,
        sized: bool = False,
        notes: tuple[str, ...] = (),
    ) -> Measure:
        """Return a number, or the reasons why there is none."""
        empty = (MISSING,) if any(not self.masks[name].any() for name in structures) else ()
        withheld = (*empty, *self.gates, *(self.size_gates if sized else ()))
        each = [self.confidence.get(name) for name in structures]
        known = [one for one in each if one is not None]
        confidence = round(min(known), 4) if known and len(known) == len(each) else None
        if withheld:
            return Measure(None, unit, confidence, withheld)
        return Measure(round(value, 4), unit, confidence, (), notes, dict(lines or {}))


def cardiothoracic_ratio(heart: Mask, lungs: Mask) -> float:
    """Return the cardiothoracic ratio from masks, or NaN if one of them is empty.

    The greatest transverse diameter of the heart over the greatest internal diameter of the
    thorax (Danzer 1919, Am J Med Sci 157:513). The heart's diameter adds its reach to the
    left and to the right of the midline, which may lie at different heights: the extent of
    its mask over all rows. The thorax is measured along one horizontal line: the widest
    span of a row from the outer edge of one lung to that of the other.

    Parameters
    ----------
    heart : (H, W) bool.
    lungs : (H, W) bool, both lungs. The pixel spacing cancels.

    Raises
    ------
    DataError
        If the masks differ in size.
    """
    if heart.shape != lungs.shape:
        raise DataError(f"heart {heart.shape} and lungs {lungs.shape} must be of one size")
    if not heart.any() or not lungs.any():
        return float("nan")
    return _length(_extent(heart, axis=0)) / _length(widest_row(lungs))


def widest_row(mask: Mask) -> Line:
    """Return the widest horizontal line from the first to the last pixel of a row of a mask.

    Two points where the mask is empty, both (0, 0).
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return (0.0, 0.0), (0.0, 0.0)
    filled = mask[rows]
    first = filled.argmax(axis=1)
    stop = filled.shape[1] - filled[:, ::-1].argmax(axis=1)
    # Of several equally wide, the middle one.
    widest = np.flatnonzero(stop - first == (stop - first).max())
    at = int(widest[len(widest) // 2])
    y = float(rows[at]) + 0.5
    return (float(first[at]), y), (float(stop[at]), y)


def _extent(mask: Mask, axis: int) -> Line:
    """Return a line as long as a mask reaches along x (axis 0) or y, through its middle."""
    filled = np.flatnonzero(mask.any(axis=axis))
    if filled.size == 0:
        return (0.0, 0.0), (0.0, 0.0)
    first, stop = float(filled[0]), float(filled[-1] + 1)
    across = np.flatnonzero(mask.any(axis=1 - axis))
    middle = (float(across[0]) + float(across[-1]) + 1) / 2
    return ((first, middle), (stop, middle)) if axis == 0 else ((middle, first), (middle, stop))


def _length(line: Line) -> float:
    return abs(line[1][0] - line[0][0]) + abs(line[1][1] - line[0][1])
