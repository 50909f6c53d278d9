"""From the pixel data of a DICOM file to grey levels as a viewer shows them.

Stored values → modality LUT or rescale (C.11.1) → VOI LUT or first window (C.11.2) → bones
bright: MONOCHROME1 (C.7.6.3.1.2) and presentation LUT shape INVERSE (C.11.6) say the same
thing, so both together invert once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, RLELossless

from adalora_qat.errors import DataError
from adalora_qat.imaging.codestream import coded_size

# Four times the largest detectors and film scans in use (about 5000 × 5000).
MAX_PIXELS = 100_000_000
# Decoders in the order they are tried. Pillow's libjpeg-turbo is the sturdier JPEG decoder
# and refuses 12 bits, which the next one takes. pylibjpeg's RLE panics on damaged data,
# past every `except Exception`; pydicom's, in Python, takes half a second for 4 megapixels.
DECODERS = {
    JPEGBaseline8Bit: ("pillow", "pylibjpeg"),
    JPEGExtended12Bit: ("pillow", "pylibjpeg"),
    RLELossless: ("pydicom",),
}
# A window that leaves fewer grey levels than this missed the image (wrong centre, width 1).
MIN_WINDOWED_LEVELS = 16
# Colour channels of a grey picture differ by this much at most after lossy compression.
GREY_TOLERANCE = 8

Values = NDArray[np.float64]


def stored_values(dataset: Dataset) -> NDArray[np.int32]:
    """Decode the pixel data: (H, W) stored values, free of overlay bits, sign resolved.

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
        raise DataError("a palette or several channels of colour, which a radiograph has not")
    pixels = _decode(dataset)
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
    inside = ~_padding(dataset, stored)
    if not inside.any():
        raise DataError("every pixel is padding; leave it out")
    values = _modality(dataset, stored)
    grey, shown_by = _value_of_interest(dataset, values, inside)
    inverted = _is_inverted(dataset)
    if inverted:
        grey = 1.0 - grey
    grey[~inside] = 0.0
    return np.round(grey * 65535).astype(np.uint16), shown_by, inverted


def _decode(dataset: Dataset) -> NDArray[Any]:
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise DataError(
            f"transfer syntax {syntax.name} cannot be decoded; rewrite it uncompressed"
        ) from error
    if syntax.is_encapsulated:
        _check_coded_size(dataset)
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


def _check_coded_size(dataset: Dataset) -> None:
    coded = coded_size(get_frame(dataset.PixelData, 0, number_of_frames=1))
    expected = (int(dataset.Rows), int(dataset.Columns))
    if coded is not None and (coded.height, coded.width) != expected:
        raise DataError(
            f"the compressed image claims {coded.height}x{coded.width} pixels, the header "
            f"{expected[0]}x{expected[1]}; damaged"
        )


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
        raise DataError(f"{bits} bits stored of {allocated} allocated, which cannot be; damaged")
    signed = dataset.get("PixelRepresentation") == 1
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated and not signed:
        # The stream has its own precision, and nothing above it.
        return pixels.astype(np.int32)
    values = (pixels.astype(np.int32) >> low) & ((1 << bits) - 1)
    if signed:
        values -= (values >> (bits - 1)) << bits
    return np.asarray(values)


def _padding(dataset: Dataset, stored: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Find pixels outside the collimator that the file marks as not part of the image."""
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
    dataset: Dataset, values: Values, inside: NDArray[np.bool_]
) -> tuple[Values, str]:
    if dataset.get("VOILUTSequence"):
        shown, table = _look_up(dataset, dataset.VOILUTSequence[0], values)
        grey = (shown - table.min()) / max(float(np.ptp(table)), 1.0)
        if _has_levels(grey, values, inside):
            return grey, "VOI LUT"
    window = _window(dataset)
    if window is not None:
        grey = _windowed(values, *window, str(dataset.get("VOILUTFunction") or "LINEAR"))
        if _has_levels(grey, values, inside):
            return grey, "window"
    low, high = _range(dataset, values[inside])
    return np.clip((values - low) / max(high - low, 1e-9), 0, 1), "full range"


def _has_levels(grey: Values, values: Values, inside: NDArray[np.bool_]) -> bool:
    """Tell whether a mapping kept the picture: enough levels, or all that there were."""
    kept, given = (np.unique(array[inside][::7]).size for array in (grey, values))
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
