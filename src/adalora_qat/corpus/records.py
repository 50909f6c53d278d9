"""One image and the structures outlined in it.

A reader (``sources.py``) yields records; ``prepare`` writes those that pass into a
manifest; everything later reads only the manifest.

A mask may be of any structure: a word of lower-case letters, digits and underscores, which
names it in the manifest's columns (``mask_<structure>``), in recipes and in results. A few
structures of the chest are known further: their order, and that two lungs make a lung mask.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adalora_qat.predictor import STRUCTURE_NAME

CHEST = ("lung", "left_lung", "right_lung", "heart", "infection", "pneumothorax")

SPLITS = ("train", "val", "test", "external", "unlabelled")

# A target that a set does not give as one mask, and the parts that make it up.
COMPOSED: Mapping[str, tuple[str, ...]] = {"lung": ("left_lung", "right_lung")}

# What people call the structures of the chest, in letters and digits: "Left Lungs".
_CHEST_NAMES = {
    name.replace("_", "") + ending: name for name in CHEST for ending in ("", "s", "mask", "masks")
}


def structure_named(text: str) -> str | None:
    """Return the structure that a column, category or folder names; None if it cannot be one.

    ``Left Lungs`` → ``left_lung``, ``Spleen mask`` → ``spleen``, ``2`` → None.
    """
    known = _CHEST_NAMES.get(re.sub(r"[^a-z0-9]", "", text.lower()))
    if known or not text.isascii():
        return known
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    name = name.removesuffix("_masks").removesuffix("_mask")
    return name if re.fullmatch(STRUCTURE_NAME, name) else None


def sort_structures(structures: Iterable[str]) -> list[str]:
    """Return structures once each: those of the chest in their order, then others by name."""
    given = set(structures)
    return [name for name in CHEST if name in given] + sorted(given - set(CHEST))


@dataclass(frozen=True)
class Record:
    """One image and what is known about it.

    Attributes
    ----------
    id : ``<source>/<name>``, unique within a manifest.
    source : the data set, by the name the user gave it.
    image : path of the image file.
    masks : structure → path of its file (single-channel or RGB; foreground is above half).
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
