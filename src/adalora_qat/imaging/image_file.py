"""Reading image files at their full depth, or saying why not.

NumPy and Pillow only: the deployed runtime reads its images here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from adalora_qat.errors import DataError

# Formats with a signature and a plain decoder; Pillow's others can start programs (EPS).
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "PPM", "WEBP", "GIF", "JPEG2000")


def load_image(path: Path) -> NDArray[Any]:
    """Read an image file at its full depth, upright as its EXIF orientation says.

    Returns
    -------
    (H, W) or (H, W, 3); uint8 or uint16, or int32/float32 where the file holds such.
    Transparency is laid over black, the colour of air round a patient.

    Raises
    ------
    DataError
        If the file is missing, truncated, not an image, of several pages, or of one colour.
    """
    pixels = _read(path)
    if pixels.size == 0 or pixels.min() == pixels.max():
        raise DataError(f"{path} is an image of one colour; give a radiograph")
    return pixels


def load_mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask file: foreground is above half of its largest value.

    Half of the largest value reads 0/1, 0/255 and 16-bit masks and those with JPEG ripples.
    A mask without foreground comes back all False.

    Raises
    ------
    DataError
        If the file is missing, truncated or not an image.
    """
    pixels = _read(path)
    values = pixels.max(axis=2) if pixels.ndim == 3 else pixels
    largest = values.max(initial=0)
    foreground: NDArray[np.bool_] = values > largest / 2 if largest > 0 else values > 0
    return foreground


def _read(path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise DataError(f"image {path} does not exist; check the path")
    try:
        with Image.open(path, formats=FORMATS) as image:
            pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            if pages == 1:
                _check_ending(path, image.format)
                return _pixels(path, image)
    except DataError:
        raise
    except Exception as error:  # hostile bytes make decoders raise anything at all
        raise DataError(
            f"{path} cannot be read as an image ({_reason(error)}); it is truncated, damaged "
            "or not an image: replace it or leave it out"
        ) from error
    raise DataError(f"{path} has {pages} pages; save the one page that is meant on its own")


def _pixels(path: Path, image: Image.Image) -> NDArray[Any]:
    deep = _deep_colour(path, image)
    return _upright_pixels(image) if deep is None else deep


def picture_pixels(image: Image.Image) -> NDArray[Any]:
    """Return the pixels of a picture in memory as ``load_image`` returns those of a file.

    Raises
    ------
    DataError
        If it cannot be decoded, or is of several pages.
    """
    if getattr(image, "n_frames", 1) != 1 and image.format != "MPO":
        raise DataError("a PIL image of several pages; give the one page that is meant")
    try:
        return _upright_pixels(image)
    except Exception as error:  # opened, but not decoded yet: bytes can be anything
        raise DataError(f"the PIL image cannot be decoded ({_reason(error)})") from error


def _upright_pixels(image: Image.Image) -> NDArray[Any]:
    upright = ImageOps.exif_transpose(image)
    mode = upright.mode
    if mode == "1":
        return np.asarray(upright.convert("L"))
    if mode == "L" or mode == "RGB":
        return np.array(upright)
    if mode.startswith("I;16"):
        return np.asarray(upright).astype(np.uint16)
    if mode in ("I", "F"):
        return np.array(upright)
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in upright.info:
        colour = upright.convert("RGBA")
        black = Image.new("RGBA", colour.size, (0, 0, 0, 255))
        return np.asarray(Image.alpha_composite(black, colour).convert("RGB"))
    return np.asarray(upright.convert("RGB"))


def _deep_colour(path: Path, image: Image.Image) -> NDArray[np.uint16] | None:
    # Pillow keeps only the high byte of 16-bit colour. Its unpackers for the two byte orders
    # read one byte of each pair, so that two decodings give both halves.
    tiles: list[Any] = getattr(image, "tile", [])
    rawmodes = [str(tile[3][0] if isinstance(tile[3], tuple) else tile[3]) for tile in tiles]
    if not any(";16" in rawmode for rawmode in rawmodes) or image.mode.startswith(("I", "F")):
        return None
    channels = rawmodes[0].partition(";")[0]
    if channels not in ("RGB", "RGBX") or any(raw[-1] not in "BLN" for raw in rawmodes):
        raise DataError(
            f"{path} has 16 bits a channel in mode {channels}; save it as 16-bit grey without alpha"
        )
    big, little = (_with_order(path, channels, order) for order in "BL")
    high, low = (little, big) if _stored_little(image, rawmodes[0]) else (big, little)
    return high.astype(np.uint16) * np.uint16(256) + low


def _with_order(path: Path, channels: str, order: str) -> NDArray[np.uint8]:
    with Image.open(path, formats=FORMATS) as image:
        raw = f"{channels};16{order}"
        tiles: list[Any] = getattr(image, "tile", [])
        for index, tile in enumerate(tiles):
            args = (raw, *tile[3][1:]) if isinstance(tile[3], tuple) else raw
            tiles[index] = tile._replace(args=args)
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def _stored_little(image: Image.Image, rawmode: str) -> bool:
    # "N" is the order of this machine; NumPy knows it.
    return rawmode[-1] == "L" or (rawmode[-1] == "N" and bool(np.little_endian))


def _check_ending(path: Path, kind: str | None) -> None:
    # Pillow is content with a PNG that ends anywhere after its last pixel; a file cut there
    # has still lost its checksum, and where else it is damaged nobody can say.
    if kind != "PNG":
        return
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - 4096))
        ended = b"IEND\xaeB`\x82" in handle.read()
    if not ended:
        raise DataError(f"{path} is truncated (no end-of-image mark): copy it again")


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
