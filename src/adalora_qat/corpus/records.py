"""One radiograph as the house knows it, and the manifest that lists many.

A reader (``sources.py``) yields records; ``prepare`` writes those that pass into a
manifest; everything later reads only the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

MASK_KINDS = ("lung", "left_lung", "right_lung", "heart", "infection", "pneumothorax")
MaskKind = Literal["lung", "left_lung", "right_lung", "heart", "infection", "pneumothorax"]

SPLITS = ("train", "val", "test", "external", "unlabelled")
Split = Literal["train", "val", "test", "external", "unlabelled"]

# A target that a set does not give as one mask, and the parts that make it up.
COMPOSED: Mapping[str, tuple[str, ...]] = {"lung": ("left_lung", "right_lung")}


@dataclass(frozen=True)
class Record:
    """One image and what is known about it.

    Attributes
    ----------
    id : ``<source>/<name>``, unique within a manifest.
    source : the data set, as in ``sources.py``.
    image : path of the image file.
    masks : mask kind → path of its file (single-channel or RGB; foreground is above half).
    label : class within the source ("normal", "tuberculosis", …), or None.
    patient : the set's own patient id where it gives one (DICOM ids only as salted hashes).
    spacing_mm : (row, column) pixel spacing of the original in mm, or None where unknown.
    """

    id: str
    source: str
    image: Path
    masks: Mapping[str, Path] = field(default_factory=dict)
    label: str | None = None
    patient: str | None = None
    spacing_mm: tuple[float, float] | None = None

    def mask_parts(self, target: str) -> tuple[Path, ...]:
        """Return the files whose union is ``target``; empty if the set does not give it."""
        if target in self.masks:
            return (self.masks[target],)
        parts = COMPOSED.get(target, ())
        if parts and all(part in self.masks for part in parts):
            return tuple(self.masks[part] for part in parts)
        return ()
