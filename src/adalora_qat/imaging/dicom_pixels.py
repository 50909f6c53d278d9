"""From the pixel data of a DICOM file to grey levels as a viewer shows them.

Stored values → modality LUT or rescale (C.11.1) → VOI LUT or first window (C.11.2) → bones
bright: MONOCHROME1 (C.7.6.3.1.2) and presentation LUT shape INVERSE (C.11.6) say the same
thing, so both together invert once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from adalora_qat.errors import DataError
from adalora_qat.imaging.codestream import CodedSize, coded_size
from adalora_qat.imaging.integrity import check_j2k, check_jpeg, check_scans

# Which package decodes what, in the order tried, among packages whose licences fit Apache-2.0.
# Pillow's libjpeg-turbo is the sturdiest JPEG decoder and knows 8 bits; OpenJPEG by itself is
# newer than the one inside GDCM.
DECODERS = {
    JPEGBaseline8Bit: ("pillow", "gdcm"),
    JPEGExtended12Bit: ("pillow", "gdcm"),
    JPEGLossless: ("gdcm",),
    JPEGLosslessSV1: ("gdcm",),
    JPEGLSLossless: ("gdcm",),
    JPEGLSNearLossless: ("gdcm",),
    JPEG2000Lossless: ("pylibjpeg",),
    JPEG2000: ("pylibjpeg",),
    HTJ2KLossless: ("pylibjpeg",),
    HTJ2KLosslessRPCL: ("pylibjpeg",),
    HTJ2K: ("pylibjpeg",),
    RLELossless: ("pydicom",),
}
JPEGS = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)
JPEG_LS = (JPEGLSLossless, JPEGLSNearLossless)
# A window that leaves fewer grey levels than this missed the image (wrong centre, width 1).
MIN_WINDOWED_LEVELS = 16
# Colour channels of a grey picture differ by this much at most after lossy compression.
GREY_TOLERANCE = 8
ROWS_AT_ONCE = 64

Values = NDArray[np.float64]


def stored_values(dataset: Dataset, *, lenient: bool = False) -> NDArray[np.int32]:
    """Decode the pixel data: (H, W) stored values, free of overlay bits, sign resolved.

    Parameters
    ----------
    lenient : take what a decoder makes of compressed data that are cut or damaged, and pixel
        data that are too long.

    Raises
    ------
    DataError
        If the file has no pixel data, colour, more than 16 bits, or too few bytes.
    """
    if "PixelData" not in dataset:
        raise DataError("no pixel data in the file; leave it out")
    if int(dataset.get("BitsAllocated") or 0) not in (8, 16):
        raise DataError(f"{dataset.get('BitsAllocated')} bits a pixel; radiographs have 8 or 16")
    samples = int(dataset.get("SamplesPerPixel") or 1)
    if samples not in (1, 3) or "PALETTE" in str(dataset.get("PhotometricInterpretation")):
        raise DataError("a palette or several channels of colour, which no radiograph has")
    pixels = _decode(dataset, lenient)
    if samples == 3:
        return _grey_of(pixels)
    expected = (int(dataset.Rows), int(dataset.Columns))
    if pixels.shape != expected:
        raise DataError(f"pixel data of shape {pixels.shape}, header of {expected}; damaged")
    return _used_bits(dataset, pixels)


def display(dataset: Dataset, stored: NDArray[np.int32]) -> tuple[NDArray[np.uint16], str, bool]:
    """Map stored values to grey levels with bright bones.

    Returns
    -------
    pixels : (H, W) uint16.
    shown_by : "VOI LUT", "window" or "full range".
    inverted : whether stored values were bright for air.
    """
    # Grey is a function of the stored value, of which there are 2¹⁶ at most: a table holds it,
    # and no array of floats has the size of the image.
    low = int(stored.min())
    levels = np.arange(low, int(stored.max()) + 1, dtype=np.int32)
    inside = ~_padding(dataset, levels)
    seen = inside & _occurring(stored, low, levels.size)
    if not seen.any():
        raise DataError("every pixel is padding; leave it out")
    sample = stored.ravel() if inside.all() else stored[inside[stored - low]]
    sampled = _occurring(sample[::7], low, levels.size)
    values = _modality(dataset, levels)
    grey, shown_by = _value_of_interest(dataset, values, seen, sampled)
    inverted = _is_inverted(dataset)
    if inverted:
        grey = 1.0 - grey
    grey[~inside] = 0.0
    table = np.round(grey * 65535).astype(np.uint16)
    shown = np.empty(stored.shape, dtype=np.uint16)
    for rows in _blocks(stored.shape[0]):
        shown[rows] = table[stored[rows] - low]
    return shown, shown_by, inverted


def _blocks(count: int) -> Iterator[slice]:
    """Yield slices of rows: indexing makes eight bytes of each pixel."""
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, count, ROWS_AT_ONCE))


def _occurring(stored: NDArray[np.int32], low: int, count: int) -> NDArray[np.bool_]:
    """Mark which of ``count`` values from ``low`` on occur."""
    found = np.zeros(count, dtype=bool)
    for rows in _blocks(stored.shape[0]):
        found[stored[rows] - low] = True
    return found


def _decode(dataset: Dataset, lenient: bool) -> NDArray[Any]:
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise DataError(
            f"transfer syntax {syntax.name} cannot be decoded; rewrite it uncompressed"
        ) from error
    if syntax.is_encapsulated:
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
        coded = _check_coded_size(dataset, frame)
        if not lenient:
            _check_whole(syntax, frame, coded)
        if syntax == JPEGExtended12Bit and coded is not None and coded.bits > 8:
            return _twelve_bits(dataset, frame)
    elif not lenient:
        _check_length(dataset)
    failures: list[Exception] = []
    for plugin in DECODERS.get(syntax, ("",)):
        try:
            # pydicom clears unused bits as if the stored ones were always the lowest.
            pixels, _ = decoder.as_array(
                dataset,
                index=0,
                decoding_plugin=plugin,
                correct_unused_bits=False,  # type: ignore[arg-type]
            )
            return np.asarray(pixels)
        except Exception as error:  # the next decoder may know better; the first reason is told
            failures.append(error)
    raise failures[0]


def _check_coded_size(dataset: Dataset, frame: bytes) -> CodedSize | None:
    coded = coded_size(frame)
    expected = (int(dataset.Rows), int(dataset.Columns))
    if coded is not None and (coded.height, coded.width) != expected:
        raise DataError(
            f"the compressed image claims {coded.height}x{coded.width} pixels, the header "
            f"{expected[0]}x{expected[1]}; damaged"
        )
    return coded


def _check_whole(syntax: UID, frame: bytes, coded: CodedSize | None) -> None:
    if syntax in DECODERS and syntax != RLELossless and coded is None:
        raise DataError(f"pixel data that are not {syntax.name}; damaged")
    if syntax in JPEGS + JPEG_LS:
        check_scans(frame)
        # libjpeg, which is asked about 8 bits, does not know JPEG-LS or lossless JPEG.
        lossy = coded is not None and syntax in (JPEGBaseline8Bit, JPEGExtended12Bit)
        check_jpeg(frame, bits=coded.bits if lossy and coded is not None else 0)
    elif coded is not None:
        check_j2k(frame)


def _check_length(dataset: Dataset) -> None:
    """Refuse uncompressed pixel data that are too long, but for zeros at the end."""
    count = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel") or 1)
    expected = count * (int(dataset.BitsAllocated) // 8)
    given = dataset.PixelData
    if given[expected:].strip(b"\0"):
        raise DataError(f"{len(given)} bytes of pixel data, the header says {expected}; damaged")


def _twelve_bits(dataset: Dataset, frame: bytes) -> NDArray[np.uint16]:
    """Decode lossy JPEG of 12 bits, for which pydicom does not ask GDCM."""
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((int(dataset.Columns), int(dataset.Rows), 1))
    image.SetDataElement(element)
    grey = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(grey))
    syntax = gdcm.TransferSyntax.GetTSType(str(JPEGExtended12Bit))
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, 12, 11, 0))
    # GDCM hands bytes out as text.
    content = image.GetBuffer().encode("utf-8", "surrogateescape")
    return np.frombuffer(content, "<u2").reshape(int(dataset.Rows), int(dataset.Columns))


def _grey_of(pixels: NDArray[Any]) -> NDArray[np.int32]:
    channels = pixels.astype(np.int32)
    if channels.ndim != 3 or np.ptp(channels, axis=2).max() > GREY_TOLERANCE:
        raise DataError("in colour (a screenshot or a photograph?), which a radiograph is not")
    return np.asarray(channels[..., 1])


def _used_bits(dataset: Dataset, pixels: NDArray[Any]) -> NDArray[np.int32]:
    """Keep the bits from high bit down to stored bits: older files keep overlays above."""
    allocated = int(dataset.BitsAllocated)
    bits = int(dataset.get("BitsStored") or allocated)
    low = int(dataset.get("HighBit", bits - 1)) + 1 - bits
    if not 1 <= bits <= allocated or not 0 <= low <= allocated - bits:
        raise DataError(f"{bits} bits stored of {allocated} allocated is impossible; damaged")
    signed = dataset.get("PixelRepresentation") == 1
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated and not signed:
        # The stream has its own precision, and nothing above it.
        return pixels.astype(np.int32)
    values = pixels.astype(np.int32)
    values >>= low
    values &= (1 << bits) - 1
    if signed:
        # Flipping the sign's bit and subtracting it carries the sign on to the bits above.
        values ^= 1 << (bits - 1)
        values -= 1 << (bits - 1)
    return values


def _padding(dataset: Dataset, stored: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Find values of pixels outside the collimator, which the file marks as not of the image."""
    if dataset.get("PixelPaddingValue") is None:
        return np.zeros(stored.shape, dtype=bool)
    value = int(dataset.PixelPaddingValue)
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else int(limit)))
    return np.asarray((stored >= low) & (stored <= high))


def _modality(dataset: Dataset, stored: NDArray[np.int32]) -> Values:
    if dataset.get("ModalityLUTSequence"):
        return _look_up(dataset, dataset.ModalityLUTSequence[0], stored.astype(np.float64))[0]
    slope = float(dataset.get("RescaleSlope") or 1)
    intercept = float(dataset.get("RescaleIntercept") or 0)
    return np.asarray(stored * slope + intercept, dtype=np.float64)


def _value_of_interest(
    dataset: Dataset, values: Values, seen: NDArray[np.bool_], sampled: NDArray[np.bool_]
) -> tuple[Values, str]:
    """Map values to grey in [0, 1], by the first of the file's mappings that keeps the picture.

    Parameters
    ----------
    dataset : says which mappings there are.
    values : (n,), every stored value there can be, after the modality's mapping.
    seen : (n,), whether a value occurs outside the padding.
    sampled : (n,), whether it occurs in the sample by which a mapping is judged.

    Returns
    -------
    (n,) grey levels, and what mapped them: "VOI LUT", "window" or "full range".
    """
    if dataset.get("VOILUTSequence"):
        shown, table = _look_up(dataset, dataset.VOILUTSequence[0], values)
        grey = (shown - table.min()) / max(float(np.ptp(table)), 1.0)
        if _has_levels(grey, values, sampled):
            return grey, "VOI LUT"
    window = _window(dataset)
    if window is not None:
        grey = _windowed(values, *window, str(dataset.get("VOILUTFunction") or "LINEAR"))
        if _has_levels(grey, values, sampled):
            return grey, "window"
    low, high = _range(dataset, values[seen])
    return np.clip((values - low) / max(high - low, 1e-9), 0, 1), "full range"


def _has_levels(grey: Values, values: Values, sampled: NDArray[np.bool_]) -> bool:
    """Tell whether a mapping kept the picture: enough grey levels, or all that it was given."""
    kept, given = (np.unique(array[sampled]).size for array in (grey, values))
    return kept >= min(MIN_WINDOWED_LEVELS, given)


def _range(dataset: Dataset, values: Values) -> tuple[float, float]:
    # 8 bits are already what a screen shows; deeper values are stretched over their range.
    bits = int(dataset.get("BitsStored") or dataset.BitsAllocated)
    scale = 2**bits - 1
    if bits <= 8 and values.min() >= 0 and values.max() <= scale:
        return 0.0, float(scale)
    return float(values.min()), float(values.max())


def _window(dataset: Dataset) -> tuple[float, float] | None:
    """Return centre and width of the first window, if it is one."""
    try:
        centre, width = (
            float(np.atleast_1d(np.asarray(dataset.get(keyword), dtype=np.float64))[0])
            for keyword in ("WindowCenter", "WindowWidth")
        )
    except (TypeError, ValueError, IndexError):
        return None
    return (centre, width) if np.isfinite(centre) and 0 < width < np.inf else None


def _windowed(values: Values, centre: float, width: float, function: str) -> Values:
    """Apply a window (C.11.2.1.2 and C.11.2.1.3); the result lies in [0, 1]."""
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -500, 500))))
    if function != "LINEAR_EXACT":
        centre, width = centre - 0.5, max(width - 1, 1e-9)
    return np.asarray(np.clip((values - centre) / width + 0.5, 0, 1))


def _look_up(dataset: Dataset, item: Dataset, values: Values) -> tuple[Values, Values]:
    """Map values through a lookup table; return them and the table."""
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries or 65536  # 0 stands for 2¹⁶ (C.11.1.1)
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        data = np.frombuffer(
            data, np.uint8 if bits <= 8 and len(data) < 2 * entries else order + "u2"
        )
    table = np.atleast_1d(np.asarray(data, dtype=np.float64))[:entries]
    if table.size < entries:
        raise DataError(f"a lookup table of {table.size} of {entries} entries; damaged")
    index = np.clip(np.round(values) - first, 0, entries - 1).astype(np.int64)
    return table[index], table


def _is_inverted(dataset: Dataset) -> bool:
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip("\0 ")
    shape = str(dataset.get("PresentationLUTShape") or "").strip("\0 ")
    return photometric == "MONOCHROME1" or shape == "INVERSE"
