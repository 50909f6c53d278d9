"""The header of a radiograph, fit to be carried over into objects that are made from it.

Archives and phones hold headers that break the standard: an age of ``29``, a name in bytes of no
declared character set. What is copied must not break it again, so such values are left out and
named; the results carry nothing that the source did not. Sections cited are of DICOM PS3.3.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pydicom
from pydicom import config as pydicom_config
from pydicom import uid
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.valuerep import PersonName, validate_value

from adalora_qat.errors import DataError
from adalora_qat.imaging.dicom import read_dicom_header
from adalora_qat.imaging.image_file import MAX_PIXELS
from adalora_qat.imaging.integrity import refusing, warnings_heard
from adalora_qat.imaging.memory_file import MemoryFile

# Without these no object can say what it was made from.
IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
# Attributes of type 2: objects hold them, empty if need be (C.7.1.1, C.7.2.1).
EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
# Values that the standard enumerates.
ENUMERATED = {
    "PatientSex": ("M", "F", "O"),
    "QualityControlSubject": ("YES", "NO"),
    "PatientIdentityRemoved": ("YES", "NO"),
    "SmokingStatus": ("YES", "NO", "UNKNOWN"),
    "PatientSexNeutered": ("ALTERED", "UNALTERED"),
    "PregnancyStatus": ("1", "2", "3", "4"),
}
# Who could recognise a patient by them must not read them in a log.
TELLING = (
    "PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "StudyID", "OtherPatientIDs",
    "ReferringPhysicianName", "InstitutionName", "PatientAddress", "StudyDescription",
    "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID",
)  # fmt: skip
UTF8, DEFAULT_CHARACTERS = "ISO_IR 192", "ISO_IR 6"
_TEXTS = ("LO", "LT", "PN", "SH", "ST", "UC", "UT")


@dataclass(frozen=True)
class Source:
    """A radiograph's header, cleaned.

    Attributes
    ----------
    header : without pixels, private elements, frame of reference, spacing and values against
        the standard; with all that ``EMPTY`` names.
    left_out : keywords of the values that results do not carry, in order.
    """

    header: Dataset
    left_out: tuple[str, ...]

    @property
    def sop_uid(self) -> str:
        """The SOP Instance UID of the image."""
        return str(self.header.SOPInstanceUID)

    @property
    def alias(self) -> str:
        """What logs call the image: 12 hex digits that tell nothing of the patient."""
        return alias_of(self.sop_uid)


def alias_of(text: str) -> str:
    """Return 12 hex digits of a SHA-256, for logs."""
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:12]


def read_source(file: MemoryFile, *, max_pixels: int = MAX_PIXELS) -> Source:
    """Read and clean a radiograph's header.

    Raises
    ------
    DataError
        If the file is not DICOM, not a single radiograph, or has no UIDs; the message calls it
        by the name that it was given, and holds no text from inside the file.
    """
    try:
        read_dicom_header(file, max_pixels=max_pixels)
        with refusing(file.name, ": damaged DICOM ({}); copy it again or leave it out"):
            return clean(_opened(file))
    except DataError as error:
        raise DataError(discreet(str(error), file)) from None


def clean(dataset: Dataset) -> Source:
    """Return a header that can be copied from.

    Raises
    ------
    DataError
        If one of its UIDs is missing.
    """
    with warnings_heard(), pydicom_config.disable_value_validation():
        identifiers = {word: str(dataset.get(word) or "").strip("\0 ") for word in IDENTIFIERS}
    for keyword, value in identifiers.items():
        if not re.fullmatch(r"[0-9.]{1,64}", value):
            raise DataError(
                f"DICOM without a {keyword}, so that no result could refer to it; give it one"
            )
    header, left_out = Dataset(), []
    with warnings_heard(), pydicom_config.disable_value_validation():
        for element in _elements(dataset):
            if _valid(element):
                header.add(element)
            else:
                left_out.append(element.keyword or str(element.tag))
    # A projection has no plane in a patient, and its spacing is that of the detector or of some
    # plane (10.7.1.3): objects would make geometry of them.
    for keyword in ("FrameOfReferenceUID", "PixelSpacing"):
        if keyword in header:
            del header[keyword]
    for keyword in EMPTY:
        if keyword not in header:
            setattr(header, keyword, None if keyword.endswith(("Date", "Time")) else "")
    _choose_characters(header)
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    return Source(header, tuple(left_out))


def discreet(text: str, file: MemoryFile) -> str:
    """Return text without what the file's header tells of the patient."""
    values: set[str] = set()
    with suppress(Exception):  # a header that cannot be read has told nothing
        dataset = _opened(file)
        with warnings_heard(), pydicom_config.disable_value_validation():
            told = [str(dataset.get(keyword) or "").strip() for keyword in TELLING]
        for value in told:
            values |= {value, *re.split(r"[\^=\\\s]+", value)}
    for value in sorted(values, key=len, reverse=True):
        if len(value) > 2:
            text = text.replace(value, "***")
    return text


def _opened(file: MemoryFile) -> Dataset:
    with warnings_heard(), pydicom_config.disable_value_validation():
        return pydicom.dcmread(file.open(), force=True, stop_before_pixels=True)


def _elements(dataset: Dataset) -> Iterator[DataElement]:
    """Yield the public elements before the pixels; one that cannot be decoded as unknown."""
    for tag in sorted(dataset.keys()):
        if tag.is_private or tag.group >= 0x6000 or tag.element == 0:
            continue
        try:
            element = dataset[tag]
        except Exception:
            element = DataElement(tag, "UN", b"?")
        yield element


def _valid(element: DataElement) -> bool:
    if element.VR == "SQ":
        return bool(element.value) and all(map(_valid_item, element.value))
    if element.VR in ("UN", "OB", "OW", "OF", "OD"):
        return False
    values = element.value if element.VM > 1 else [element.value]
    try:
        for value in values:
            if value not in (None, ""):
                validate_value(element.VR, _checkable(value), pydicom_config.RAISE)
    except Exception:  # the checks convert, and what does not convert raises many things
        return False
    allowed = ENUMERATED.get(element.keyword)
    return allowed is None or not element.value or str(element.value) in allowed


def _checkable(value: Any) -> Any:
    if isinstance(value, PersonName):
        return str(value)
    return getattr(value, "original_string", value)


def _valid_item(item: Dataset) -> bool:
    """Return whether an item of a sequence is complete enough to be copied."""
    elements = list(_elements(item))
    if "CodeMeaning" in item or "CodeValue" in item:
        named = all(item.get(word) for word in ("CodeMeaning", "CodeValue"))
        if not (named and item.get("CodingSchemeDesignator")):
            return False
    return bool(elements) and all(map(_valid, elements))


def _choose_characters(header: Dataset) -> None:
    """Declare a character set that holds the text: the source's own, or UTF-8."""
    texts = [str(one.value) for one in header.iterall() if one.VR in _TEXTS]
    if all(text.isascii() for text in texts):
        return
    declared = header.get("SpecificCharacterSet") or DEFAULT_CHARACTERS
    names = [declared] if isinstance(declared, str) else list(declared)
    if names[0] in ("", DEFAULT_CHARACTERS):
        header.SpecificCharacterSet = UTF8
        return
    encodings = pydicom.charset.convert_encodings(names)
    for text in texts:
        try:
            pydicom.charset.encode_string(text, encodings)
        except (UnicodeError, LookupError):
            header.SpecificCharacterSet = UTF8
            return
