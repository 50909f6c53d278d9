"""Radiograph DICOM → pixels with bright bones, spacing and a salted patient hash.

What is no radiograph (CT, several frames, colour, a saved web page) is refused with the
reason. Sections cited are of DICOM PS3.3.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import config as pydicom_config
from pydicom import uid
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset as read_elements

from adalora_qat.errors import DataError
from adalora_qat.imaging.dicom_pixels import display, stored_values
from adalora_qat.imaging.image_file import MAX_PIXELS, check_pixel_count, check_readable
from adalora_qat.imaging.integrity import first_line, refusing, warnings_heard
from adalora_qat.imaging.memory_file import File, source_of
from adalora_qat.imaging.stated import Stated, stated

DEFAULT_SALT = "adalora-qat"

# CR and DX are radiographs, RG is scanned film, DR is what some archives write for DX.
RADIOGRAPHS = ("CR", "DX", "RG", "DR")
# These say nothing; then the storage class must.
VAGUE = ("OT", "")
RADIOGRAPH_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.1": "computed radiography",
    "1.2.840.10008.5.1.4.1.1.1.1": "digital X-ray for presentation",
    "1.2.840.10008.5.1.4.1.1.1.1.1": "digital X-ray for processing",
    "1.2.840.10008.5.1.4.1.1.7": "secondary capture",
}
OTHER_MODALITIES = {
    "CT": "computed tomography", "MR": "magnetic resonance", "US": "ultrasound",
    "NM": "nuclear medicine", "PT": "positron emission tomography", "XA": "angiography",
    "RF": "fluoroscopy", "MG": "mammography", "SEG": "a segmentation", "SR": "a report",
    "PR": "a presentation state", "DOC": "a document", "ES": "endoscopy",
}  # fmt: skip
# What lies about under the name of a DICOM file; the first bytes tell.
OTHER_FILES = {
    b"<": "a web page or XML: the download failed, fetch it again",
    b"{": "JSON text, not DICOM",
    b"PK": "a zip archive: unpack it",
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"\x89PNG": "a PNG image: name it .png",
    b"\xff\xd8\xff": "a JPEG image: name it .jpg",
    b"%PDF": "a PDF document",
}
UNDEFINED = 0xFFFFFFFF
# pydicom's warning of pixel data that are longer than the image.
PADDED = "The pixel data is"
# What a file may hold beside 16 bits for each pixel.
HEADER_BYTES = 50_000_000
# Detectors have 0.1–0.2 mm, thumbnails a few mm; beyond that the number is a mistake
# (files with a spacing of 0 are in circulation).
SPACING_RANGE_MM = (0.01, 10.0)
# What archives write in place of an id; taken for one, it would make one patient of many.
NO_IDS = {"", "anonymous", "anonymized", "anonymised", "anon", "unknown", "none", "na", "0"}


@dataclass(frozen=True)
class DicomHeader:
    """What a radiograph's header says.

    Attributes
    ----------
    height, width : pixels.
    spacing_mm : (row, column); None where the file gives none or an impossible one.
    patient : salted hash of the patient id, 16 hex digits; None where the file gives none.
    modality : as written.
    transfer_syntax : name of the encoding.
    stated : what it says of view and patient.
    """

    height: int
    width: int
    spacing_mm: tuple[float, float] | None
    patient: str | None
    modality: str
    transfer_syntax: str
    stated: Stated


@dataclass(frozen=True)
class DicomImage(DicomHeader):
    """A radiograph.

    Attributes
    ----------
    pixels : (H, W) uint16, bones bright; 0 is black and 65535 white on a viewer.
    shown_by : what mapped stored values to grey: "VOI LUT", "window" or "full range".
    inverted : whether the stored values were bright for air.
    """

    pixels: NDArray[np.uint16]
    shown_by: str
    inverted: bool


def read_dicom_header(
    path: File, salt: str = DEFAULT_SALT, *, max_pixels: int = MAX_PIXELS
) -> DicomHeader:
    """Read and check the header of a radiograph, without its pixels.

    Parameters
    ----------
    salt, max_pixels : as for ``read_dicom``.

    Raises
    ------
    DataError
        If the file is not DICOM or not a radiograph, with the reason.
    """
    with _refusing(path, lenient=False):
        dataset = _open(path, max_pixels, lenient=False, header_only=True)
        return _header(dataset, salt, max_pixels)


def read_dicom(
    path: File, salt: str = DEFAULT_SALT, *, max_pixels: int = MAX_PIXELS, lenient: bool = False
) -> DicomImage:
    """Read a radiograph the way a viewer shows it, bones bright.

    Parameters
    ----------
    salt : mixed into the patient hash. Hashes of one salt can be compared; only who knows
        the salt can test a guessed id, so a public release should use a secret one.
    max_pixels : larger images are refused by what their header says, before decoding.
    lenient : accept a file that breaks the standard or is damaged, where something can be
        decoded from it.

    Raises
    ------
    DataError
        If the file is not DICOM, not a radiograph, damaged, or its encoding has no decoder.
    """
    with _refusing(path, lenient):
        return _image(
            _open(path, max_pixels, lenient, header_only=False), salt, max_pixels, lenient
        )


def read_dataset(
    dataset: Dataset, *, max_pixels: int = MAX_PIXELS, lenient: bool = False
) -> DicomImage:
    """Read a radiograph from a dataset in memory; it is not changed.

    Parameters
    ----------
    max_pixels, lenient : as for ``read_dicom``.

    Raises
    ------
    DataError
        As ``read_dicom``.
    """
    with _refusing("the dataset", lenient):
        if "Rows" not in dataset or "Columns" not in dataset:
            raise DataError("DICOM without an image (no rows and columns in it)")
        own = copy.copy(dataset)
        _complete_transfer_syntax(own)
        return _image(own, DEFAULT_SALT, max_pixels, lenient)


def patient_hash(patient_id: str, salt: str = DEFAULT_SALT) -> str | None:
    """Return 16 hex digits of HMAC-SHA-256 of an id, or None for what only stands in for one."""
    plain = patient_id.strip("\0 ")
    if plain.lower() in NO_IDS:
        return None
    return hmac.new(salt.encode(), plain.encode(), hashlib.sha256).hexdigest()[:16]


@contextmanager
def _refusing(path: File | str, lenient: bool) -> Iterator[None]:
    """Name the file in refusals, and refuse what pydicom raises or warns of."""
    damaged = ": damaged or truncated DICOM ({}); copy it again or leave it out"
    with refusing(path, damaged):
        with warnings_heard() as said, pydicom_config.disable_value_validation():
            yield
        # What padding is allowed, ``stored_values`` says.
        odd = [message for message in said if not message.startswith(PADDED)]
        if odd and not lenient:
            raise DataError(f"damaged or against the standard ({first_line(odd[0])})")


def _open(path: File, max_pixels: int, lenient: bool, header_only: bool) -> Dataset:
    size, most = check_readable(path), 2 * max_pixels + HEADER_BYTES
    if not 0 < size <= most:
        raise DataError(f"{size} bytes long, which no radiograph is; copy it again")
    with path.open("rb") as handle:
        head = handle.read(1024)
    _check_signature(head)
    if uid.DeflatedExplicitVRLittleEndian.encode() in head:
        dataset, size = _inflated(path, most)
    else:
        dataset = pydicom.dcmread(source_of(path), force=True, stop_before_pixels=header_only)
    if "Rows" not in dataset or "Columns" not in dataset:
        kind = "DICOM without an image" if head[128:132] == b"DICM" else "not a DICOM file"
        raise DataError(f"{kind} (no rows and columns in it); leave it out")
    _complete_transfer_syntax(dataset)
    if not header_only and not lenient:
        _check_elements(dataset, size)
    return dataset


def _check_elements(dataset: Dataset, size: int) -> None:
    """Refuse elements out of order, and bytes behind the last that are too few for another."""
    tags = list(dataset.keys())
    if tags != sorted(tags):
        raise DataError("elements out of order, which DICOM forbids; damaged")
    last: Any = dataset.get_item(tags[-1])
    # Elements that were not decoded yet know their place in the file.
    if not isinstance(last, RawDataElement) or last.value is None:
        return
    delimiter = 8 if last.length == UNDEFINED else 0
    rest = size - (last.value_tell + len(last.value) + delimiter)
    if 0 < rest < 8:
        raise DataError(f"{rest} bytes after the last element; damaged, or cut and joined")


def _inflated(path: File, most: int) -> tuple[Dataset, int]:
    """Inflate up to a limit, as zlib may make a thousand times as much; also return the size."""
    with path.open("rb") as handle:
        # Behind the preamble and the mark, the element that says how long the others are.
        handle.seek(132)
        if handle.read(8) != b"\x02\0\0\0UL\x04\0":
            raise DataError("a deflated data set whose header has no length; damaged")
        length = int.from_bytes(handle.read(4), "little")
        handle.seek(144 + length)
        inflating = zlib.decompressobj(-zlib.MAX_WBITS)
        plain = inflating.decompress(handle.read(), most)
    if inflating.unconsumed_tail:
        raise DataError(f"more than {most} bytes when inflated, which no radiograph has")
    if not inflating.eof:
        raise DataError("a deflated data set without its end; truncated")
    dataset = read_elements(BytesIO(plain), is_implicit_VR=False, is_little_endian=True)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    return dataset, len(plain)


def _check_signature(head: bytes) -> None:
    if head[128:132] == b"DICM":
        return
    for signature, what in OTHER_FILES.items():
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(signature):
            raise DataError(f"not DICOM but {what}")


def _complete_transfer_syntax(dataset: Dataset) -> None:
    """Write down the encoding that a dataset without a meta header was read with."""
    dataset.file_meta = copy.copy(getattr(dataset, "file_meta", None)) or FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        plain = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        # A dataset that was made in memory says neither, and is little-endian as arrays are.
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian if little is False else plain


def _image(dataset: Dataset, salt: str, max_pixels: int, lenient: bool) -> DicomImage:
    header = _header(dataset, salt, max_pixels)
    stored = stored_values(dataset, lenient=lenient)
    pixels, shown_by, inverted = display(dataset, stored)
    return DicomImage(**vars(header), pixels=pixels, shown_by=shown_by, inverted=inverted)


def _header(dataset: Dataset, salt: str, max_pixels: int) -> DicomHeader:
    modality = _text(dataset, "Modality").upper()
    _check_radiograph(dataset, modality)
    height, width = int(dataset.Rows), int(dataset.Columns)
    check_pixel_count(height, width, max_pixels)
    return DicomHeader(
        height=height,
        width=width,
        spacing_mm=_spacing_mm(dataset),
        patient=patient_hash(_text(dataset, "PatientID"), salt),
        modality=modality,
        transfer_syntax=dataset.file_meta.TransferSyntaxUID.name,
        stated=stated(dataset),
    )


def _check_radiograph(dataset: Dataset, modality: str) -> None:
    storage = _text(dataset, "SOPClassUID")
    if modality not in RADIOGRAPHS + VAGUE:
        what = OTHER_MODALITIES.get(modality, "of a kind this package does not know")
        raise DataError(f"modality {modality} ({what}) is not a radiograph; leave it out")
    if modality in VAGUE and storage not in RADIOGRAPH_CLASSES:
        raise DataError(
            f"neither its modality ({modality or 'empty'}) nor its storage class "
            f"({storage or 'empty'}) says that it is a radiograph; leave it out"
        )
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise DataError(f"{frames} frames in one file; a radiograph has one; leave it out")


def _spacing_mm(dataset: Dataset) -> tuple[float, float] | None:
    """Return (row, column) spacing: in the patient, or else at the detector (10.7.1.3)."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        try:
            row, column = (float(value) for value in dataset.get(keyword) or ())
        except (TypeError, ValueError):
            continue
        low, high = SPACING_RANGE_MM
        if low <= row <= high and low <= column <= high:
            return row, column
    return None


def _text(dataset: Dataset, keyword: str) -> str:
    value: Any = dataset.get(keyword)
    return "" if value is None else str(value).strip("\0 ")
