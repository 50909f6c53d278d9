"""What result objects say of a radiograph: its segments, its measures, its quality.

The one place that reads ``Result``; each kind of object writes this down in its own way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adalora_qat.runtime.packaged import MODEL
from adalora_qat.runtime.plausibility import SPACING
from adalora_qat.runtime.result import Result


@dataclass(frozen=True)
class Segment:
    """A structure that was found.

    Attributes
    ----------
    number : from 1, in the order of the model's structures; that of its segment in the SEG.
    name : of the structure, ``left_lung``.
    mask : (H, W) bool, not empty.
    expected_iou : with a contour drawn by hand, in [0, 1]; None if the model is not calibrated.
    area_px, area_mm2 : of the mask; mm² where the size of a pixel is known and plausible.
    """

    number: int
    name: str
    mask: NDArray[np.bool_]
    expected_iou: float | None
    area_px: int
    area_mm2: float | None


@dataclass(frozen=True)
class Quantity:
    """A measure of the whole radiograph.

    Attributes
    ----------
    name : a word, ``ctr``.
    value, unit : the value is None if it is withheld.
    confidence : in [0, 1], or None.
    withheld : codes of the reasons.
    notes : codes of what to bear in mind about the value.
    """

    name: str
    value: float | None
    unit: str
    confidence: float | None
    withheld: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Findings:
    """All that is known of a radiograph.

    Attributes
    ----------
    segments : structures that were found.
    missing : names of structures that were looked for and not found.
    quantities : measures, of value or withheld.
    quality : (code, message) of what is odd about the image or its masks.
    """

    segments: tuple[Segment, ...]
    missing: tuple[str, ...]
    quantities: tuple[Quantity, ...]
    quality: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, result: Result) -> Findings:
        """Read a result."""
        names = result.structures or _names(result)
        masks: dict[str, NDArray[np.bool_]] = {}
        scores: dict[str, list[float]] = {}
        for name, mask, score in zip(names, result.masks, result.scores, strict=True):
            masks[name] = masks[name] | mask if name in masks else mask
            scores.setdefault(name, []).append(float(score))
        pixel_mm2 = _pixel_mm2(result)
        segments: list[Segment] = []
        for name, mask in masks.items():
            if area := int(mask.sum()):
                iou = None if result.confidence is None else float(np.mean(scores[name]))
                mm2 = None if pixel_mm2 is None else area * pixel_mm2
                segments.append(Segment(len(segments) + 1, name, mask, iou, area, mm2))
        found = {segment.name for segment in segments}
        # Areas stand with their segments.
        own = {f"{name}_area{unit}" for name in masks for unit in ("", "_px")}
        return cls(
            tuple(segments),
            tuple(name for name in masks if name not in found),
            tuple(
                Quantity(
                    name, one.value, one.unit, one.confidence, tuple(one.withheld), tuple(one.notes)
                )
                for name, one in result.measures.items()
                if name not in own
            ),
            tuple((caution.code, caution.message) for caution in result.warnings),
        )


def _pixel_mm2(result: Result) -> float | None:
    odd = any(caution.code == SPACING for caution in result.warnings)
    if result.spacing_mm is None or odd:
        return None
    return result.spacing_mm[0] * result.spacing_mm[1]


def _names(result: Result) -> tuple[str, ...]:
    """Name the masks of a model that does not: the packaged one is known to find both lungs."""
    if result.model["file"] == MODEL and result.prompt == "automatic":
        return ("lung",) * len(result.masks)
    return tuple(f"object_{number}" for number in range(1, len(result.masks) + 1))
