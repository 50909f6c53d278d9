"""Earlier results of a patient, as reports of this package hold them, to compare with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydicom.dataset import Dataset

from adalora_qat.dicom import codes
from adalora_qat.dicom.identity import NAME
from adalora_qat.dicom.source import Source

_UNITS = {"mm2": "mm2", "mm": "mm", "{ratio}": "ratio", "1": "", "%": "%", "deg": "deg"}


@dataclass(frozen=True)
class Earlier:
    """The measures of one earlier report.

    Attributes
    ----------
    sop_uid : of the report.
    date : of its study, YYYYMMDD; empty if not known.
    measures : name → value and unit.
    """

    sop_uid: str
    date: str
    measures: dict[str, tuple[float, str]]


def is_report(dataset: Dataset) -> bool:
    """Return whether an object is a report of this package."""
    return (
        str(dataset.get("Modality")) == "SR" and str(dataset.get("ManufacturerModelName")) == NAME
    )


def earlier_of(source: Source, reports: Iterable[Dataset], most: int = 5) -> list[Earlier]:
    """Return the patient's own earlier results, the latest first.

    Parameters
    ----------
    reports : reports of this package, of whatever patient.
    most : how many at most.

    Returns
    -------
    Those of the same patient (id, its issuer and birth date) and an earlier study date; none
    for a source without a patient id or a date.
    """
    header = source.header
    patient, date = _patient(header), str(header.get("StudyDate") or "")
    if not patient[0] or not date:
        return []
    found = [
        Earlier(str(one.SOPInstanceUID), str(one.get("StudyDate") or ""), _measures(one))
        for one in reports
        if is_report(one)
        and _patient(one) == patient
        and "" < str(one.get("StudyDate") or "") < date
    ]
    found.sort(key=lambda one: (one.date, one.sop_uid), reverse=True)
    return [one for one in found if one.measures][:most]


def _patient(dataset: Dataset) -> tuple[str, str, str]:
    keywords = ("PatientID", "IssuerOfPatientID", "PatientBirthDate")
    identifier, issuer, birth = (str(dataset.get(word) or "").strip() for word in keywords)
    return identifier, issuer, birth


def _measures(report: Dataset) -> dict[str, tuple[float, str]]:
    """Read the measures of the groups of a report (TID 1500), but for its own comparisons."""
    found: dict[str, tuple[float, str]] = {}
    for container in report.get("ContentSequence", []):
        if _value(container) != "126010":  # Imaging Measurements
            continue
        for group in container.get("ContentSequence", []):
            structure = _text(group, "112039")  # Tracking Identifier
            for item in group.get("ContentSequence", []):
                if item.get("ValueType") != "NUM" or not item.get("MeasuredValueSequence"):
                    continue
                name = _value(item)
                if name == codes.measure("area").value:
                    name = f"area_{structure.lower().replace(' ', '_')}"
                elif name.startswith(("previous_", "change_", "confidence_", "expected_")):
                    continue
                measured = item.MeasuredValueSequence[0]
                unit = _UNITS.get(str(measured.MeasurementUnitsCodeSequence[0].CodeValue))
                if unit is not None:
                    found[name] = (float(measured.NumericValue), unit)
    return found


def _value(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence")
    if not names:
        return ""
    return str(names[0].get("CodeValue") or names[0].get("LongCodeValue") or "")


def _text(group: Dataset, code: str) -> str:
    for item in group.get("ContentSequence", []):
        if _value(item) == code:
            return str(item.get("TextValue") or "")
    return ""
