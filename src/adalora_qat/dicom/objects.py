"""A radiograph and its result → the DICOM objects that tell of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from pydicom.dataset import Dataset

from adalora_qat.dicom.earlier import earlier_of
from adalora_qat.dicom.findings import Findings
from adalora_qat.dicom.gsps import presentation
from adalora_qat.dicom.place import KINDS, Place
from adalora_qat.dicom.sc import secondary_capture
from adalora_qat.dicom.seg import segmentation
from adalora_qat.dicom.source import Source
from adalora_qat.dicom.sr import report
from adalora_qat.errors import ConfigError
from adalora_qat.files import atomic_write
from adalora_qat.imaging.integrity import warnings_heard
from adalora_qat.runtime.result import Result

DEFAULT_KINDS = ("SEG", "SR", "SC")


def checked_kinds(words: Iterable[str]) -> tuple[str, ...]:
    """Return kinds of objects in the order of making.

    Raises
    ------
    ConfigError
        If there is none, or one of another name than ``SEG``, ``SR``, ``SC`` and ``GSPS``.
    """
    asked = {word.strip().upper() for word in words if word.strip()}
    if not asked or not asked <= set(KINDS):
        raise ConfigError(
            f"objects {','.join(sorted(asked)) or '(none)'}: give some of {','.join(KINDS)}"
        )
    return tuple(kind for kind in KINDS if kind in asked)


def result_objects(
    source: Source,
    result: Result,
    kinds: Collection[str] = DEFAULT_KINDS,
    reports: Iterable[Dataset] = (),
) -> dict[str, Dataset]:
    """Return the objects of a result.

    Parameters
    ----------
    kinds : of ``SEG``, ``SR``, ``SC`` and ``GSPS``.
    reports : earlier reports (SR) of this package; those of the same patient are compared with.

    Returns
    -------
    Kind → object, in the order of ``KINDS``. Where nothing was found there is neither SEG nor
    GSPS, which cannot be empty; the SR says that nothing was found.
    """
    # The libraries' warnings hold names of patients, and threads that read would hear them.
    with warnings_heard():
        return _made(source, result, checked_kinds(kinds), reports)


def _made(
    source: Source, result: Result, kinds: Sequence[str], reports: Iterable[Dataset]
) -> dict[str, Dataset]:
    findings, model = Findings.of(result), result.model
    earlier = earlier_of(source, reports)
    made: dict[str, Dataset] = {}
    for kind in kinds:
        more = [one.sop_uid for one in earlier] if kind == "SR" else []
        place = Place.of(source, model, kind, *more)
        if kind == "SR":
            made[kind] = report(source, findings, model, place, made.get("SEG"), earlier)
        elif kind == "SC":
            made[kind] = secondary_capture(source, findings, model, place, result.image)
        elif findings.segments:
            make = segmentation if kind == "SEG" else presentation
            made[kind] = make(source, findings, model, place)
    return made


def save(made: Dataset, path: Path) -> None:
    """Write an object as a DICOM file, whole or not at all.

    Raises
    ------
    UserError
        If the folder cannot be written.
    """
    with atomic_write(path) as temporary, warnings_heard():
        made.save_as(temporary, enforce_file_format=True)
