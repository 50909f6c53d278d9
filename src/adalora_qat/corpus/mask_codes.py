"""Masks that a data set writes as text: run lengths and polygons, decoded to pixels.

A reader carries such a mask along as a code, so that reading 10,000 records stays quick;
``materialise.py`` writes it as an image when it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from skimage import draw

from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError

# No radiograph comes near it (35 cm at 0.05 mm is 49 megapixels); more is a broken header.
MAX_PIXELS = 200_000_000

Mask = NDArray[np.bool_]


class MaskCode(Protocol):
    """A mask that knows how to become pixels."""

    def decode(self) -> Mask:
        """Return the mask, (H, W) bool, in the original frame of its image."""
        ...


@dataclass(frozen=True)
class EncodedRecord(Record):
    """A record some of whose masks are still text.

    Attributes
    ----------
    codes : structure → its code; a structure is either here or in ``masks``.
    """

    codes: Mapping[str, MaskCode] = field(default_factory=dict)


@dataclass(frozen=True)
class RelativeRuns:
    """The masks of one SIIM-ACR image: rows of its table, and the size of the image."""

    rows: tuple[str, ...]
    height: int
    width: int

    def decode(self) -> Mask:
        """Return the union of the rows."""
        return decode_rle(self.rows, self.height, self.width)


@dataclass(frozen=True)
class CocoShapes:
    """The annotations of one structure on one COCO image: polygons or COCO's run lengths."""

    segmentations: tuple[object, ...]
    height: int
    width: int

    def decode(self) -> Mask:
        """Return the union of the annotations."""
        _check_size(self.height, self.width)
        mask = np.zeros((self.height, self.width), dtype=bool)
        for segmentation in self.segmentations:
            if isinstance(segmentation, Mapping):
                mask |= _coco_runs(segmentation, self.height, self.width)
            else:
                mask |= _polygons(segmentation, self.height, self.width)
        return mask


def decode_rle(rows: str | Sequence[str], height: int, width: int) -> Mask:
    """Decode SIIM-ACR run lengths: relative, column by column, several rows an image.

    A row is ``gap length gap length …``: each gap counts from the end of the run before,
    the first from the top left pixel; pixels are numbered down the columns. ``-1`` is no
    mask. The rows of one image are united.

    Raises
    ------
    DataError
        If a row is not pairs of whole numbers, or runs out of the image.
    """
    _check_size(height, width)
    mask = np.zeros(height * width, dtype=bool)
    for row in [rows] if isinstance(rows, str) else rows:
        numbers = _whole_numbers(row)
        if numbers.size == 1 and numbers[0] == -1:
            continue
        if numbers.size % 2 or (numbers < 0).any():
            raise DataError(
                f"run lengths {row[:40]!r} are not pairs of gap and length; "
                "take the published table"
            )
        _paint(mask, numbers)
    return mask.reshape(width, height).T.copy()


def _whole_numbers(row: str) -> NDArray[np.int64]:
    try:
        return np.array([int(part) for part in row.split()], dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise DataError(
            f"run lengths {row[:40]!r} hold something other than whole numbers"
        ) from error


def _paint(mask: Mask, numbers: NDArray[np.int64]) -> None:
    """Set the runs of ``gap length gap length …`` in a flat mask."""
    # Each number is checked before the sum, which could wrap round.
    ends = np.cumsum(numbers) if numbers.max(initial=0) <= mask.size else numbers
    if numbers.size and ends.max() > mask.size:
        raise DataError(
            f"run lengths reach pixel {ends.max()} of an image of {mask.size} pixels; "
            "the mask belongs to an image of another size"
        )
    for start, stop in zip(ends[0::2], ends[1::2], strict=True):
        mask[start:stop] = True


def _coco_runs(segmentation: Mapping[object, object], height: int, width: int) -> Mask:
    counts, size = segmentation.get("counts"), segmentation.get("size")
    if size != [height, width]:
        raise DataError(f"run lengths of size {size} on an image of {[height, width]} pixels")
    runs = _unpack_counts(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(
        isinstance(n, int) and 0 <= n <= MAX_PIXELS for n in runs
    ):
        raise DataError("COCO run lengths must be a list of whole numbers or a packed string")
    # Runs of background and foreground take turns, background first, as in SIIM's pairs.
    mask = np.zeros(height * width, dtype=bool)
    _paint(mask, np.array([*runs, *([0] * (len(runs) % 2))], dtype=np.int64))
    return mask.reshape(width, height).T.copy()


def _unpack_counts(packed: str) -> list[int]:
    """Unpack COCO's compressed counts.

    A number is written in groups of five bits, lowest first, one character (code 48 up) a
    group; 32 marks that another group follows, the 16 of the last group is the sign. From
    the fourth number on, the difference to the number two before is written.
    """
    numbers: list[int] = []
    value = shift = 0
    for character in packed:
        group = ord(character) - 48
        if not 0 <= group < 64 or shift > 60:
            raise DataError("packed COCO run lengths hold a character that cannot stand there")
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
            value = shift = 0
    if shift:
        raise DataError("packed COCO run lengths end in the middle of a number")
    return numbers


def _polygons(segmentation: object, height: int, width: int) -> Mask:
    mask = np.zeros((height, width), dtype=bool)
    for ring in segmentation if isinstance(segmentation, list) else [None]:
        # Continuous pixel edges: the centre of the first pixel is at (0.5, 0.5).
        x, y = _points(ring).T - 0.5
        mask[draw.polygon(y, x, (height, width))] = True  # type: ignore[no-untyped-call]
    return mask


def _points(ring: object) -> NDArray[np.float64]:
    try:
        points = np.asarray(ring, dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        points = np.empty((0, 2))
    if len(points) < 3 or not np.isfinite(points).all():
        raise DataError("a COCO polygon must list x, y of at least three points")
    return points


def _check_size(height: int, width: int) -> None:
    if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
        raise DataError(
            f"a mask of {height}x{width} pixels cannot be decoded; give the size of the image"
        )
