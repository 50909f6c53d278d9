"""The size that a compressed image claims, read before any decoder sees it.

Decoders allocate what the stream claims, whatever the DICOM header says: one flipped bit
may ask for gigabytes. Marker layouts: ITU-T T.81 (JPEG), T.87 (JPEG-LS), T.800 (JPEG 2000).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from adalora_qat.errors import DataError

JPEG_START = b"\xff\xd8"
J2K_START = b"\xff\x4f\xff\x51"
JP2_START = b"\x00\x00\x00\x0cjP"
# Start-of-frame markers: T.81 table B.1 without DHT (C4), JPG (C8) and DAC (CC); F7 is JPEG-LS.
FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
# Markers that stand alone, without a length.
LONE_MARKERS = {0x01, *range(0xD0, 0xD9)}
START_OF_SCAN = 0xDA


class CodedSize(NamedTuple):
    """What a stream claims to hold."""

    height: int
    width: int
    bits: int
    components: int


def coded_size(stream: bytes) -> CodedSize | None:
    """Return the size that a JPEG, JPEG-LS or JPEG 2000 stream claims; None for other data.

    Raises
    ------
    DataError
        If the stream starts as one of these and has no readable size.
    """
    if stream.startswith(JPEG_START):
        return _jpeg_size(stream)
    if stream.startswith(JP2_START):
        # The boxes of the file format come first; the stream is in one of them.
        stream = stream[max(stream.find(J2K_START), 0) :]
    if stream.startswith(J2K_START):
        return _j2k_size(stream)
    return None


def _jpeg_size(stream: bytes) -> CodedSize:
    for marker, start in _segments(stream):
        if marker in FRAME_MARKERS and start + 8 <= len(stream):
            height, width = number(stream, start + 3, 2), number(stream, start + 5, 2)
            return CodedSize(height, width, stream[start + 2], stream[start + 7])
    raise DataError("a compressed image without a frame header; damaged")


def _segments(stream: bytes) -> Iterator[tuple[int, int]]:
    """Yield (marker, offset of its length) up to the first scan."""
    at = len(JPEG_START)
    while at + 4 <= len(stream):
        if stream[at] != 0xFF:
            return
        marker = stream[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in LONE_MARKERS:
            at += 2
        elif marker == START_OF_SCAN:
            return
        else:
            yield marker, at + 2
            at += 2 + max(2, number(stream, at + 2, 2))


def _j2k_size(stream: bytes) -> CodedSize:
    # SIZ: length, capabilities, then the sizes of grid and offset, 4 bytes each.
    if len(stream) < 43:
        raise DataError("a JPEG 2000 stream that ends in its header; truncated")
    right, bottom, left, top = (number(stream, at, 4) for at in (8, 12, 16, 20))
    components, bits = number(stream, 40, 2), (stream[42] & 127) + 1
    return CodedSize(bottom - top, right - left, bits, components)


def number(stream: bytes, at: int, length: int) -> int:
    """Return the big-endian number of so many bytes at an offset; 0 past the end."""
    return int.from_bytes(stream[at : at + length], "big")
