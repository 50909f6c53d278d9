"""The numbers as a structured report by template 1500, Measurement Report (PS3.16).

A group of measurements for each structure, with the reference to its segment; one for measures
of the whole radiograph; one for each earlier result that it is compared with. A measure that is
withheld is there too, as not attempted, with the reasons.
"""

from __future__ import annotations

from collections.abc import Sequence

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    ReferencedSegmentationFrame,
    SourceImageForMeasurementGroup,
    SourceImageForSegmentation,
    TimePointContext,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes as dicom_codes

from adalora_qat import __version__
from adalora_qat.dicom import codes
from adalora_qat.dicom.earlier import Earlier
from adalora_qat.dicom.findings import Findings, Quantity, Segment
from adalora_qat.dicom.identity import (
    MANUFACTURER,
    NAME,
    NOT_FOR_CLINICAL_USE,
    Described,
    algorithm_name,
    contributing,
    described,
    equipment,
    stable_uid,
)
from adalora_qat.dicom.place import Place
from adalora_qat.dicom.seg import tracking_uid
from adalora_qat.dicom.source import Source

WHOLE = "radiograph"


def report(
    source: Source,
    findings: Findings,
    model: Described,
    place: Place,
    segmentation: Dataset | None = None,
    earlier: Sequence[Earlier] = (),
) -> ComprehensiveSR:
    """Return the findings as a report.

    Parameters
    ----------
    segmentation : the SEG of the same findings, which measurements then refer to.
    earlier : results of the same patient to compare with.
    """
    observer = ObserverContext(
        observer_type=dicom_codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=stable_uid("device", __version__, model["sha256"]),
            name=NAME,
            manufacturer_name=MANUFACTURER,
            model_name=algorithm_name(model),
            serial_number=model["sha256"],
        ),
    )
    groups = [_structure(one, source, model, segmentation) for one in findings.segments]
    groups.append(_whole(source, findings, model))
    groups += [_compared(source, findings, one, model) for one in earlier]
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer),
        procedure_reported=codes.CHEST_RADIOGRAPHY,
        imaging_measurements=groups,
        title=dicom_codes.DCM.ImagingMeasurementReport,
    )
    return ComprehensiveSR(
        evidence=[source.header] if segmentation is None else [source.header, segmentation],
        content=content[0],
        is_complete=True,
        series_description=described("Measurements"),
        contributing_equipment=contributing(model),
        coding_schemes=codes.scheme(),
        **equipment(model),
        **place.arguments(),
    )


def _structure(
    segment: Segment, source: Source, model: Described, segmentation: Dataset | None
) -> MeasurementsAndQualitativeEvaluations:
    area, unit = (segment.area_mm2, "mm2")
    if area is None:
        area, unit = segment.area_px, "px"
    measurements = [Measurement(codes.measure("area"), float(area), codes.unit(unit))]
    if segment.expected_iou is not None:
        name = codes.measure("expected_iou")
        measurements.append(Measurement(name, round(segment.expected_iou, 4), codes.unit("")))
    concept, side = codes.structure(segment.name)
    shared = {
        "tracking_identifier": TrackingIdentifier(
            tracking_uid(source, segment.name), codes.label(segment.name)
        ),
        "finding_type": concept,
        "finding_category": CodedConcept.from_code(codes.ANATOMY),
        "finding_sites": [FindingSite(concept, laterality=side)],
        "algorithm_id": _algorithm(model),
        "measurements": measurements,
    }
    if segmentation is None:
        return MeasurementsAndQualitativeEvaluations(source_images=[_image(source)], **shared)
    image = SourceImageForSegmentation(source.header.SOPClassUID, source.header.SOPInstanceUID)
    frame = ReferencedSegmentationFrame(
        sop_class_uid=segmentation.SOPClassUID,
        sop_instance_uid=segmentation.SOPInstanceUID,
        frame_number=segment.number,  # a segment is a frame
        segment_number=segment.number,
        source_image=image,
    )
    # A segment says more than its frame, and only one of the two may be said (C.17.6.2.1).
    del frame[0].ReferencedSOPSequence[0].ReferencedFrameNumber
    return PlanarROIMeasurementsAndQualitativeEvaluations(referenced_segment=frame, **shared)


def _whole(
    source: Source, findings: Findings, model: Described
) -> MeasurementsAndQualitativeEvaluations:
    """Return what is of no structure alone: ratios, missing structures, quality."""
    evaluations = [_said(codes.IMAGE_QUALITY, code, message) for code, message in findings.quality]
    if not findings.quality:
        words = "No quality finding"
        evaluations.append(_said(codes.IMAGE_QUALITY, "no_finding", words))
    for name in findings.missing:
        concept, _ = codes.structure(name)
        evaluations.append(_said(concept, "not_found", "Not found in the radiograph"))
    for quantity in findings.quantities:
        if quantity.value is None:
            evaluations += _withheld(quantity)
        name = codes.measure(quantity.name)
        evaluations += [_said(name, f"note_{code}", codes.label(code)) for code in quantity.notes]
    evaluations.append(
        _said(codes.private("intended_use", "Intended use"), "research", NOT_FOR_CLINICAL_USE)
    )
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(tracking_uid(source, WHOLE), "Radiograph"),
        finding_type=codes.private("radiograph", "Chest radiograph as a whole"),
        algorithm_id=_algorithm(model),
        measurements=[one for each in findings.quantities for one in _measured(each)] or None,
        qualitative_evaluations=evaluations,
        source_images=[_image(source)],
    )


def _measured(quantity: Quantity) -> list[Measurement]:
    if quantity.value is None:
        return []
    name, unit = codes.measure(quantity.name), codes.unit(quantity.unit)
    found = [Measurement(name, round(float(quantity.value), 4), unit)]
    if quantity.confidence is not None:
        words = f"Confidence: {codes.label(quantity.name)}"
        name = codes.private(f"confidence_{quantity.name}", words)
        found.append(Measurement(name, round(float(quantity.confidence), 4), codes.unit("")))
    return found


def _withheld(quantity: Quantity) -> list[QualitativeEvaluation]:
    name = codes.measure(quantity.name)
    not_attempted = QualitativeEvaluation(name, CodedConcept.from_code(codes.NOT_ATTEMPTED))
    reasons = [_said(name, f"withheld_{code}", f"Withheld: {code}") for code in quantity.withheld]
    return [not_attempted, *reasons]


def _compared(
    source: Source, findings: Findings, earlier: Earlier, model: Described
) -> MeasurementsAndQualitativeEvaluations:
    """Return an earlier result's measures, and by how much they differ now."""
    now = comparable(findings)
    measurements = []
    for name, (value, unit) in earlier.measures.items():
        label, coded = codes.label(name), codes.unit(unit)
        concept = codes.private(f"previous_{name}", f"Previous: {label}")
        measurements.append(Measurement(concept, round(value, 4), coded))
        if name in now and now[name][1] == unit:
            concept = codes.private(f"change_{name}", f"Change since previous: {label}")
            measurements.append(Measurement(concept, round(now[name][0] - value, 4), coded))
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            stable_uid("tracking", source.sop_uid, WHOLE, earlier.sop_uid), "Comparison"
        ),
        finding_type=CodedConcept.from_code(codes.PREVIOUS),
        time_point_context=TimePointContext(time_point=earlier.date or "date not known"),
        algorithm_id=_algorithm(model),
        measurements=measurements or None,
        source_images=[_image(source)],
    )


def comparable(findings: Findings) -> dict[str, tuple[float, str]]:
    """Return measure → value and unit, of what can be compared with another radiograph."""
    found: dict[str, tuple[float, str]] = {}
    for segment in findings.segments:
        if segment.area_mm2 is not None:
            found[f"area_{segment.name}"] = (segment.area_mm2, "mm2")
    for quantity in findings.quantities:
        if quantity.value is not None:
            found[quantity.name] = (float(quantity.value), quantity.unit)
    return found


def _said(name: object, word: str, meaning: str) -> QualitativeEvaluation:
    concept = name if isinstance(name, CodedConcept) else CodedConcept.from_code(name)
    return QualitativeEvaluation(concept, codes.private(word, meaning))


def _image(source: Source) -> SourceImageForMeasurementGroup:
    header = source.header
    return SourceImageForMeasurementGroup(header.SOPClassUID, header.SOPInstanceUID)


def _algorithm(model: Described) -> AlgorithmIdentification:
    return AlgorithmIdentification(
        name=algorithm_name(model),
        version=__version__,
        parameters=[f"model_sha256={model['sha256']}"],
    )
