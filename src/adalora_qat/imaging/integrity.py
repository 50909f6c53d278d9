"""Whether an image file is whole, where its format or decoder can tell.

Decoders make something of a damaged file: they fill the rest with grey, or read on in the wrong
place. What can be known is checked here: every checksum (PNG), the order of segments and
restart marks and each complaint of libjpeg (JPEG), the place of strips (TIFF), the lengths of
tile-parts (JPEG 2000). What has no checksum can still change unseen: a flipped bit in
uncompressed pixels, or in a JPEG's numbers, gives another valid image.

Marker layouts: ITU-T T.81 (JPEG), T.87 (JPEG-LS), T.800 (JPEG 2000); TIFF 6.0.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import simplejpeg
from PIL import Image

from adalora_qat.errors import DataError, printable
from adalora_qat.imaging.codestream import J2K_START, JPEG_START, number

END_OF_IMAGE, START_OF_SCAN = 0xD9, 0xDA
RESTARTS = range(0xD0, 0xD8)
# Ten scans are usual. A few bytes ask for each, and decoders go over the whole image for it.
MOST_SCANS = 100
_STRIPS, _TILES = (273, 279), (324, 325)
_UNCOMPRESSED = 1
_DAMAGED = ("damaged", "truncated")

# Filters of warnings belong to the process: one thread at a time may change and restore them.
_LISTENING = threading.Lock()


@contextmanager
def warnings_heard() -> Iterator[list[str]]:
    """Collect what Python libraries warn of, in place of showing it; one thread at a time."""
    heard: list[str] = []
    with _LISTENING, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            yield heard
        finally:
            heard += [str(warning.message) for warning in said]


@contextmanager
def refusing(where: object, otherwise: str) -> Iterator[None]:
    """Name the file in refusals, and turn whatever a decoder says into one.

    Parameters
    ----------
    where : the file, or what to call what is read.
    otherwise : what is said of it where a decoder raised; ``{}`` is the decoder's reason.

    Raises
    ------
    DataError
        In place of whatever the block raises.
    """
    try:
        yield
    except DataError as error:
        said = str(error)
        # Checks of streams know what is wrong with them, not what can be done about the file.
        remedy = ": copy it again or leave it out" if said.endswith(_DAMAGED) else ""
        raise DataError(f"{printable(where)}: {said}{remedy}") from error.__cause__
    except Exception as error:  # hostile bytes make parsers and decoders raise anything
        said = otherwise.format(first_line(error))
        raise DataError(f"{printable(where)}{said}") from error


def first_line(message: object) -> str:
    """Return the first line of a message, or the name of an error without one, fit to print."""
    text = str(message) or type(message).__name__
    return printable(text.splitlines()[0][:200])


def check_jpeg(stream: bytes, *, bits: int = 8, pictures: bool = False) -> None:
    """Refuse a JPEG or JPEG-LS stream that is cut, goes on after its end, or decodes with errors.

    Parameters
    ----------
    stream : the whole of the file, or of the pixel data of a DICOM file.
    bits : precision of the samples; libjpeg is asked for its opinion of 8 bits.
    pictures : whether further images may follow the first (MPO).

    Raises
    ------
    DataError
        With what is wrong.
    """
    end = _end(stream)
    # One byte makes a length even; what value it has differs.
    if stream[end + 1 :].strip(b"\0") and not pictures:
        raise DataError(f"{len(stream) - end} bytes after the end of the JPEG image; damaged")
    if bits != 8:
        return
    try:
        # An eighth of the side: all coefficients are still read, few pixels are made of them.
        simplejpeg.decode_jpeg(stream, "GRAY", min_factor=8, min_height=1, min_width=1, strict=True)
    except ValueError as error:
        raise DataError(
            f"damaged JPEG data ({first_line(error)}); copy it again or leave it out"
        ) from error


def check_scans(stream: bytes) -> None:
    """Refuse a JPEG stream that takes a decoder minutes.

    Raises
    ------
    DataError
        If it has more scans than any image needs.
    """
    if stream.count(bytes([0xFF, START_OF_SCAN])) > MOST_SCANS:
        raise DataError(f"a JPEG of more than {MOST_SCANS} scans, which none needs; leave it out")


def check_j2k(stream: bytes) -> None:
    """Walk a JPEG 2000 stream (or the one in a JP2 file) over its tile-parts to its end.

    Raises
    ------
    DataError
        If a tile-part does not lead to the next, or the end is missing.
    """
    at = stream.find(J2K_START)
    if at < 0:
        raise DataError("a JPEG 2000 file without an image; truncated or damaged")
    stream = stream[at:].rstrip(b"\0") if at == 0 else stream[at:]
    at = 2
    while (marker := stream[at : at + 2]) != b"\xff\xd9":
        length = number(stream, at + 2, 2)
        if marker == b"\xff\x90":  # a tile-part; length 0 stands for all that is left
            length = number(stream, at + 6, 4) or len(stream) - 2 - at
            at -= 2
        if marker[:1] != b"\xff" or length < 2 or at + 2 + length > len(stream) - 2:
            raise DataError("a JPEG 2000 stream without its end; truncated or damaged")
        at += 2 + length


def check_strips(image: Image.Image, size: int) -> None:
    """Refuse a TIFF whose strips or tiles have an impossible place or size.

    Parameters
    ----------
    image : opened, not yet decoded.
    size : bytes of the file.

    Raises
    ------
    DataError
        If a strip lies outside the file or on another, or bytes are missing or too many.
    """
    tags: Any = getattr(image, "tag_v2", {})
    offsets, counts = next(
        (tuple(map(tags.get, names)) for names in (_STRIPS, _TILES) if names[0] in tags),
        (None, None),
    )
    if offsets is None or counts is None:
        return
    pieces = sorted(zip(offsets, counts, strict=False))
    ends = [0, *(offset + count for offset, count in pieces)]
    if len(offsets) != len(counts) or any(
        offset < max(end, 8) for (offset, _), end in zip(pieces, ends, strict=False)
    ):
        raise DataError("TIFF strips that overlap; damaged")
    if ends[-1] > size:
        raise DataError("TIFF strips beyond the end of the file; truncated")
    if tags.get(259, _UNCOMPRESSED) == _UNCOMPRESSED and _STRIPS[0] in tags:
        bits = sum(tags.get(258, (1,))) if tags.get(284, 1) == 1 else tags.get(258, (1,))[0]
        planes = 1 if tags.get(284, 1) == 1 else tags.get(277, 1)
        expected = (image.width * bits + 7) // 8 * image.height * planes
        if sum(counts) != expected:
            raise DataError(f"TIFF strips of {sum(counts)} bytes, not {expected}; damaged")


def _end(stream: bytes) -> int:
    """Walk a JPEG or JPEG-LS stream from segment to segment; return the offset of its end."""
    at = len(JPEG_START)
    while True:
        marker, at = _marker(stream, at)
        if marker == END_OF_IMAGE:
            return at
        length = number(stream, at, 2)
        if length < 2 or at + length > len(stream):
            raise DataError("a JPEG segment that is longer than the file; truncated or damaged")
        at += length
        if marker == START_OF_SCAN:
            at = _after_scan(stream, at)


def _marker(stream: bytes, at: int) -> tuple[int, int]:
    """Return the marker here and the offset behind it, past fill bytes."""
    start = at
    while stream[at : at + 1] == b"\xff":
        at += 1
    if at == len(stream):
        raise DataError("a JPEG image without its end; truncated")
    if at == start or stream[at] in (0x00, 0x01, 0xD8, *RESTARTS):
        raise DataError("a JPEG marker out of place; damaged")
    return stream[at], at + 1


def _after_scan(stream: bytes, at: int) -> int:
    """Return where the coded data that begin here end: at a marker that is no restart."""
    restarts = 0
    while (at := stream.find(b"\xff", at)) >= 0 and at + 1 < len(stream):
        following = stream[at + 1]
        if following in RESTARTS:
            if following != RESTARTS[restarts % 8]:
                raise DataError(
                    "JPEG restart marks out of order, a piece is gone or doubled; damaged"
                )
            restarts += 1
        # T.81 stuffs a zero byte after FF, T.87 a zero bit.
        elif following >= 0x80 and following != 0xFF:
            return at
        at += 1 if following == 0xFF else 2
    raise DataError("a JPEG image without its end; truncated")
