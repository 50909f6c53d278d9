"""The quality gate: what is wrong with an image or its masks, in words.

Nothing is repaired and nothing is deleted; a record with an objection goes to quarantine with
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
from adalora_qat.corpus.records import CHEST, Record
from adalora_qat.errors import DataError
from adalora_qat.imaging.geometry import to_grey_uint8
from adalora_qat.imaging.image_file import load_mask

Mask = NDArray[np.bool_]
Range = tuple[Fraction, Fraction]

# Structures whose empty mask says something: somebody looked, and there is none.
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
    # Chest radiographs are 0.7–1.3, whole-body radiographs of infants about 2.
    min_centre_range: Fraction = 0.1
    # 5th to 95th percentile of the centre. Blown out: at most 0.03; all others: from 0.19.
    min_levels: Count = 32
    # Grey levels in use. Sound images: from 138; posterised ones show steps as edges.
    max_white: Fraction = 0.5
    # Share clipped to white. Sound: up to 0.15 (burnt-in white margins).
    max_black: Fraction = 0.75
    # Share clipped to black. Sound: up to 0.18; padding an image to a square adds 0.4.
    max_aspect_difference: Fraction = 0.02
    # Of image and mask. Two sizes are allowed (299 and 256 px in one public set); another
    # shape is another frame. 2 % is one pixel at 50.
    lung_area: Range = (0.03, 0.65)
    # Share of the image; seen 0.08–0.52. One lung alone of the smallest would be 0.04.
    one_lung_area: Range = (0.01, 0.35)
    # Seen 0.07–0.25; a collapsed lung is a fraction of that.
    heart_area: Range = (0.01, 0.3)
    # Seen 0.06–0.14.
    other_area: Range = (0.0, 0.9)
    # Any structure that is not of the chest; more is the background, given as the mask.
    lesion_area: Range = (0.0, 0.5)
    # No more than both lungs usually take; seen up to 0.37.
    min_lesion_inside: Fraction = 0.5
    # Share of a lesion inside the lung mask: the two are drawn separately and differ at the rim.
    min_edge_agreement: Annotated[float, Field(ge=0, le=1)] = 0.45
    # Share of a lung contour with its dark-to-bright edge within 2.3 % of the side. True
    # masks: from 0.50. Masks of another patient: 73 % lie below 0.45, shifted by 5 % of
    # the side: 74 %, by 8 %: 92 %, upside down: 90 %.


@dataclass(frozen=True)
class Objection:
    """One objection: a short code for counting, and the reason in words."""

    code: str
    reason: str


def inspect(
    record: Record, limits: QualityLimits | None = None, pixels: NDArray[Any] | None = None
) -> list[Objection]:
    """Look at a record's image and masks; return every objection, none for a sound record.

    Never raises for what is in a file: a file that cannot be read is an objection.

    Parameters
    ----------
    record : its files are read, masks at their own size.
    limits : thresholds; None takes the defaults.
    pixels : the image, (H, W) or (H, W, 3), bones bright, if the caller has read it already.
    """
    limits = limits or QualityLimits()
    if pixels is None:
        try:
            pixels = read_pixels(record.image)
        except DataError as error:
            return [Objection("image_unreadable", str(error))]
    shape = list(_check_shape(pixels, limits))
    if shape:
        return shape
    try:
        grey = _as_shown(record, pixels)
    except DataError as error:
        return [Objection("image_unreadable", str(error))]
    objections = list(_check_grey(grey, limits))
    masks: dict[str, Mask] = {}
    for structure, mask in _read_masks(record):
        if isinstance(mask, Objection):
            objections.append(mask)
            continue
        against = list(_check_mask(structure, mask, grey.shape, limits))
        objections += against
        if not against:
            masks[structure] = mask
    return objections or list(_check_together(grey, masks, limits))


def _as_shown(record: Record, pixels: NDArray[Any]) -> NDArray[np.uint8]:
    # A DICOM or raw image says what is black and white; stretching it from its darkest to
    # its brightest pixel, as the depth of a 16-bit file has to be guessed, would hide that
    # it is blown out.
    if needs_conversion(record.image) and pixels.dtype == np.uint16:
        return np.asarray((pixels + np.uint32(128)) // 257, dtype=np.uint8)
    return to_grey_uint8(pixels)


def _check_shape(pixels: NDArray[Any], limits: QualityLimits) -> Iterator[Objection]:
    height, width = pixels.shape[:2]
    if min(height, width) < limits.min_side or height * width > limits.max_pixels:
        yield Objection(
            "image_size",
            f"{height}x{width} pixels; a radiograph here has sides from {limits.min_side} and "
            f"at most {limits.max_pixels} pixels",
        )
    elif max(height, width) > limits.max_aspect * min(height, width):
        yield Objection(
            "image_aspect",
            f"{height}x{width} pixels: one side is more than {limits.max_aspect} times the other",
        )


def _check_grey(grey: NDArray[np.uint8], limits: QualityLimits) -> Iterator[Objection]:
    shares = np.bincount(grey.ravel(), minlength=256) / grey.size
    levels = int(np.count_nonzero(shares))
    low, middle, high = _percentiles(_centre(grey), (0.05, 0.5, 0.95))
    clipped = {
        "white": (shares[-1 - CLIP_MARGIN :].sum(), limits.max_white),
        "black": (shares[: 1 + CLIP_MARGIN].sum(), limits.max_black),
    }
    if levels == 1:
        yield Objection("image_constant", f"every pixel has the grey level {grey.flat[0]}")
    elif high - low < limits.min_centre_range:
        state = "blown out" if middle > 0.9 else "black" if middle < 0.1 else "blank"
        code = {"blown out": "image_blown_out"}.get(state, "image_blank")
        yield Objection(
            code,
            f"{state}: the centre spans {high - low:.3f} of the grey scale around {middle:.2f} "
            f"(a radiograph at least {limits.min_centre_range})",
        )
    elif levels < limits.min_levels:
        yield Objection(
            "image_levels", f"only {levels} grey levels (at least {limits.min_levels} expected)"
        )
    else:
        for name, (share, limit) in clipped.items():
            if share > limit:
                yield Objection(
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


def _read_masks(record: Record) -> Iterator[tuple[str, Mask | Objection]]:
    codes = record.codes if isinstance(record, EncodedRecord) else {}
    for name in (*record.masks, *codes):
        try:
            mask = codes[name].decode() if name in codes else load_mask(record.masks[name])
        except DataError as error:
            yield name, Objection("mask_unreadable", f"{name}: {error}")
        else:
            yield name, mask


def _check_mask(
    structure: str, mask: Mask, image_shape: tuple[int, ...], limits: QualityLimits
) -> Iterator[Objection]:
    """Object to a mask's frame, emptiness and area, in this order.

    Parameters
    ----------
    structure : what the mask is of.
    mask : (h, w) bool, at its own size.
    image_shape : (height, width) of its image in pixels.
    limits : see ``QualityLimits``.
    """
    height, width = image_shape
    ratio = (mask.shape[0] * width) / (mask.shape[1] * height)
    if abs(ratio - 1) > limits.max_aspect_difference:
        yield Objection(
            "mask_frame",
            f"{structure}: mask of {mask.shape[0]}x{mask.shape[1]} pixels on an image of "
            f"{height}x{width}, another shape of frame",
        )
        return
    if not mask.any():
        if structure not in LESIONS:
            remedy = "" if structure in CHEST else "; leave it out where the image does not show it"
            yield Objection("mask_empty", f"{structure}: mask without foreground{remedy}")
        return
    area = float(mask.mean())
    low, high = _area_limits(structure, limits)
    if not low <= area <= high:
        yield Objection(
            "mask_area",
            f"{structure}: mask covers {area:.1%} of the image (plausible: {low:.0%} to "
            f"{high:.0%})",
        )


def _area_limits(structure: str, limits: QualityLimits) -> Range:
    if structure in LESIONS:
        return limits.lesion_area
    chest = {
        "lung": limits.lung_area,
        "left_lung": limits.one_lung_area,
        "right_lung": limits.one_lung_area,
        "heart": limits.heart_area,
    }
    return chest.get(structure, limits.other_area)


def _check_together(
    grey: NDArray[np.uint8], masks: Mapping[str, Mask], limits: QualityLimits
) -> Iterator[Objection]:
    """Check the masks against each other and the lungs against the image."""
    if "left_lung" in masks and "right_lung" in masks:
        left, right = (_mean_column(masks[kind]) for kind in ("left_lung", "right_lung"))
        if left <= right:
            yield Objection(
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
                yield Objection("mask_outside_lung", f"{kind}: {inside:.0%} of it is in the lungs")
    agreement = edge_agreement(grey, lung)
    if agreement < limits.min_edge_agreement:
        yield Objection(
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
