"""Whatever a user calls an image → its pixels, and the size of a pixel where it is known.

NumPy and Pillow only; pydicom is imported for the first DICOM file, and need not be there for
any other.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adalora_qat.errors import DataError, printable
from adalora_qat.files import sha256_file
from adalora_qat.imaging.image_file import MAX_PIXELS, load_image, picture_pixels
from adalora_qat.imaging.memory_file import File, MemoryFile
from adalora_qat.imaging.stated import NOTHING_STATED, Stated

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from adalora_qat.imaging.dicom import DicomImage

ImageLike: TypeAlias = "str | os.PathLike[str] | MemoryFile | NDArray[Any] | Image.Image | Dataset"
"""A path, a file in memory, an array (H, W) or (H, W, 3), a PIL image, or a pydicom dataset."""

# Whoever names a file so means an image, whatever is in it.
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm"})
_PICTURES = (
    b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8",
    b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", *(b"P%d\n" % kind for kind in range(1, 7)),
)  # fmt: skip
# A DICOM data set without preamble starts in group 0002 or 0008, in little-endian order.
_FIRST_GROUPS = b"\x02\0", b"\x08\0"
# Of the first element: a UID, a character set, an image type.
_LONGEST_FIRST = 256


@dataclass(frozen=True)
class Radiograph:
    """An image as it was read.

    Attributes
    ----------
    pixels : (H, W) or (H, W, 3), at full depth.
    spacing_mm : (row, column) size of a pixel; None where nothing states it.
    seconds : how long reading took.
    path : the file; None for pixels that were in memory.
    sha256 : of the file; None for pixels that were in memory.
    stated : what a DICOM header says of view and patient; nothing for other images.
    """

    pixels: NDArray[Any]
    spacing_mm: tuple[float, float] | None
    seconds: float
    path: File | None = None
    sha256: str | None = None
    stated: Stated = NOTHING_STATED


def read_radiograph(
    image: ImageLike, *, max_pixels: int = MAX_PIXELS, lenient: bool = False
) -> Radiograph:
    """Read an image from wherever it is.

    Parameters
    ----------
    image : the path of an image or DICOM file, or a ``MemoryFile`` of one; an array (H, W) or
        (H, W, 3), grey or RGB, of any real dtype, bones bright; a PIL image; a pydicom dataset
        with its pixel data.
    max_pixels : files and pictures with more are refused by their header, before decoding.
    lenient : take what can be decoded of a damaged file.

    Raises
    ------
    DataError
        If it is none of these or cannot be used, or it is DICOM and the packages that read it
        are not there; says which file and why.
    """
    started = time.perf_counter()
    if isinstance(image, str | os.PathLike | MemoryFile):
        path = image if isinstance(image, MemoryFile) else Path(image)
        pixels, spacing_mm, said = _read_file(path, max_pixels, lenient)
        seconds = time.perf_counter() - started
        try:
            return Radiograph(pixels, spacing_mm, seconds, path, _sha256(path), said)
        except OSError as error:
            raise DataError(
                f"{printable(path)} can no longer be read ({error.strerror}); is its drive there?"
            ) from error
    spacing_mm, said, pydicom = None, NOTHING_STATED, sys.modules.get("pydicom")
    if isinstance(image, Image.Image):
        pixels = picture_pixels(image, max_pixels=max_pixels)
    elif pydicom is not None and isinstance(image, pydicom.Dataset):
        from adalora_qat.imaging.dicom import read_dataset

        found = read_dataset(image, max_pixels=max_pixels, lenient=lenient)
        pixels, spacing_mm, said = found.pixels, found.spacing_mm, found.stated
    elif hasattr(image, "__array__"):
        pixels = np.asarray(image)
    else:
        raise DataError(
            f"an image of type {type(image).__name__}: give a path, a NumPy array, a PIL image or "
            "a pydicom dataset"
        )
    return Radiograph(pixels, spacing_mm, time.perf_counter() - started, stated=said)


def _sha256(file: File) -> str:
    if isinstance(file, MemoryFile):
        return hashlib.sha256(file.data).hexdigest()
    return sha256_file(file)


def looks_like_image(path: Path) -> bool:
    """Return whether a file calls itself an image, by its suffix or by its first bytes.

    Raises
    ------
    OSError
        If it cannot be read, which only a file without such a suffix need be.
    """
    return path.suffix.lower() in SUFFIXES or _kind_of(path) is not None


def _kind_of(path: File) -> Literal["picture", "dicom"] | None:
    """Return what the first bytes of a file say that it is."""
    # Opening a pipe would wait for somebody to write into it.
    if not stat.S_ISREG(path.stat().st_mode):
        return None
    with path.open("rb") as handle:
        head = handle.read(132)
    if head[128:] == b"DICM":
        return "dicom"
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    bitmap = head[:2] == b"BM" and head[6:10] == bytes(4)
    if webp or bitmap or head.startswith(_PICTURES):
        return "picture"
    # Explicit types are two letters before the length, or else the length has all four bytes.
    length = head[6:8] if head[4:6].isalpha() and head[4:6].isupper() else head[4:8]
    first = int.from_bytes(length, "little")
    bare = head.startswith(_FIRST_GROUPS) and len(head) == 132 and first <= _LONGEST_FIRST
    return "dicom" if bare else None


def _read_file(
    path: File, max_pixels: int, lenient: bool
) -> tuple[NDArray[Any], tuple[float, float] | None, Stated]:
    try:
        kind = _kind_of(path)
    except (OSError, ValueError):
        kind = None  # ``load_image`` says why
    if kind == "dicom" or (kind is None and path.suffix.lower() == ".dcm"):
        found = _read_dicom_file(path, max_pixels, lenient)
        return found.pixels, found.spacing_mm, found.stated
    return load_image(path, max_pixels=max_pixels, lenient=lenient), None, NOTHING_STATED


def _read_dicom_file(path: File, max_pixels: int, lenient: bool) -> DicomImage:
    try:
        from adalora_qat.imaging.dicom import read_dicom
    except ModuleNotFoundError as error:
        raise DataError(
            f"{printable(path)} is DICOM, which needs {error.name}; run pip install "
            "'adalora-qat[dicom]', or save the radiograph as a 16-bit PNG"
        ) from error
    return read_dicom(path, max_pixels=max_pixels, lenient=lenient)
