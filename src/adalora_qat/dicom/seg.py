"""The masks as a DICOM Segmentation (PS3.3 A.51): a segment a structure, one frame each.

A projection has no plane in the patient: the object holds no frame of reference, no plane, no
position and no size of a pixel, only the reference to the image whose pixels it is aligned with.
"""

from __future__ import annotations

import numpy as np
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription

from adalora_qat.dicom import codes
from adalora_qat.dicom.findings import Findings, Segment
from adalora_qat.dicom.identity import (
    Described,
    algorithm,
    contributing,
    described,
    equipment,
    stable_uid,
)
from adalora_qat.dicom.place import Place
from adalora_qat.dicom.source import Source

# sRGB of the segments in turn; readable over grey.
COLOURS = ((230, 70, 40), (60, 140, 255), (250, 200, 40), (70, 200, 120), (190, 90, 220))


def segmentation(
    source: Source, findings: Findings, model: Described, place: Place
) -> Segmentation:
    """Return the segments as a SEG.

    Parameters
    ----------
    findings : with at least one segment.
    place : the UIDs and the number of the object.
    """
    # (1, H, W, segments): highdicom's order of one source image.
    masks = np.stack([one.mask for one in findings.segments], axis=-1)[None].astype(np.uint8)
    made = Segmentation(
        source_images=[source.header],
        pixel_array=masks,
        segmentation_type="BINARY",
        segment_descriptions=[_segment(one, source, model) for one in findings.segments],
        content_label="ADALORA_QAT",
        content_description="Automatic segmentation of a chest radiograph",
        series_description=described("Segmentation"),
        contributing_equipment=contributing(model),
        coding_schemes=codes.scheme(),
        **equipment(model),
        **place.arguments(),
    )
    # Wanted where there is no orientation in space, and may be empty (C.7.6.1).
    made.PatientOrientation = source.header.get("PatientOrientation") or ""
    return made


def tracking_uid(source: Source, name: str) -> str:
    """Return the UID by which a structure of an image is known in every object."""
    return stable_uid("tracking", source.sop_uid, name)


def _segment(segment: Segment, source: Source, model: Described) -> SegmentDescription:
    concept, side = codes.structure(segment.name)
    described_segment = SegmentDescription(
        segment_number=segment.number,
        segment_label=codes.label(segment.name),
        segmented_property_category=codes.ANATOMY,
        segmented_property_type=concept,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm(model),
        tracking_uid=tracking_uid(source, segment.name),
        tracking_id=codes.label(segment.name),
        display_color=CIELabColor.from_rgb(*COLOURS[(segment.number - 1) % len(COLOURS)]),
    )
    if side is not None:
        kind = described_segment.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [side]
    return described_segment
