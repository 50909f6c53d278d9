"""Coded concepts: of the DICOM standard's vocabularies where they exist, else of a private scheme.

The private scheme is ``99ADALORA``; objects that use it say so (Coding Scheme Identification
Sequence). It holds what no public vocabulary has a fitting code for. In particular, the linear
cardiothoracic ratio of an adult: the codes that DICOM's context groups offer (LOINC 59076-0 and
59074-5, area and circumference ratios; 11864-6, transverse thoracic diameter) are those of fetal
ultrasound (CID 12279 and 12005), and RadLex and SNOMED CT codes could not be confirmed from
public text.
"""

from __future__ import annotations

import unicodedata

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr.coding import CodedConcept
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

SCHEME = "99ADALORA"
# The longest code meaning (VR LO).
_LONGEST = 64

ANATOMY = codes.SCT.AnatomicalStructure
CHEST_RADIOGRAPHY = Code("399208008", "SCT", "Plain chest X-ray")
IMAGE_QUALITY = codes.DCM.ImageQuality
NOT_ATTEMPTED = codes.DCM.MeasurementNotAttempted
PREVIOUS = codes.DCM.PreviousFinding
_LEFT, _RIGHT = codes.SCT.Left, codes.SCT.Right
_BOTH = Code("51440002", "SCT", "Right and left")
# Structure → concept, side. Others are of the private scheme.
_STRUCTURES = {
    "lung": (codes.SCT.Lung, _BOTH),
    "lungs": (codes.SCT.Lung, _BOTH),
    "left_lung": (codes.SCT.Lung, _LEFT),
    "right_lung": (codes.SCT.Lung, _RIGHT),
    "heart": (codes.SCT.Heart, None),
    "left_clavicle": (codes.SCT.Clavicle, _LEFT),
    "right_clavicle": (codes.SCT.Clavicle, _RIGHT),
}
# What a measure is in words, where its name alone does not tell.
_MEASURES = {
    "ctr": "Cardiothoracic ratio, linear, adult",
    "cardiothoracic_ratio": "Cardiothoracic ratio, linear, adult",
    "expected_iou": "Expected overlap (IoU) with a contour drawn by hand",
}
_UNITS = {
    "mm": codes.UCUM.Millimeter,
    "cm": codes.UCUM.Centimeter,
    "mm2": codes.UCUM.SquareMillimeter,
    "cm2": codes.UCUM.SquareCentimeter,
    "px": Code("{pixels}", "UCUM", "pixels"),
    "px2": Code("{pixels}", "UCUM", "pixels"),
    "ratio": codes.UCUM.Ratio,
    "deg": codes.UCUM.Degree,
    "%": codes.UCUM.Percent,
    "": codes.UCUM.NoUnits,
}


def private(word: str, meaning: str) -> CodedConcept:
    """Return a concept of the private scheme.

    Parameters
    ----------
    word : lower-case letters, digits and underscores; its code value.
    meaning : for people; cut to what DICOM holds.
    """
    return CodedConcept(word, SCHEME, plain(meaning)[:_LONGEST])


def scheme() -> list[CodingSchemeIdentificationItem]:
    """Return how an object introduces the private scheme."""
    return [
        CodingSchemeIdentificationItem(
            designator=SCHEME,
            name="Concepts of adalora-qat",
            responsible_organization="The adalora-qat authors",
        )
    ]


def structure(name: str) -> tuple[CodedConcept, CodedConcept | None]:
    """Return the concept of a structure, and its side if it has one."""
    if name not in _STRUCTURES:
        return private(name, label(name)), None
    concept, side = _STRUCTURES[name]
    return CodedConcept.from_code(concept), side and CodedConcept.from_code(side)


def measure(name: str) -> CodedConcept:
    """Return the concept of a measure by its name; areas are public, others private."""
    if name == "area" or name.startswith("area_"):
        return CodedConcept.from_code(codes.SCT.Area)
    return private(name, _MEASURES.get(name, label(name)))


def unit(name: str | None) -> CodedConcept:
    """Return the UCUM concept of a unit as measures write it: ``mm2``, ``cm²``, ``px``, ``1``."""
    plain_name = plain(name or "").strip().lower()
    plain_name = "" if plain_name in ("1", "none") else plain_name
    found = _UNITS.get(plain_name)
    return CodedConcept.from_code(found) if found else private(plain_name, plain_name)


def label(name: str) -> str:
    """Return a name as words: ``left_lung`` → ``Left lung``."""
    words = plain(name).replace("_", " ").strip()
    return (words[:1].upper() + words[1:])[:_LONGEST]


def plain(text: str) -> str:
    """Return text in the characters that every archive has: ``mm²`` → ``mm2``."""
    spelt = text.replace("×", "x").replace("–", "-").replace("−", "-").replace("…", "...")
    return unicodedata.normalize("NFKD", spelt).encode("ascii", "ignore").decode()
