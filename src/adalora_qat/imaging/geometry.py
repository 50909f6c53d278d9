"""The one map between an image file and what a model sees, and back.

Frames
------
original : pixels of the file as read, (H, W).
model : an (S, S) square; the longest side of the original becomes S, the rest is padding at
    the right and the bottom. The part that holds the image is the valid extent (h, w).
low resolution : the (L, L) logits of a model; they cover the whole model frame.

Boxes are (x0, y0, x1, y1) in continuous pixels, the origin at the outer corner of the
top-left pixel: an edge at x in the original lies at x·w/W in the model frame, exactly. The
two axes keep their own scale, since h and w are whole pixels. The one exception is drawn from
a true mask for training and evaluation, as SAM and MedSAM draw it: ``mask_box_inclusive``
gives the first and the last pixel, and these numbers enter the model as they are.

NumPy and Pillow only: the deployed runtime stands on this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from adalora_qat.errors import DataError
from adalora_qat.imaging.image_file import load_image, load_mask

__all__ = [
    "Frame",
    "FrameMap",
    "Grey",
    "boxes_to_model",
    "boxes_to_original",
    "check_box",
    "image_to_model",
    "last_pixels",
    "load_image",
    "load_mask",
    "logits_to_original",
    "mask_box_edges",
    "mask_box_inclusive",
    "mask_to_model",
    "resize_grey",
    "to_channels",
    "to_grey",
    "to_grey_float",
    "to_grey_uint8",
    "to_input",
    "unit_range",
    "whole_box",
]

Normalize = Literal["minmax", "imagenet"]
Grey = NDArray[np.uint8] | NDArray[np.uint16]

# Mean and deviation of ImageNet on a 0–1 scale: SAM's own preprocessing (Kirillov et al. 2023).
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's mode "L"
_WIDE = 65535


@dataclass(frozen=True)
class Frame:
    """What a model wants to see: a square of ``side`` pixels, normalised in one way.

    ``minmax`` is MedSAM's (x − min)/(max − min) of each image; ``imagenet`` is SAM's
    (x − mean)/std on a 0–1 scale.
    """

    side: int
    normalize: Normalize = "minmax"

    def __post_init__(self) -> None:
        if self.side < 1:
            raise DataError(f"model side {self.side} must be at least 1 pixel")
        if self.normalize not in ("minmax", "imagenet"):
            raise DataError(f"normalize={self.normalize!r}: choose minmax or imagenet")


@dataclass(frozen=True)
class FrameMap:
    """The map of one image: original (height, width) ↔ model frame of ``side`` pixels."""

    height: int
    width: int
    side: int

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.side) < 1:
            raise DataError(
                f"image of {self.height}x{self.width} pixels cannot be mapped to a side of "
                f"{self.side}: every length must be at least 1"
            )

    @property
    def valid_hw(self) -> tuple[int, int]:
        """Return (h, w), the pixels of the model frame that hold the image."""
        scale = self.side / max(self.height, self.width)
        h, w = (max(1, int(n * scale + 0.5)) for n in (self.height, self.width))
        return h, w

    @property
    def scale_xyxy(self) -> NDArray[np.float64]:
        """Return the factors from original to model frame for (x0, y0, x1, y1)."""
        h, w = self.valid_hw
        x, y = w / self.width, h / self.height
        return np.array([x, y, x, y])


def to_grey(image: NDArray[Any]) -> Grey:
    """Return one channel: uint8 as it is, anything deeper stretched over uint16.

    Stretching a deep image (x − min)/(max − min)·65535 keeps every grey step apart (the
    file's own depth is unknown: 10, 12 and 16 bits all arrive as uint16) and leaves the
    min-max normalisation after it unchanged.

    Parameters
    ----------
    image : (H, W), (H, W, 1), (H, W, 3) or (H, W, 4; alpha ignored), real numbers or bool.

    Raises
    ------
    DataError
        If the shape or dtype is none of these or a value is not finite.
    """
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise DataError(f"image of shape {array.shape}: give (H, W) or (H, W, 3)")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint8:
        if array.ndim == 2:
            return array
        return np.asarray(Image.fromarray(np.ascontiguousarray(array[..., :3])).convert("L"))
    return _stretch(array)


def to_grey_uint8(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Return one channel in 8 bits, for pictures and perceptual hashes, not for models."""
    grey = to_grey(image)
    if grey.dtype == np.uint8:
        return grey.astype(np.uint8, copy=False)
    return np.asarray(grey / 257.0 + 0.5).astype(np.uint8)


def to_grey_float(image: NDArray[Any]) -> NDArray[np.float32]:
    """Return one channel as float32 in [0, 1] of its depth."""
    grey = to_grey(image)
    return np.asarray(grey / np.float32(_depth(grey)), dtype=np.float32)


def resize_grey(grey: Grey, frame_map: FrameMap) -> Grey:
    """Resize one channel to the valid extent (h, w), bilinear, at its own depth.

    8 bits go through Pillow's mode "L" (the published preprocessing, rounding included),
    16 bits through mode "F" and are rounded once.
    """
    h, w = frame_map.valid_hw
    if grey.dtype == np.uint8:
        return np.asarray(Image.fromarray(grey).resize((w, h), Image.Resampling.BILINEAR))
    deep = Image.fromarray(grey.astype(np.float32)).resize((w, h), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(deep) + 0.5, 0, _WIDE).astype(np.uint16)


def unit_range(resized: Grey, frame: Frame) -> NDArray[np.float32]:
    """Bring a resized channel to 0–1: of its own range (minmax) or of its depth (imagenet).

    Raises
    ------
    DataError
        If the image is of one colour.
    """
    low, high = resized.min(), resized.max()
    if low == high:
        raise DataError("the image is of one colour; give a radiograph")
    values = resized.astype(np.float32)
    if frame.normalize == "imagenet":
        values /= np.float32(_depth(resized))
        return values
    values -= np.float32(low)
    values /= np.float32(high) - np.float32(low)
    return values


def to_input(unit: NDArray[np.float32], frame: Frame) -> NDArray[np.float32]:
    """Turn a channel (h, w) in 0–1 into the model's input (3, S, S), padding zero."""
    channels = to_channels(unit, frame)
    return channels if len(channels) == 3 else np.repeat(channels, 3, axis=0)


def to_channels(unit: NDArray[np.float32], frame: Frame) -> NDArray[np.float32]:
    """Return the channels of ``to_input`` that differ: (1, S, S) for minmax, else (3, S, S).

    Raises
    ------
    DataError
        If the channel is larger than the frame.
    """
    h, w = unit.shape
    if max(h, w) > frame.side:
        raise DataError(f"resized image {h}x{w} is larger than the model side {frame.side}")
    channels = unit[None]
    if frame.normalize == "imagenet":
        channels = (unit - IMAGENET_MEAN[:, None, None]) / IMAGENET_STD[:, None, None]
    if h == w == frame.side:
        return channels
    canvas = np.zeros((len(channels), frame.side, frame.side), dtype=np.float32)
    canvas[:, :h, :w] = channels
    return canvas


def image_to_model(image: NDArray[Any], frame: Frame) -> tuple[NDArray[np.float32], FrameMap]:
    """Grey → bilinear resize of the longest side to S → normalise → 3 channels → padding.

    Parameters
    ----------
    image : (H, W) or (H, W, 3), original frame, any depth.

    Returns
    -------
    model_image : (3, S, S) float32.
    frame_map : the way back.

    Raises
    ------
    DataError
        If the image has no such shape, is not finite or is of one colour.
    """
    grey = to_grey(image)
    frame_map = FrameMap(grey.shape[0], grey.shape[1], frame.side)
    return to_input(unit_range(resize_grey(grey, frame_map), frame), frame), frame_map


def mask_to_model(mask: NDArray[Any], frame_map: FrameMap) -> NDArray[np.float32]:
    """Resize a mask (H, W) to the model frame (S, S) by nearest neighbour, padding zero.

    Raises
    ------
    DataError
        If the mask is of another size than the image.
    """
    size = (frame_map.height, frame_map.width)
    if mask.shape != size:
        raise DataError(f"mask of {mask.shape} does not fit the image of {size} pixels")
    h, w = frame_map.valid_hw
    picture = Image.fromarray((mask > 0).astype(np.uint8))
    canvas = np.zeros((frame_map.side, frame_map.side), dtype=np.float32)
    canvas[:h, :w] = np.asarray(picture.resize((w, h), Image.Resampling.NEAREST))
    return canvas


def logits_to_original(
    logits: NDArray[np.floating[Any]], frame_map: FrameMap
) -> NDArray[np.float32]:
    """Bring logits (L, L) of the model frame to the original: crop the padding, bilinear.

    The valid extent may end inside a low-resolution pixel (L < S); the crop keeps its
    fraction, and no padding beyond that pixel is blended in.

    Returns
    -------
    (H, W) float32.
    """
    if logits.ndim != 2 or logits.shape[0] != logits.shape[1]:
        raise DataError(f"logits of shape {logits.shape}: give one square (L, L) map")
    h, w = (n * logits.shape[0] / frame_map.side for n in frame_map.valid_hw)
    cropped = np.ascontiguousarray(logits[: int(np.ceil(h)), : int(np.ceil(w))], dtype=np.float32)
    resized = Image.fromarray(cropped).resize(
        (frame_map.width, frame_map.height), Image.Resampling.BILINEAR, box=(0, 0, w, h)
    )
    return np.asarray(resized)


def boxes_to_model(boxes_xyxy_original: ArrayLike, frame_map: FrameMap) -> NDArray[np.float64]:
    """Map boxes (…, 4) from the original to the model frame; no rounding, no clipping."""
    return np.asarray(boxes_xyxy_original, dtype=np.float64) * frame_map.scale_xyxy


def boxes_to_original(boxes_xyxy_model: ArrayLike, frame_map: FrameMap) -> NDArray[np.float64]:
    """Map boxes (…, 4) from the model frame to the original, to a millionth of a pixel.

    The rounding makes the round trip exact for boxes given in whole or decimal pixels.
    """
    boxes = np.asarray(boxes_xyxy_model, dtype=np.float64) / frame_map.scale_xyxy
    return np.round(boxes, 6)


def mask_box_inclusive(mask: NDArray[Any]) -> NDArray[np.float64]:
    """Return the first and the last pixel of a mask on each axis, as SAM and MedSAM do.

    Parameters
    ----------
    mask : (H, W), bool, or foreground where it is above 0.

    Returns
    -------
    (4,) float64, indices (x_first, y_first, x_last, y_last): a mask one pixel wide has
    x_first = x_last. Training and oracle prompts are made of these numbers; for the edges
    round the pixels, see ``mask_box_edges``.

    Raises
    ------
    DataError
        If the mask has no foreground.
    """
    foreground = mask if mask.dtype == np.bool_ else mask > 0
    rows = np.flatnonzero(foreground.any(axis=1))
    if rows.size == 0:
        raise DataError("the mask has no foreground, so no box can be drawn round it")
    columns = np.flatnonzero(foreground[rows[0] : rows[-1] + 1].any(axis=0))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], dtype=np.float64)


def mask_box_edges(mask: NDArray[Any]) -> NDArray[np.float64]:
    """Return the box round a mask, in continuous pixels: the outer edges of its outer pixels.

    Parameters
    ----------
    mask : (H, W), bool, or foreground where it is above 0.

    Returns
    -------
    (4,) float64, (x0, y0, x1, y1); a mask one pixel wide has x1 = x0 + 1.

    Raises
    ------
    DataError
        If the mask has no foreground.
    """
    box = mask_box_inclusive(mask)
    box[2:] += 1
    return box


def last_pixels(box_xyxy: NDArray[Any]) -> NDArray[np.float64]:
    """Return the outermost pixels inside the edges (4,) of ``mask_box_edges``, (4,), for drawing.

    The far edges become the last pixel that they cut into; never less than the near edges.
    """
    box = np.asarray(box_xyxy, dtype=np.float64)
    return np.concatenate([box[:2], np.maximum(box[:2], np.ceil(box[2:]) - 1)])


def whole_box(height: int, width: int) -> NDArray[np.float64]:
    """Return the box (4,) of a whole image of ``height`` × ``width`` pixels: its outer edges."""
    return np.array([0, 0, width, height], dtype=np.float64)


def check_box(box: ArrayLike, size: tuple[int, int]) -> NDArray[np.float64]:
    """Check one box or several against an image.

    Parameters
    ----------
    box : (4,) or (N, 4), (x0, y0, x1, y1) in pixels of the original, N at least 1.
    size : (H, W) of the image.

    Returns
    -------
    (N, 4) float64.

    Raises
    ------
    DataError
        If there is no box, or one is not four finite numbers, reversed, empty or reaches
        outside the image.
    """
    try:
        boxes = np.atleast_2d(np.asarray(box, dtype=np.float64))
    except (TypeError, ValueError):
        boxes = np.empty((0, 0))
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise DataError(f"box {box!r}: give four finite numbers x0,y0,x1,y1")
    if not len(boxes):
        raise DataError("no box given: a list of boxes needs at least one")
    height, width = size
    for x0, y0, x1, y1 in boxes:
        given = f"box {x0:g},{y0:g},{x1:g},{y1:g}"
        if x1 < x0 or y1 < y0:
            raise DataError(f"{given} is reversed; give x0,y0,x1,y1 with x0 < x1 and y0 < y1")
        if x1 == x0 or y1 == y0:
            raise DataError(f"{given} is empty; give x0,y0,x1,y1 with x0 < x1 and y0 < y1")
        if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
            raise DataError(
                f"{given} reaches outside the image of {width}x{height} pixels (width x height)"
            )
    return boxes


def _stretch(array: NDArray[Any]) -> NDArray[np.uint16]:
    if array.dtype.kind not in "uif":
        raise DataError(f"image of dtype {array.dtype}: give real numbers")
    values = array.astype(np.float64)
    if values.ndim == 3:
        values = values[..., :3] @ _LUMA
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):
        raise DataError("the image holds values that are not finite; repair or leave it out")
    factor = _WIDE / (high - low) if high > low else 0.0
    return ((values - low) * factor + 0.5).astype(np.uint16)


def _depth(grey: NDArray[Any]) -> int:
    return 255 if grey.dtype == np.uint8 else _WIDE
