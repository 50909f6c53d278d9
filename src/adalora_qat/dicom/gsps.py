"""The outlines as a Grayscale Softcopy Presentation State: lines over the untouched image."""

from __future__ import annotations

import numpy as np
from highdicom.pr import (
    GraphicAnnotation,
    GraphicLayer,
    GraphicObject,
    GrayscaleSoftcopyPresentationState,
)
from numpy.typing import NDArray

from adalora_qat.dicom import codes
from adalora_qat.dicom.findings import Findings, Segment
from adalora_qat.dicom.identity import Described, contributing, described, equipment
from adalora_qat.dicom.place import Place
from adalora_qat.dicom.seg import tracking_uid
from adalora_qat.dicom.source import Source
from adalora_qat.imaging.contours import rings

# An explicit length of 16 bits holds 8191 points; a line on a screen needs fewer.
MOST_POINTS = 2000


def presentation(
    source: Source, findings: Findings, model: Described, place: Place
) -> GrayscaleSoftcopyPresentationState:
    """Return the outlines of the segments, in pixels of the source, which stays as it is."""
    layer = GraphicLayer("SEGMENTS", order=1, description="Outlines of segments")
    made = GrayscaleSoftcopyPresentationState(
        referenced_images=[source.header],
        content_label="ADALORA_QAT",
        content_description="Outlines of the automatic segmentation",
        graphic_layers=[layer],
        graphic_annotations=[
            GraphicAnnotation(
                referenced_images=[source.header],
                graphic_layer=layer,
                graphic_objects=[line for one in findings.segments for line in _lines(one, source)],
            )
        ],
        series_description=described("Outlines"),
        contributing_equipment=contributing(model),
        coding_schemes=codes.scheme(),
        **equipment(model),
        **place.arguments(),
    )
    # Wanted of paired parts of the body, and may be empty (C.7.3.1).
    made.Laterality = source.header.get("Laterality") or ""
    return made


def _lines(segment: Segment, source: Source) -> list[GraphicObject]:
    return [
        GraphicObject(
            graphic_type="POLYLINE",
            graphic_data=_thinned(ring),
            units="PIXEL",
            tracking_id=codes.label(segment.name),
            tracking_uid=tracking_uid(source, segment.name),
        )
        for ring in rings(segment.mask)
    ]


def _thinned(ring: list[tuple[int, int]]) -> NDArray[np.float64]:
    """Return a closed ring (T, 2) of corners between pixels, with at most ``MOST_POINTS``."""
    corners = np.array(ring[:-1], dtype=np.float64)
    step = -(-len(corners) // (MOST_POINTS - 1))
    kept = corners[::step]
    return np.concatenate([kept, kept[:1]])
