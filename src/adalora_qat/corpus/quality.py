"""The quality gate: what is wrong with an image or its masks, in words.

Nothing is repaired and nothing is deleted; a record with a finding goes to quarantine with
the reason. Figures in the comments were measured on 885 public radiographs (JSRT, Shenzhen,
COVID-19 Radiography, COVID-QU-Ex), seven of which are blown out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from adalora_qat.config import Count, Fraction, Positive, Section
from adalora_qat.corpus.alignment import edge_agreement
from adalora_qat.corpus.mask_codes import EncodedRecord
from adalora_qat.corpus.materialise import needs_conversion, read_pixels
from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError
from adalora_qat.imaging.geometry import to_grey_uint8
from adalora_qat.imaging.image_file import load_mask

Mask = NDArray[np.bool_]
Range = tuple[Fraction, Fraction]

# Kinds whose empty mask says something: looked, and found none.
LESIONS = ("infection", "pneumothorax")
# Grey levels within this of black or white, of 255, count as clipped.
CLIP_MARGIN = 2
# The part of each side that the image's centre takes: inside the collimator and any frame
# or label, it always holds both lungs and the spine between them.
CENTRE = 0.6


class QualityLimits(Section):
    """Thresholds of the gate; the comment under each says where it comes from."""

    min_side: Count = 64
    # A lung is then about 20 px wide, and one pixel of its contour 5 % of its Dice.
    max_pixels: Count = 100_000_000
    # Four times the largest detectors (5000 × 5000); more is a broken header or a bomb.
    max_aspect: Positive = 2.5
    # Chest films are 0.7–1.3, whole-body films of infants about 2.
    min_centre_range: Fraction = 0.1
    # 5th to 95th percentile of the centre. Blown out: at most 0.03; all others: from 0.19.
    min_levels: Count = 32
    # Grey levels in use. Sound images: from 138; posterised ones show steps as edges.
    max_white: Fraction = 0.5
    # Share clipped to white. Sound: up to 0.15 (burnt-in white margins).
    max_black: Fraction = 0.75
    # Share clipped to black. Sound: up to 0.18; padding a film to a square adds 0.4.
    max_aspect_difference: Fraction = 0.02
    # Of image and mask. Two sizes are allowed (299 and 256 px in one public set); another
    # shape is another frame. 2 % is one pixel at 50.
    lung_area: Range = (0.03, 0.65)
    # Share of the image; seen 0.08–0.52. One lung alone of the smallest would be 0.04.
    one_lung_area: Range = (0.01, 0.35)
    # Seen 0.07–0.25; a collapsed lung is a fraction of that.
    heart_area: Range = (0.01, 0.3)
    # Seen 0.06–0.14.
    lesion_area: Range = (0.0, 0.5)
    # No more than both lungs usually take; seen up to 0.37.
    min_lesion_inside: Fraction = 0.5
    # Share of a lesion inside the lung mask: they are drawn apart and differ at the rim.
    min_edge_agreement: Annotated[float, Field(ge=0, le=1)] = 0.45
    # Share of a lung contour with its dark-to-bright edge within 2.3 % of the side. True
    # masks: from 0.50. Masks of another patient: 73 % lie below 0.45, shifted by 5 % of
    # the side: 74 %, by 8 %: 92 %, upside down: 90 %.


@dataclass(frozen=True)
class Finding:
    """One objection: a short code for counting, and the reason in words."""

    code: str
    reason: str


def inspect(
    record: Record, limits: QualityLimits | None = None, pixels: NDArray[Any] | None = None
) -> list[Finding]:
    """Look at a record's image and masks; return every objection, none for a sound record.

    Never raises for what is in a file: a file that cannot be read is a finding.

    Parameters
    ----------
    pixels : the image, (H, W) or (H, W, 3), if the caller has read it already.
    """
    limits = limits or QualityLimits()
    if pixels is None:
        try:
            pixels = read_pixels(record.image)
        except DataError as error:
            return [Finding("image_unreadable", str(error))]
    shape = list(_check_shape(pixels, limits))
    if shape:
        return shape
    try:
        grey = _as_shown(record, pixels)
    except DataError as error:
        return [Finding("image_unreadable", str(error))]
    found = list(_check_grey(grey, limits))
    masks: dict[str, Mask] = {}
    for kind, mask in _read_masks(record):
        if isinstance(mask, Finding):
            found.append(mask)
            continue
        objections = list(_check_mask(kind, mask, grey.shape, limits))
        found += objections
        if not objections:
            masks[kind] = mask
    if not found:
        found = list(_check_together(grey, masks, limits))
    return found


def _as_shown(record: Record, pixels: NDArray[Any]) -> NDArray[np.uint8]:
    # A DICOM or raw image says what is black and white; stretching it from its darkest to
    # its brightest pixel, as the depth of a 16-bit file has to be guessed, would hide that
    # it is blown out.
    if needs_conversion(record.image) and pixels.dtype == np.uint16:
        return np.asarray((pixels + np.uint32(128)) // 257, dtype=np.uint8)
    return to_grey_uint8(pixels)


def _check_shape(pixels: NDArray[Any], limits: QualityLimits) -> Iterator[Finding]:
    height, width = pixels.shape[:2]
    if min(height, width) < limits.min_side or height * width > limits.max_pixels:
        yield Finding(
            "image_size",
            f"{height}x{width} pixels; a radiograph here has sides from {limits.min_side} and "
            f"at most {limits.max_pixels} pixels",
        )
    elif max(height, width) > limits.max_aspect * min(height, width):
        yield Finding(
            "image_aspect",
            f"{height}x{width} pixels: one side is more than {limits.max_aspect} times the other",
        )


def _check_grey(grey: NDArray[np.uint8], limits: QualityLimits) -> Iterator[Finding]:
    shares = np.bincount(grey.ravel(), minlength=256) / grey.size
    levels = int(np.count_nonzero(shares))
    low, middle, high = _percentiles(_centre(grey), (0.05, 0.5, 0.95))
    clipped = {
        "white": (shares[-1 - CLIP_MARGIN :].sum(), limits.max_white),
        "black": (shares[: 1 + CLIP_MARGIN].sum(), limits.max_black),
    }
    if levels == 1:
        yield Finding("image_constant", f"every pixel has the grey level {grey.flat[0]}")
    elif high - low < limits.min_centre_range:
        state = "blown out" if middle > 0.9 else "black" if middle < 0.1 else "blank"
        code = {"blown out": "image_blown_out"}.get(state, "image_blank")
        yield Finding(
            code,
            f"{state}: the centre spans {high - low:.3f} of the grey scale around {middle:.2f} "
            f"(a radiograph at least {limits.min_centre_range})",
        )
    elif levels < limits.min_levels:
        yield Finding(
            "image_levels", f"only {levels} grey levels (at least {limits.min_levels} expected)"
        )
    else:
        for name, (share, limit) in clipped.items():
            if share > limit:
                yield Finding(
                    f"image_{name}",
                    f"{share:.0%} of the image is clipped to {name} (> {limit:.0%})",
                )


def _percentiles(grey: NDArray[np.uint8], shares: tuple[float, ...]) -> NDArray[np.float64]:
    """Return grey levels in [0, 1] below which these shares lie, by counting."""
    below = np.cumsum(np.bincount(grey.ravel(), minlength=256)) / grey.size
    return np.searchsorted(below, shares) / 255


def _centre(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = grey.shape
    top, left = (round(length * (1 - CENTRE) / 2) for length in (height, width))
    return grey[top : height - top, left : width - left]


def _read_masks(record: Record) -> Iterator[tuple[str, Mask | Finding]]:
    codes = record.codes if isinstance(record, EncodedRecord) else {}
    for kind in (*record.masks, *codes):
        try:
            mask = codes[kind].decode() if kind in codes else load_mask(record.masks[kind])
        except DataError as error:
            yield kind, Finding("mask_unreadable", f"{kind}: {error}")
        else:
            yield kind, mask


def _check_mask(
    kind: str, mask: Mask, image_shape: tuple[int, ...], limits: QualityLimits
) -> Iterator[Finding]:
    height, width = image_shape
    ratio = (mask.shape[0] * width) / (mask.shape[1] * height)
    if abs(ratio - 1) > limits.max_aspect_difference:
        yield Finding(
            "mask_frame",
            f"{kind}: mask of {mask.shape[0]}x{mask.shape[1]} pixels on an image of "
            f"{height}x{width}, another shape of frame",
        )
        return
    if not mask.any():
        if kind not in LESIONS:
            yield Finding("mask_empty", f"{kind}: mask without foreground")
        return
    area = float(mask.mean())
    low, high = _area_limits(kind, limits)
    if not low <= area <= high:
        yield Finding(
            "mask_area",
            f"{kind}: mask covers {area:.1%} of the image (plausible: {low:.0%} to {high:.0%})",
        )


def _area_limits(kind: str, limits: QualityLimits) -> Range:
    if kind in LESIONS:
        return limits.lesion_area
    one_lung = limits.one_lung_area
    ranges = {"lung": limits.lung_area, "left_lung": one_lung, "right_lung": one_lung}
    return ranges.get(kind, limits.heart_area)


def _check_together(
    grey: NDArray[np.uint8], masks: Mapping[str, Mask], limits: QualityLimits
) -> Iterator[Finding]:
    """Check the masks against each other and the lungs against the image."""
    if "left_lung" in masks and "right_lung" in masks:
        left, right = (_mean_column(masks[kind]) for kind in ("left_lung", "right_lung"))
        if left <= right:
            yield Finding(
                "mask_sides",
                "the left lung's mask lies left of the right one's in the image; the patient's "
                "left is on the right: swapped masks or a mirrored image",
            )
    lung = _lungs(masks, grey.shape)
    if lung is None:
        return
    for kind in LESIONS:
        if kind in masks and masks[kind].any():
            lesion = _resized(masks[kind], grey.shape)
            inside = float((lesion & lung).sum() / max(lesion.sum(), 1))
            if inside < limits.min_lesion_inside:
                yield Finding("mask_outside_lung", f"{kind}: {inside:.0%} of it is in the lungs")
    agreement = edge_agreement(grey, lung)
    if agreement < limits.min_edge_agreement:
        yield Finding(
            "mask_misaligned",
            f"lung: {agreement:.0%} of the contour has an edge of the image near it (at least "
            f"{limits.min_edge_agreement:.0%}): shifted, of another patient, or image inverted",
        )


def _lungs(masks: Mapping[str, Mask], shape: tuple[int, ...]) -> Mask | None:
    parts = [masks[kind] for kind in ("lung", "left_lung", "right_lung") if kind in masks]
    if not parts:
        return None
    united: Mask = np.any([_resized(part, shape) for part in parts], axis=0)
    return united


def _resized(mask: Mask, shape: tuple[int, ...]) -> Mask:
    if mask.shape == shape:
        return mask
    height, width = shape
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def _mean_column(mask: Mask) -> float:
    """Return the mean column of the foreground as a share of the width."""
    columns = mask.sum(axis=0)
    return float((columns * np.arange(columns.size)).sum() / columns.sum() / columns.size)
