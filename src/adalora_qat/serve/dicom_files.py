"""The DICOM objects of a result, as one archive."""

from __future__ import annotations

import io
import zipfile

from adalora_qat.dicom.objects import result_objects
from adalora_qat.dicom.source import Source, read_source
from adalora_qat.errors import DataError
from adalora_qat.imaging.memory_file import MemoryFile
from adalora_qat.runtime.inputs import stem_of
from adalora_qat.runtime.result import Result
from adalora_qat.serve.refusal import Refusal

_SIGNATURE = slice(128, 132)


def source_of(file: MemoryFile) -> Source | None:
    """Return the header that objects would refer to; None where there can be none."""
    if file.data[_SIGNATURE] != b"DICM":
        return None
    try:
        return read_source(file)
    except DataError:
        return None  # can be segmented all the same


def objects_of(source: Source | None, result: Result) -> tuple[bytes, str]:
    """Return an archive of the objects (SEG, SR, SC) and its name.

    Raises
    ------
    Refusal
        422 if the image was no DICOM file that they could refer to.
    """
    if source is None:
        raise Refusal(
            422, "no_dicom", "DICOM objects refer to a DICOM image, and this is none with UIDs"
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for kind, made in result_objects(source, result).items():
            file = io.BytesIO()
            made.save_as(file, enforce_file_format=True)
            archive.writestr(f"{kind}.dcm", file.getvalue())
    return buffer.getvalue(), f"{stem_of(result.name)}_dicom.zip"
