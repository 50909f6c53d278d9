"""What a radiograph's header states about the view and the patient, in plain words.

Nothing is guessed: what the header leaves out is None. No packages are needed: any mapping from
DICOM keyword to value will do, such as a pydicom dataset. Sections cited are of DICOM PS3.3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, Protocol

View = Literal["PA", "AP", "lateral"]

# View Position (C.8.1.1): defined terms, and what devices write in their place.
_VIEWS: dict[str, View] = {"PA": "PA", "AP": "AP", "LL": "lateral", "RL": "lateral"}
_LATERAL = re.compile(r"\b(?:LAT|LATERAL|LLD|RLD|LEFT LATERAL|RIGHT LATERAL)\b")
_FRONTAL = re.compile(r"\b(PA|AP)\b")
# Years in one of each unit of Patient's Age (PS3.5, value representation AS); a bare number, which
# is against the standard and in circulation, is of years.
_YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0, "": 1.0}
_OLDEST = 130
_MOST_CHARACTERS = 64


class Header(Protocol):
    """A mapping from DICOM keyword to value."""

    def get(self, keyword: str, /) -> Any:
        """Return the value of an element, None where it is missing."""
        ...


@dataclass(frozen=True)
class Stated:
    """What a header says; None for what it does not.

    Attributes
    ----------
    view : the way of the beam: PA from behind, AP from the front, or lateral.
    view_source : the element that says so.
    age_years : of the patient, on the day of the radiograph.
    orientation : which part of the patient the rows run to, and the columns (C.7.6.1.1.1): a
        frontal radiograph as it is hung has ``("L", "F")``.
    laterality : R or L where only one side of the body is shown.
    """

    view: View | None = None
    view_source: str | None = None
    age_years: float | None = None
    orientation: tuple[str, str] | None = None
    laterality: Literal["L", "R"] | None = None


NOTHING_STATED = Stated()


def stated(header: Header) -> Stated:
    """Read what a header states; values that make no sense state nothing."""
    view, source = _view(header)
    return Stated(view, source, _age_years(header), _orientation(header), _laterality(header))


def _view(header: Header) -> tuple[View | None, str | None]:
    position = _text(header, "ViewPosition")
    if position in _VIEWS:
        return _VIEWS[position], "ViewPosition"
    # A position that is no defined term may be words; a description is always.
    for keyword in ("ViewPosition", "SeriesDescription", "AcquisitionDeviceProcessingDescription"):
        words = re.sub(r"[^A-Z]+", " ", _text(header, keyword))
        frontal = set(_FRONTAL.findall(words))
        lateral = bool(_LATERAL.search(words))
        # "PA AND LAT" names a whole study.
        if lateral and not frontal:
            return "lateral", keyword
        if len(frontal) == 1 and not lateral:
            return ("PA" if frontal == {"PA"} else "AP"), keyword
    orientation = _orientation(header)
    if orientation is not None and orientation[0][0] in "AP":
        return "lateral", "PatientOrientation"
    return None, None


def _age_years(header: Header) -> float | None:
    match = re.fullmatch(r"(\d{1,3})([DWMY]?)", _text(header, "PatientAge"))
    if match is None:
        return None
    years = int(match[1]) * _YEARS[match[2]]
    # 000Y is what archives write for an age that nobody entered.
    return round(years, 2) if 0 < years <= _OLDEST else None


def _orientation(header: Header) -> tuple[str, str] | None:
    value = header.get("PatientOrientation")
    parts = value.split("\\") if isinstance(value, str) else list(value or ())
    rows, columns = (str(part).strip().upper() for part in parts) if len(parts) == 2 else ("", "")
    known = all(re.fullmatch(r"[APRLHF]{1,3}", part) for part in (rows, columns))
    return (rows, columns) if known else None


def _laterality(header: Header) -> Literal["L", "R"] | None:
    for keyword in ("ImageLaterality", "Laterality"):
        text = _text(header, keyword)
        if text in ("L", "R"):
            return "L" if text == "L" else "R"
    return None


def _text(header: Header, keyword: str) -> str:
    value = header.get(keyword)
    return "" if value is None else str(value).strip("\0 ").upper()[:_MOST_CHARACTERS]
