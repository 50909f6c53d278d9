"""Whatever a user calls an image → its pixels, and the size of a pixel where it is known.

NumPy and Pillow only; pydicom is imported for the first DICOM file, and need not be there for
any other.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adalora_qat.errors import DataError
from adalora_qat.files import sha256_file
from adalora_qat.imaging.image_file import load_image, picture_pixels

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from adalora_qat.imaging.dicom import DicomImage

ImageLike: TypeAlias = "str | os.PathLike[str] | NDArray[Any] | Image.Image | Dataset"
"""A path, an array (H, W) or (H, W, 3), a PIL image, or a pydicom dataset."""


@dataclass(frozen=True)
class Radiograph:
    """An image as it was read.

    Attributes
    ----------
    pixels : (H, W) or (H, W, 3), at full depth.
    spacing_mm : (row, column) size of a pixel; None where nothing states it.
    seconds : how long reading took.
    path : the file; None for an image that was in memory.
    sha256 : of the file; None for an image that was in memory.
    """

    pixels: NDArray[Any]
    spacing_mm: tuple[float, float] | None
    seconds: float
    path: Path | None = None
    sha256: str | None = None


def read_radiograph(image: ImageLike) -> Radiograph:
    """Read an image from wherever it is.

    Parameters
    ----------
    image : the path of an image or DICOM file; an array (H, W) or (H, W, 3), grey or RGB, of
        any real dtype, bones bright; a PIL image; a pydicom dataset with its pixel data.

    Raises
    ------
    DataError
        If it is none of these or cannot be used, or it is DICOM and the packages that read it
        are not there; says which file and why.
    """
    started = time.perf_counter()
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        pixels, spacing_mm = _read_file(path)
        seconds = time.perf_counter() - started
        return Radiograph(pixels, spacing_mm, seconds, path, sha256_file(path))
    spacing_mm, pydicom = None, sys.modules.get("pydicom")
    if isinstance(image, Image.Image):
        pixels = picture_pixels(image)
    elif pydicom is not None and isinstance(image, pydicom.Dataset):
        from adalora_qat.imaging.dicom import read_dataset

        found = read_dataset(image)
        pixels, spacing_mm = found.pixels, found.spacing_mm
    elif hasattr(image, "__array__"):
        pixels = np.asarray(image)
    else:
        raise DataError(
            f"an image of type {type(image).__name__}: give a path, a NumPy array, a PIL image or "
            "a pydicom dataset"
        )
    return Radiograph(pixels, spacing_mm, time.perf_counter() - started)


def _read_file(path: Path) -> tuple[NDArray[Any], tuple[float, float] | None]:
    if path.suffix.lower() != ".dcm":
        return load_image(path), None
    found = _read_dicom_file(path)
    return found.pixels, found.spacing_mm


def _read_dicom_file(path: Path) -> DicomImage:
    try:
        from adalora_qat.imaging.dicom import read_dicom
    except ModuleNotFoundError as error:
        raise DataError(
            f"{path} is DICOM, which needs {error.name}; run pip install 'adalora-qat[dicom]', or "
            "save the radiograph as a 16-bit PNG"
        ) from error
    return read_dicom(path)
