"""A record decoded once: its grey image and true masks, resized to the model side.

This is what the cache keeps and what samples are made from: everything random comes after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError
from adalora_qat.imaging.geometry import (
    FrameMap,
    Grey,
    load_image,
    load_mask,
    mask_to_model,
    resize_grey,
    to_grey,
)

# Masks of some sets are stored smaller than their images (COVID-19 Radiography: 256 against
# 299 px) but cover the same field: the sides agree to the rounding of a pixel.
SAME_FIELD = 0.01


@dataclass(frozen=True)
class Planes:
    """The pixels of one record in the model frame, padding left out.

    Attributes
    ----------
    grey : (h, w) uint8, or uint16 where the file is deeper.
    masks : (N, h, w) bool, one per target.
    frame_map : the way back to the original.
    """

    grey: Grey
    masks: NDArray[np.bool_]
    frame_map: FrameMap


def decode(record: Record, side: int, targets: Sequence[str]) -> Planes:
    """Read a record's files and resize them to the model side.

    Raises
    ------
    DataError
        If a file cannot be used, a target is not given, a mask is empty or covers another
        field than the image; the message names the file.
    """
    grey, frame_map = decode_image(record, side)
    masks = [decode_mask(record, target, frame_map) for target in targets]
    return Planes(grey, np.stack(masks) if masks else _no_masks(grey), frame_map)


def decode_image(record: Record, side: int) -> tuple[Grey, FrameMap]:
    """Return the resized image (h, w) of a record and its map."""
    grey = to_grey(load_image(record.image))
    frame_map = FrameMap(grey.shape[0], grey.shape[1], side)
    resized = resize_grey(grey, frame_map)
    if resized.min() == resized.max():
        raise DataError(f"{record.image} is of one colour at {side} pixels; leave it out")
    return resized, frame_map


def decode_mask(record: Record, target: str, frame_map: FrameMap) -> NDArray[np.bool_]:
    """Return a resized mask (h, w) of a record: the union of the parts of the target."""
    parts = record.mask_parts(target)
    if not parts:
        raise DataError(f"{record.id} has no {target} mask; it gives {sorted(record.masks)}")
    whole = np.zeros((frame_map.height, frame_map.width), dtype=np.bool_)
    for part in parts:
        whole |= _fitted(load_mask(part), part, frame_map)
    if not whole.any():
        names = ", ".join(str(part) for part in parts)
        raise DataError(f"{names}: the {target} mask has no foreground; leave {record.id} out")
    h, w = frame_map.valid_hw
    small = mask_to_model(whole, frame_map)[:h, :w] > 0
    if not small.any():
        # Too small for a pixel of the model frame: it keeps the one at its middle.
        row, column = np.argwhere(whole).mean(axis=0) / whole.shape
        small[int(row * h), int(column * w)] = True
    return small


def _fitted(mask: NDArray[np.bool_], path: Path, frame_map: FrameMap) -> NDArray[np.bool_]:
    height, width = frame_map.height, frame_map.width
    if mask.shape == (height, width):
        return mask
    ratio = (mask.shape[0] / mask.shape[1]) / (height / width)
    if abs(ratio - 1) > SAME_FIELD:
        raise DataError(
            f"{path} is a mask of {mask.shape[1]}x{mask.shape[0]} pixels for an image of "
            f"{width}x{height}: another field of view; give the mask of this image"
        )
    resized = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(resized, dtype=np.bool_)


def _no_masks(grey: Grey) -> NDArray[np.bool_]:
    return np.zeros((0, *grey.shape), dtype=np.bool_)
