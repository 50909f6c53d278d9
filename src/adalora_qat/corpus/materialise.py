"""Bring a record to image files: DICOM and raw images to PNG, masks from text to PNG.

Everything after ``prepare`` reads plain image files only. What is one already stays where
it is and is not copied.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adalora_qat.corpus.mask_codes import EncodedRecord
from adalora_qat.corpus.reading import DICOM_SUFFIXES
from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError
from adalora_qat.files import atomic_write
from adalora_qat.imaging.dicom import DEFAULT_SALT, read_dicom
from adalora_qat.imaging.image_file import load_image

# JSRT as published: 2048 × 2048, 12 bits in big-endian 16, air bright (optical density).
JSRT_SIDE = 2048
JSRT_WHITE = 4095


def materialise(record: Record, out_dir: Path, salt: str = DEFAULT_SALT) -> Record:
    """Write what the record holds in other forms as PNG files; return the record of files.

    Files go to ``out_dir/images/<id>.png`` (16-bit grey) and
    ``out_dir/masks/<structure>/<id>.png`` (1-bit), written afresh, the same bytes each time.

    Raises
    ------
    DataError
        If the image or a mask cannot be decoded, with the reason.
    """
    return materialise_masks(materialise_image(record, out_dir, salt), out_dir)


def materialise_image(record: Record, out_dir: Path, salt: str = DEFAULT_SALT) -> Record:
    """Write a DICOM or raw JSRT image as 16-bit PNG; its header fills in what is not known."""
    if not needs_conversion(record.image):
        return record
    path = out_dir / "images" / place(record.id)
    if record.image.suffix.lower() == ".img":
        _write_png(path, Image.fromarray(_read_jsrt_raw(record.image)))
        return replace(record, image=path)
    read = read_dicom(record.image, salt)
    _write_png(path, Image.fromarray(read.pixels))
    return replace(
        record,
        image=path,
        patient=record.patient or read.patient,
        spacing_mm=record.spacing_mm or read.spacing_mm,
    )


def materialise_masks(record: Record, out_dir: Path) -> Record:
    """Write masks that the set holds as text; a record without such comes back as it is."""
    if not isinstance(record, EncodedRecord):
        return record
    written: dict[str, Path] = {}
    for structure, code in record.codes.items():
        written[structure] = out_dir / "masks" / structure / place(record.id)
        try:
            mask = code.decode()
        except DataError as error:
            raise DataError(f"{record.id}, {structure}: {error}") from error
        _write_png(written[structure], Image.fromarray(mask))
    plain = {item.name: getattr(record, item.name) for item in fields(Record)}
    return Record(**plain | {"masks": {**record.masks, **written}})


def needs_conversion(image: Path) -> bool:
    """Tell whether an image is in a form that only ``prepare`` reads."""
    return image.suffix.lower() in (*DICOM_SUFFIXES, ".img")


def read_pixels(image: Path) -> NDArray[Any]:
    """Read an image in any form a reader hands on: plain files, DICOM, raw JSRT.

    Returns
    -------
    (H, W) or (H, W, 3), bones bright.

    Raises
    ------
    DataError
        If it cannot be read, with the reason.
    """
    if image.suffix.lower() == ".img":
        return _read_jsrt_raw(image)
    if needs_conversion(image):
        return read_dicom(image).pixels
    return load_image(image)


def place(record_id: str) -> Path:
    """Return the relative path of a record's PNG; nothing in an id can lead out of the folder."""
    parts = [part.replace("\\", "_").replace(":", "_") for part in record_id.split("/") if part]
    safe = [part if part.strip(".") else "_" * len(part) for part in parts]
    return Path(*safe[:-1], f"{safe[-1]}.png") if safe else Path("_.png")


def _read_jsrt_raw(path: Path) -> NDArray[np.uint16]:
    try:
        stored = np.fromfile(path, dtype=">u2")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error
    if stored.size != JSRT_SIDE**2 or stored.max() > JSRT_WHITE:
        raise DataError(
            f"{path} is not a raw JSRT image ({JSRT_SIDE}x{JSRT_SIDE} pixels of 12 bits); "
            "convert it to PNG"
        )
    # Sixteen bits out of twelve, air dark.
    return ((JSRT_WHITE - stored.astype(np.uint16)) * 16).reshape(JSRT_SIDE, JSRT_SIDE)


def _write_png(path: Path, picture: Image.Image) -> None:
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG")
