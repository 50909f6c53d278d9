"""The bytes of a DICOM file → result objects, or the reason why there are none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pydicom.dataset import Dataset

from adalora_qat.dicom.objects import DEFAULT_KINDS, checked_kinds, result_objects
from adalora_qat.dicom.source import Source, alias_of, discreet, read_source
from adalora_qat.errors import DataError
from adalora_qat.imaging.memory_file import MemoryFile
from adalora_qat.imaging.stated import stated
from adalora_qat.runtime.model import Model
from adalora_qat.runtime.result import Result

# Warnings that say that the picture shows no frontal chest.
NO_CHEST = ("not_a_chest", "lateral_view")
# Words in Body Part Examined (PS3.16 annex L) that a chest radiograph may carry.
_CHEST = ("CHEST", "THORAX", "LUNG", "RIB", "HEART", "STERNUM", "CLAVICLE")
# View positions from the side at an angle (PS3.3 C.8.1.1), which are neither frontal nor lateral.
_OBLIQUE = ("LLO", "RLO")


@dataclass(frozen=True)
class Answer:
    """What became of one image.

    Attributes
    ----------
    alias : what logs call it; tells nothing of the patient.
    sop_uid : of the image; empty if it has none.
    objects : kind → object; empty if refused.
    refusal : why there are none; else empty.
    warnings : codes and words of what is odd.
    """

    alias: str
    sop_uid: str = ""
    objects: dict[str, Dataset] = field(default_factory=dict)
    refusal: str = ""
    warnings: tuple[str, ...] = ()


class Answering:
    """Answers images with a model; safe to share between threads.

    Parameters
    ----------
    kinds : of objects to make.
    reports : earlier reports of this package, to compare patients' results with.

    Raises
    ------
    ConfigError
        If a kind is unknown.
    """

    def __init__(
        self, model: Model, kinds: Sequence[str] = DEFAULT_KINDS, reports: Iterable[Dataset] = ()
    ) -> None:
        self._model, self._kinds, self._reports = model, checked_kinds(kinds), list(reports)

    @property
    def model_sha256(self) -> str:
        """Which model answers."""
        return self._model.described()["sha256"]

    def __call__(self, data: bytes) -> Answer:
        """Answer a file; bytes of any kind are answered, the unfit with a refusal."""
        file = MemoryFile("image", data)
        try:
            source = read_source(file)
        except DataError as error:
            return Answer(alias_of(repr(data[:4096])), refusal=str(error))
        file = MemoryFile(f"image {source.alias}", data)
        refusal = header_refusal(source)
        if refusal:
            return Answer(source.alias, source.sop_uid, refusal=refusal)
        try:
            result = self._model(file)
        except DataError as error:
            return Answer(source.alias, source.sop_uid, refusal=discreet(str(error), file))
        warnings = _warnings(source, result)
        refusal = next((f"{one.message}" for one in result.warnings if one.code in NO_CHEST), "")
        if refusal:
            return Answer(source.alias, source.sop_uid, {}, f"the image {refusal}", warnings)
        objects = result_objects(source, result, self._kinds, self._reports)
        return Answer(source.alias, source.sop_uid, objects, "", warnings)


def header_refusal(source: Source) -> str:
    """Return why a header rules out a frontal chest radiograph; empty if it does not."""
    part = str(source.header.get("BodyPartExamined") or "").upper()
    if part and not any(word in part for word in _CHEST):
        return "its header names another part of the body than the chest (Body Part Examined)"
    if str(source.header.get("ViewPosition") or "").upper() in _OBLIQUE:
        return "its header names an oblique view (View Position); frontal ones are segmented"
    view = stated(source.header)
    if view.view == "lateral":
        return f"its header names a lateral view ({view.view_source}); frontal ones are segmented"
    return ""


def _warnings(source: Source, result: Result) -> tuple[str, ...]:
    found = [f"{one.code}: {one.message}" for one in result.warnings]
    if source.header.get("BurnedInAnnotation") == "YES":
        found.append("burned_in: the pixels may show who the patient is (Burned In Annotation)")
    if source.left_out:
        names = ", ".join(source.left_out)
        found.append(f"header: values against the standard are not carried over ({names})")
    return tuple(found)
