"""Reading image files at their full depth, or saying why not.

The deployed runtime reads its images here. How many pixels a file holds is known before it is
decoded. Most memory while one is read, bytes a pixel: 4 for 8-bit grey, 8 for 16-bit grey, 11
for DICOM, 18 for colour, 26 with transparency.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from adalora_qat.errors import DataError, printable
from adalora_qat.imaging.integrity import (
    check_j2k,
    check_jpeg,
    check_scans,
    check_strips,
    first_line,
    refusing,
    warnings_heard,
)
from adalora_qat.imaging.memory_file import File, source_of

# Formats with a signature and a plain decoder; Pillow's others can start programs (EPS).
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "PPM", "WEBP", "GIF", "JPEG2000")
# Four times the largest detectors and scans in use (about 5000 × 5000).
MAX_PIXELS = 100_000_000
# Formats that Pillow takes as JPEG: several pictures in one file are one with thumbnails.
_JPEG, _PICTURES = ("JPEG", "MPO"), "MPO"
_UNREADABLE = (
    " cannot be read as an image ({}); it is truncated, damaged or not an image: replace it or "
    "leave it out"
)
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
# Rows of a colour image that are converted at a time.
_ROWS = 256


def load_image(path: File, *, max_pixels: int = MAX_PIXELS, lenient: bool = False) -> NDArray[Any]:
    """Read an image file at its full depth, upright as its EXIF orientation says.

    Parameters
    ----------
    max_pixels : larger images are refused by what their header says, before decoding.
    lenient : take what the decoder makes of a file that is cut or damaged, where it makes
        anything; the rest of the image may be grey or displaced.

    Returns
    -------
    (H, W) or (H, W, 3); uint8 or uint16, or int32/float32 where the file holds such.
    Transparency is laid over black, the colour of air round a patient.

    Raises
    ------
    DataError
        If the file is missing, truncated, damaged, too large, not an image, of several pages,
        or of one colour.
    """
    pixels = _read(path, max_pixels, lenient)
    if pixels.size == 0 or pixels.min() == pixels.max():
        raise DataError(f"{printable(path)} is an image of one colour; give a radiograph")
    return pixels


def load_mask(
    path: File, *, max_pixels: int = MAX_PIXELS, lenient: bool = False
) -> NDArray[np.bool_]:
    """Read a mask file: foreground is above half of its largest value.

    Half of the largest value reads 0/1, 0/255 and 16-bit masks and those with JPEG ripples.
    A mask without foreground comes back all False.

    Parameters
    ----------
    max_pixels, lenient : as for ``load_image``.

    Returns
    -------
    (H, W) bool.

    Raises
    ------
    DataError
        If the file is missing, truncated, damaged, too large or not an image.
    """
    pixels = _read(path, max_pixels, lenient)
    values = pixels.max(axis=2) if pixels.ndim == 3 else pixels
    largest = values.max(initial=0)
    foreground: NDArray[np.bool_] = values > largest / 2 if largest > 0 else values > 0
    return foreground


def check_readable(path: File) -> int:
    """Return the size of a file in bytes, or say why it cannot be read.

    Raises
    ------
    DataError
        If there is none, it is something else than a file, or may not be read.
    """
    name = printable(path)
    try:
        found = path.stat()
        if stat.S_ISREG(found.st_mode):
            with path.open("rb"):
                return found.st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"image {name} does not exist; check the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{name} cannot be read ({reason}); check its permissions and its name, or leave it out"
        ) from error
    kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
    raise DataError(f"{name} is {kind}; give an image file")


def check_pixel_count(height: int, width: int, max_pixels: int) -> None:
    """Refuse an image that is larger than a radiograph can be.

    Raises
    ------
    DataError
        With both numbers.
    """
    if not 0 < height * width <= max_pixels:
        raise DataError(
            f"{height}x{width} pixels, which no radiograph has (the limit is {max_pixels}); make "
            "it smaller, or raise max_pixels (--max-pixels)"
        )


def _read(path: File, max_pixels: int, lenient: bool) -> NDArray[Any]:
    size = check_readable(path)
    with refusing(path, _UNREADABLE), _opened(path, lenient) as image:
        check_pixel_count(image.height, image.width, max_pixels)
        if image.format in _JPEG:
            check_scans(path.read_bytes())
        pages = 1 if image.format == _PICTURES else getattr(image, "n_frames", 1)
        if pages > 1:
            raise DataError(f"{pages} pages in one file; save the one that is meant on its own")
        if not lenient:
            _check_whole(path, image, size)
        return _pixels(path, image)


@contextmanager
def _opened(path: File, lenient: bool = True) -> Iterator[Image.Image]:
    """Open with the limit of this module and not Pillow's, which is one for the whole process."""
    with warnings_heard() as said:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(_ended(path) if lenient else source_of(path), formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        if said and not lenient:
            raise DataError(f"damaged ({first_line(said[0])}); copy it again or leave it out")
        yield image


def _ended(path: File) -> Path | BytesIO:
    """Return a file, with the mark of its end if it is a JPEG: libjpeg then decodes what is there.

    Pillow refuses a JPEG that is cut; the switch against it is one for the whole process.
    """
    with path.open("rb") as handle:
        if handle.read(len(_JPEG_START)) != _JPEG_START:
            return source_of(path)
        handle.seek(0)
        return BytesIO(handle.read() + _JPEG_END)


def _check_whole(path: File, image: Image.Image, size: int) -> None:
    """Refuse a file that is cut or damaged, where its format lets that be known."""
    if image.format == "PNG":
        # Pillow passes over the checksums of pixels unless it is asked, and over the end.
        with _opened(path) as again:
            again.verify()
        with path.open("rb") as handle:
            handle.seek(max(0, size - 4096))
            if _PNG_END not in handle.read():
                raise DataError("truncated (no end-of-image mark); copy it again")
    elif image.format in _JPEG:
        check_jpeg(path.read_bytes(), pictures=image.format == _PICTURES)
    elif image.format == "JPEG2000":
        check_j2k(path.read_bytes())
    elif image.format == "TIFF":
        check_strips(image, size)


def _pixels(path: File, image: Image.Image) -> NDArray[Any]:
    deep = _deep_colour(path, image)
    return _upright_pixels(image) if deep is None else deep


def picture_pixels(image: Image.Image, *, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """Return the pixels of a picture in memory as ``load_image`` returns those of a file.

    Raises
    ------
    DataError
        If it cannot be decoded, is too large, or is of several pages.
    """
    check_pixel_count(image.height, image.width, max_pixels)
    if getattr(image, "n_frames", 1) != 1 and image.format != "MPO":
        raise DataError("a PIL image of several pages; give the one page that is meant")
    try:
        return _upright_pixels(image)
    except Exception as error:  # opened, but not decoded yet: bytes can be anything
        raise DataError(f"the PIL image cannot be decoded ({first_line(error)})") from error


def _upright_pixels(image: Image.Image) -> NDArray[Any]:
    # Transposing copies, and most files have nothing to transpose.
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    upright = ImageOps.exif_transpose(image) if turned else image
    mode = upright.mode
    if mode == "1":
        return np.asarray(upright.convert("L"))
    if mode == "L":
        return np.array(upright)
    if mode.startswith("I;16"):
        return np.asarray(upright).astype(np.uint16)
    if mode in ("I", "F"):
        return np.array(upright)
    return _colour(upright)


def _colour(image: Image.Image) -> NDArray[np.uint8]:
    """Return (H, W, 3), transparency over black, converted some rows at a time to save memory."""
    transparent = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, _ROWS):
        strip = image.crop((0, top, image.width, min(top + _ROWS, image.height)))
        if transparent:
            strip = strip.convert("RGBA")
            black = Image.new("RGBA", strip.size, (0, 0, 0, 255))
            strip = Image.alpha_composite(black, strip)
        pixels[top : top + _ROWS] = np.asarray(strip.convert("RGB"))
    return pixels


def _deep_colour(path: File, image: Image.Image) -> NDArray[np.uint16] | None:
    # Pillow keeps only the high byte of 16-bit colour. Its unpackers for the two byte orders
    # read one byte of each pair, so that two decodings give both halves.
    tiles: list[Any] = getattr(image, "tile", [])
    rawmodes = [str(tile[3][0] if isinstance(tile[3], tuple) else tile[3]) for tile in tiles]
    if not any(";16" in rawmode for rawmode in rawmodes) or image.mode.startswith(("I", "F")):
        return None
    channels = rawmodes[0].partition(";")[0]
    if channels not in ("RGB", "RGBX") or any(raw[-1] not in "BLN" for raw in rawmodes):
        raise DataError(
            f"16 bits a channel in mode {channels}; save it as 16-bit grey without alpha"
        )
    big, little = (_with_order(path, channels, order) for order in "BL")
    high, low = (little, big) if _stored_little(image, rawmodes[0]) else (big, little)
    return high.astype(np.uint16) * np.uint16(256) + low


def _with_order(path: File, channels: str, order: str) -> NDArray[np.uint8]:
    with _opened(path) as image:
        raw = f"{channels};16{order}"
        tiles: list[Any] = getattr(image, "tile", [])
        for index, tile in enumerate(tiles):
            args = (raw, *tile[3][1:]) if isinstance(tile[3], tuple) else raw
            tiles[index] = tile._replace(args=args)
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def _stored_little(image: Image.Image, rawmode: str) -> bool:
    # "N" is the order of this machine; NumPy knows it.
    return rawmode[-1] == "L" or (rawmode[-1] == "N" and bool(np.little_endian))
