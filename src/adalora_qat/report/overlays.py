"""A case as small pictures: a grey JPEG, and one palette PNG for each layer over it."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

# Lightened Okabe–Ito: told apart on a radiograph's greys, and from each other by any reader.
TRUTH_COLOUR = (31, 199, 149)
MODEL_COLOURS = ((86, 180, 233), (245, 166, 35), (226, 135, 186), (240, 228, 66))
FILL_ALPHA, EDGE_ALPHA, DIFFERENCE_ALPHA = 46, 255, 235


def stored_size(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """Return (width, height) of a picture no longer than ``side``; small ones stay."""
    factor = min(1.0, side / max(shape))
    return max(1, round(shape[1] * factor)), max(1, round(shape[0] * factor))


def resized(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a mask, (H, W) bool, at (width, height): pixels are in if half they cover is."""
    picture = Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BOX)
    return np.asarray(picture) >= 0.5


def grey_jpeg(image: NDArray[np.generic], size: tuple[int, int]) -> bytes:
    """Return a grey image as JPEG, windowed for viewing from its 0.5th to its 99.5th percentile.

    Parameters
    ----------
    image : (H, W) of any real type and range.
    size : (width, height) of the picture.
    """
    values = image.astype(np.float32)
    low, high = np.percentile(values, [0.5, 99.5])
    shown = np.clip((values - low) / max(float(high - low), 1e-9), 0, 1) * 255
    picture = Image.fromarray(shown.round().astype(np.uint8))
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=82, optimize=True)
    return buffer.getvalue()


def mask_png(mask: NDArray[np.bool_], colour: tuple[int, int, int]) -> bytes:
    """Return a mask as a palette PNG: a clear inside and an opaque edge three pixels wide.

    Parameters
    ----------
    mask : (H, W) bool.
    colour : red, green, blue, 0 to 255.
    """
    inside = ndimage.binary_erosion(mask, iterations=3, border_value=0)
    index = mask.astype(np.uint8) + (mask & ~inside)
    return _palette_png(index, [colour, colour, colour], [0, FILL_ALPHA, EDGE_ALPHA])


def difference_png(
    first: NDArray[np.bool_],
    second: NDArray[np.bool_],
    size: tuple[int, int],
    first_colour: tuple[int, int, int],
    second_colour: tuple[int, int, int],
) -> bytes:
    """Return the pixels in one mask only, in that mask's colour, each grown by one pixel.

    Computed at the original size and grown after shrinking, so that a difference of one
    pixel can still be seen; the count beside the picture is exact.

    Parameters
    ----------
    first, second : (H, W) bool.
    size : (width, height) of the picture.
    first_colour, second_colour : red, green, blue, 0 to 255.
    """
    index = np.zeros((size[1], size[0]), np.uint8)
    for value, only in ((1, first & ~second), (2, second & ~first)):
        seen = np.asarray(
            Image.fromarray(only.astype(np.float32)).resize(size, Image.Resampling.BOX)
        )
        index[ndimage.binary_dilation(seen > 0)] = value
    colours = [(0, 0, 0), first_colour, second_colour]
    return _palette_png(index, colours, [0, DIFFERENCE_ALPHA, DIFFERENCE_ALPHA])


def _palette_png(
    index: NDArray[np.uint8], colours: Sequence[tuple[int, int, int]], alphas: Sequence[int]
) -> bytes:
    picture = Image.fromarray(index, mode="P")
    picture.putpalette([value for colour in colours for value in colour])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", transparency=bytes(alphas), optimize=True, bits=2)
    return buffer.getvalue()
