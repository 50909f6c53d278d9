"""Plane images in the two formats that programs for volumes exchange: NIfTI-1 and NRRD.

A radiograph travels in them as a volume of one slice, rows of the picture as the first axis's
runs. Header and order are kept from the image to its mask, so that they lie on each other.

NIfTI-1: https://nifti.nimh.nih.gov/nifti-1. NRRD: https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adalora_qat.errors import DataError

_HEADER, _OFFSET = 348, 352
_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}
_NRRD_TYPES = {
    "uchar": "u1", "unsigned char": "u1", "uint8": "u1", "short": "i2", "int16": "i2",
    "ushort": "u2", "unsigned short": "u2", "uint16": "u2", "int": "i4", "float": "f4",
    "double": "f8",
}  # fmt: skip


def is_volume(data: bytes) -> bool:
    """Return whether bytes are NIfTI-1, packed or not, or NRRD, by their first ones."""
    return data[:2] == b"\x1f\x8b" or data[:4] == b"NRRD" or data[344:348] == b"n+1\0"


def read_plane(data: bytes, max_pixels: int) -> NDArray[Any]:
    """Read a volume of one slice.

    Returns
    -------
    (H, W).

    Raises
    ------
    DataError
        If it is damaged, too large, or of more than one slice.
    """
    try:
        if data[:4] == b"NRRD":
            return _read_nrrd(data, max_pixels)
        plain = _inflated(data, 8 * max_pixels + 1_000_000) if data[:2] == b"\x1f\x8b" else data
        return _read_nifti(plain, max_pixels)
    except (struct.error, ValueError, KeyError, zlib.error, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"a damaged volume ({type(error).__name__}); send it again") from error


def mask_like(values: NDArray[np.uint8], image: bytes | None, extension: str) -> bytes:
    """Write a mask (H, W) as a volume of one slice.

    Parameters
    ----------
    image : the volume that it belongs to, whose place in space it takes; None for a picture,
        whose pixels then are 1 mm wide.
    extension : ``.nii``, ``.nii.gz`` or ``.nrrd``.

    Raises
    ------
    DataError
        If the extension is another.
    """
    if extension == ".nrrd":
        return _write_nrrd(values)
    if extension not in (".nii", ".nii.gz"):
        raise DataError(f"result_extension {extension!r}: give .nii, .nii.gz or .nrrd")
    header = None
    if image is not None and image[:4] != b"NRRD":
        plain = _inflated(image, _HEADER) if image[:2] == b"\x1f\x8b" else image
        header = plain[:_HEADER]
    nifti = _write_nifti(values, header)
    return gzip.compress(nifti, 6, mtime=0) if extension.endswith("gz") else nifti


def _inflated(data: bytes, most: int) -> bytes:
    inflating = zlib.decompressobj(16 + zlib.MAX_WBITS)
    return inflating.decompress(data, most)


def _read_nifti(data: bytes, max_pixels: int) -> NDArray[Any]:
    order = "<" if struct.unpack("<i", data[:4])[0] == _HEADER else ">"
    dims = struct.unpack(f"{order}8h", data[40:56])
    kind = struct.unpack(f"{order}h", data[70:72])[0]
    offset, slope, shift = struct.unpack(f"{order}3f", data[108:120])
    width, height = dims[1], dims[2]
    _check(width, height, dims[3 : dims[0] + 1], max_pixels)
    dtype = np.dtype(order + _TYPES[kind])
    values = np.frombuffer(data, dtype, width * height, int(offset)).reshape(height, width)
    scaled = np.isfinite([slope, shift]).all() and (slope not in (0, 1) or shift != 0)
    return values * slope + shift if scaled and slope else values


def _write_nifti(values: NDArray[np.uint8], header: bytes | None) -> bytes:
    height, width = values.shape
    if header is None or len(header) < _HEADER:
        made = bytearray(_HEADER)
        struct.pack_into("<i", made, 0, _HEADER)
        struct.pack_into("<8f", made, 76, 1, 1, 1, 1, 0, 0, 0, 0)
        # Pictures run right and down; NIfTI's axes point left to right and back to front.
        struct.pack_into("<2h", made, 252, 0, 1)
        struct.pack_into("<12f", made, 280, -1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0)
        made[123] = 2  # mm
        made[344:348] = b"n+1\0"
    else:
        made = bytearray(header[:_HEADER])
    order = "<" if struct.unpack("<i", made[:4])[0] == _HEADER else ">"
    struct.pack_into(f"{order}8h", made, 40, 3, width, height, 1, 1, 1, 1, 1)
    struct.pack_into(f"{order}2h", made, 70, 2, 8)
    struct.pack_into(f"{order}3f", made, 108, _OFFSET, 1, 0)
    return bytes(made) + bytes(_OFFSET - _HEADER) + np.ascontiguousarray(values).tobytes()


def _read_nrrd(data: bytes, max_pixels: int) -> NDArray[Any]:
    head, _, body = data.partition(b"\n\n")
    lines = head.decode("ascii").splitlines()[1:]
    fields = dict(line.split(": ", 1) for line in lines if ": " in line and line[0] != "#")
    sizes = [int(size) for size in fields["sizes"].split()]
    _check(sizes[0], sizes[1], sizes[2:], max_pixels)
    order = ">" if fields.get("endian") == "big" else "<"
    dtype = np.dtype(order + _NRRD_TYPES[fields["type"]])
    size = sizes[0] * sizes[1] * dtype.itemsize
    if fields["encoding"] in ("gzip", "gz"):
        body = _inflated(body, size)
    elif fields["encoding"] != "raw":
        raise DataError(f"NRRD encoding {fields['encoding']}: send raw or gzip")
    return np.frombuffer(body, dtype, sizes[0] * sizes[1]).reshape(sizes[1], sizes[0])


def _write_nrrd(values: NDArray[np.uint8]) -> bytes:
    height, width = values.shape
    head = (
        "NRRD0004\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\n"
        f"sizes: {width} {height} 1\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n"
        "kinds: domain domain domain\nencoding: gzip\nspace origin: (0,0,0)\n\n"
    )
    return head.encode("ascii") + gzip.compress(np.ascontiguousarray(values).tobytes(), 6, mtime=0)


def _check(width: int, height: int, others: Any, max_pixels: int) -> None:
    if any(size != 1 for size in others):
        raise DataError("a volume of several slices, which a radiograph is not")
    if width < 1 or height < 1 or width * height > max_pixels:
        raise DataError(f"{height}x{width} pixels: the limit is {max_pixels}")
