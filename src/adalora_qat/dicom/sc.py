"""The overlay as a Secondary Capture, for archives and viewers that show no segmentation."""

from __future__ import annotations

import numpy as np
from highdicom.sc import SCImage
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom import uid

from adalora_qat.dicom import codes
from adalora_qat.dicom.findings import Findings, Segment
from adalora_qat.dicom.identity import (
    NOT_FOR_CLINICAL_USE,
    Described,
    contributing,
    described,
    equipment,
)
from adalora_qat.dicom.place import Place
from adalora_qat.dicom.seg import COLOURS
from adalora_qat.dicom.source import Source
from adalora_qat.imaging.geometry import to_grey_uint8

_OPACITY = 0.35
# As large as screens show it; the SEG holds the exact masks.
LONGEST_SIDE = 1600


def secondary_capture(
    source: Source,
    findings: Findings,
    model: Described,
    place: Place,
    image: NDArray[np.generic],
) -> SCImage:
    """Return a picture of the segments over the radiograph, with its measures in words.

    Parameters
    ----------
    image : (H, W), the radiograph as it was segmented.
    """
    header = source.header
    picture = np.asarray(drawn(image, findings))
    made = SCImage(
        pixel_array=picture,
        photometric_interpretation="YBR_FULL_422",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),
        study_instance_uid=header.StudyInstanceUID,
        patient_id=header.PatientID,
        patient_name=header.PatientName,
        patient_birth_date=header.PatientBirthDate,
        patient_sex=header.PatientSex,
        accession_number=header.AccessionNumber,
        study_id=header.StudyID,
        study_date=header.StudyDate,
        study_time=header.StudyTime,
        referring_physician_name=header.ReferringPhysicianName,
        specific_character_set=header.get("SpecificCharacterSet"),
        transfer_syntax_uid=uid.JPEGBaseline8Bit,
        series_description=described("Overlay"),
        contributing_equipment=contributing(model),
        coding_schemes=codes.scheme(),
        **equipment(model),
        **place.arguments(),
    )
    made.copy_patient_and_study_information(header)
    # The constructor wants an orientation; what the source does not say is not known.
    made.PatientOrientation = header.get("PatientOrientation") or ""
    made.Laterality = header.get("Laterality") or ""
    made.DerivationDescription = f"Segments drawn over the radiograph, {NOT_FOR_CLINICAL_USE}"
    burned_in = header.get("BurnedInAnnotation")
    if burned_in in ("YES", "NO"):
        made.BurnedInAnnotation = burned_in
    return made


def drawn(image: NDArray[np.generic], findings: Findings) -> Image.Image:
    """Return the radiograph with its segments in colour and the measures as text, RGB."""
    grey = to_grey_uint8(image)
    size = _shown(grey.shape[1], grey.shape[0])
    small = Image.fromarray(grey).resize(size, Image.Resampling.BOX)
    picture = np.repeat(np.asarray(small)[:, :, None], 3, axis=2).astype(np.float32)
    lines = []
    for segment in findings.segments:
        colour = COLOURS[(segment.number - 1) % len(COLOURS)]
        mask = Image.fromarray(segment.mask).resize(size, Image.Resampling.NEAREST)
        inside = np.asarray(mask)
        picture[inside] += _OPACITY * (np.array(colour, np.float32) - picture[inside])
        lines.append((_line(segment), colour))
    white = (255, 255, 255)
    for quantity in findings.quantities:
        if quantity.value is not None:
            text = f"{codes.label(quantity.name)} {quantity.value:.3g} {quantity.unit}".rstrip()
        else:
            text = f"{codes.label(quantity.name)} withheld: {', '.join(quantity.withheld)}"
        lines.append((codes.plain(text), white))
    lines += [(codes.plain(message), (255, 220, 80)) for _, message in findings.quality]
    lines.append((f"{NOT_FOR_CLINICAL_USE} - automatic", white))
    overlay = Image.fromarray(picture.astype(np.uint8))
    pen, height = ImageDraw.Draw(overlay), max(10, overlay.height // 55)
    font = ImageFont.load_default(height)
    for row, (text, colour) in enumerate(lines):
        place = (height // 2, height // 2 + row * (height + 4))
        pen.text(place, text, fill=colour, font=font, stroke_width=2, stroke_fill=(0, 0, 0))
    return overlay


def _line(segment: Segment) -> str:
    words = codes.label(segment.name)
    if segment.area_mm2 is not None:
        words += f" {segment.area_mm2 / 100:.1f} cm2"
    return words if segment.expected_iou is None else f"{words}, IoU {segment.expected_iou:.2f}"


def _shown(width: int, height: int) -> tuple[int, int]:
    """Return a size that is even, as chroma of half width wants it, and not too large."""
    scale = min(1.0, LONGEST_SIDE / max(width, height))
    return max(2, round(width * scale) // 2 * 2), max(2, round(height * scale) // 2 * 2)
