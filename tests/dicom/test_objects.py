import shutil
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from made_dicom import MODEL, H, W, file_of, radiograph, result
from pydicom.dataset import Dataset

from adalora_qat.dicom.objects import checked_kinds, result_objects
from adalora_qat.dicom.place import KINDS
from adalora_qat.dicom.source import clean, read_source
from adalora_qat.errors import ConfigError, DataError

needs_dciodvfy = pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy (Debian: dicom3tools) is not installed"
)
LATIN_1 = {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Änne"}
UTF_8 = {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "山田^太郎"}
BARE = dict.fromkeys(
    (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
        "StudyID", "AccessionNumber", "ReferringPhysicianName", "Manufacturer", "InstanceNumber",
        "PatientOrientation", "PixelSpacing", "BodyPartExamined", "ViewPosition",
    )
)  # fmt: skip
MATRIX: dict[str, dict[str, Any]] = {
    "plain": {},
    "mono1": {"PhotometricInterpretation": "MONOCHROME1"},
    "8 bits": {"bits": 8},
    "10 bits": {"bits": 10},
    "16 bits": {"bits": 16},
    "frame of reference": {"FrameOfReferenceUID": "1.2.9"},
    "imager spacing": {"PixelSpacing": None, "ImagerPixelSpacing": [0.2, 0.2]},
    "no spacing": {"PixelSpacing": None},
    "zero spacing": {"PixelSpacing": [0, 0]},
    "latin-1": LATIN_1,
    "utf-8": UTF_8,
    "undeclared": {"PatientName": "Müller^Änne"},
    "bare": BARE,
    "against the standard": {"PatientAge": "29", "PatientSex": "W", "BurnedInAnnotation": "YES"},
}


def objects_of(kinds: Any = tuple(KINDS), **changes: Any) -> dict[str, Dataset]:
    return result_objects(read_source(file_of(radiograph(**changes))), result(), kinds)


def reread(dataset: Dataset) -> Dataset:
    stream = BytesIO()
    dataset.save_as(stream)
    return pydicom.dcmread(BytesIO(stream.getvalue()))


@needs_dciodvfy
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("changes", MATRIX.values(), ids=MATRIX)
def test_a_validator_finds_no_error(changes: dict[str, Any], tmp_path: Path) -> None:
    for kind, made in objects_of(**changes).items():
        made.save_as(tmp_path / "one.dcm")
        said = subprocess.run(
            ["dciodvfy", tmp_path / "one.dcm"], capture_output=True, text=True, timeout=60
        )
        errors = [line for line in said.stderr.splitlines() if line.startswith("Error")]
        assert errors == [], kind


def test_the_masks_come_back_as_they_were() -> None:
    seg = reread(objects_of()["SEG"])
    read = highdicom.seg.Segmentation.from_dataset(seg)
    by_library = read.get_pixels_by_source_instance(
        ["1.2.3.1"], ignore_spatial_locations=True, combine_segments=False
    )[0]
    # PS3.5 8.1.1: bits one after another, the lowest of a byte first, frame by frame.
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    by_hand = bits[: 3 * H * W].reshape(3, H, W)
    masks = result().masks
    assert (by_hand == masks).all()
    assert (by_library == masks.transpose(1, 2, 0)).all()


def test_a_projection_is_given_no_geometry() -> None:
    seg = objects_of(FrameOfReferenceUID="1.2.9")["SEG"]
    text = str(seg)
    for word in ("Pixel Measures", "Plane Position", "Plane Orientation", "Frame of Reference"):
        assert word not in text
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.4.1"


def test_segments_say_what_they_are_and_who_made_them() -> None:
    segments = objects_of()["SEG"].SegmentSequence
    kinds = [one.SegmentedPropertyTypeCodeSequence[0] for one in segments]
    sides = [
        one.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning
        for one in kinds
        if "SegmentedPropertyTypeModifierCodeSequence" in one
    ]
    assert [one.CodeValue for one in kinds] == ["39607008", "39607008", "80891009"]
    assert sides == ["Left", "Right"]
    algorithm = segments[0].SegmentationAlgorithmIdentificationSequence[0]
    assert segments[0].SegmentAlgorithmType == "AUTOMATIC"
    assert MODEL["sha256"] in algorithm.AlgorithmParameters


def test_the_same_input_and_model_give_the_same_uids() -> None:
    def uids(found: dict[str, Dataset]) -> list[tuple[str, str]]:
        return [(str(one.SOPInstanceUID), str(one.SeriesInstanceUID)) for one in found.values()]

    first, other_image = uids(objects_of()), uids(objects_of(number=2))
    other = result(model={**MODEL, "sha256": "cd" * 32})
    other_model = uids(result_objects(read_source(file_of(radiograph())), other, tuple(KINDS)))
    assert uids(objects_of()) == first
    assert not set(first) & (set(other_image) | set(other_model))
    assert len({uid for pair in first for uid in pair}) == 2 * len(KINDS)
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for pair in first for uid in pair)


def test_the_report_holds_areas_by_segment_and_the_quality() -> None:
    text = str(objects_of()["SR"])
    # 60 × 20 + 1 pixels of 0.5 mm.
    assert "'300.25'" in text and "looks rotated by 90 degrees" in text
    assert "NOT FOR CLINICAL USE" in objects_of()["SR"].SeriesDescription


def test_the_report_holds_the_cardiothoracic_ratio_or_why_not() -> None:
    withheld = str(objects_of()["SR"])  # the image looks rotated
    source = read_source(file_of(radiograph()))
    given = str(result_objects(source, result(warnings=()), ["SR"])["SR"])
    words = "Cardiothoracic ratio, linear, adult"
    assert words in withheld and words in given
    assert "Measurement not attempted" in withheld and "withheld_rotated" in withheld
    # Heart 25 px wide, lungs from column 8 to 69 but for a speckle each.
    assert f"'{25 / 62:.4f}'" in given


def test_patient_and_study_are_those_of_the_source() -> None:
    for made in objects_of(**LATIN_1).values():
        again = reread(made)
        assert str(again.PatientName) == "Müller^Änne"
        assert (again.PatientID, again.StudyInstanceUID) == ("P-4711", "1.2.5.1")
        assert again.AccessionNumber == "A1"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_values_against_the_standard_are_left_out_and_named() -> None:
    source = read_source(file_of(radiograph(PatientAge="29", PatientSex="W")))
    assert {"PatientAge", "PatientSex"} <= set(source.left_out)
    made = result_objects(source, result(), ["SEG"])["SEG"]
    assert "PatientAge" not in made and made.PatientSex == ""


def test_an_earlier_report_of_the_patient_is_compared_with() -> None:
    before = objects_of(number=7, StudyDate="20250101")["SR"]
    other = objects_of(number=8, StudyDate="20250101", PatientID="another")["SR"]
    source = read_source(file_of(radiograph()))
    now = result(masks=np.roll(result().masks, 1, axis=1) & result().masks)
    text = str(result_objects(source, now, ["SR"], [reread(before), reread(other)])["SR"])
    # The left lung lost its top row of 20 pixels and the pixel beside it: 21 × 0.25 mm².
    assert text.count("Previous: Area left lung") == 1
    assert "'-5.25'" in text


def test_nothing_found_is_said_by_the_report_alone() -> None:
    nothing = result(masks=np.zeros((3, H, W), bool))
    made = result_objects(read_source(file_of(radiograph())), nothing, tuple(KINDS))
    assert set(made) == {"SR", "SC"}
    assert str(made["SR"]).count("Not found in the radiograph") == 3


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_a_source_without_uids_is_refused(keyword: str) -> None:
    dataset = radiograph()
    delattr(dataset, keyword)
    with pytest.raises(DataError, match=keyword):
        clean(dataset)


@pytest.mark.parametrize(
    "changes", [{"NumberOfFrames": 2}, {"Modality": "CT"}, {"Modality": "SEG"}]
)
def test_what_is_no_single_radiograph_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        read_source(file_of(radiograph(**changes)))


def test_a_refusal_tells_nothing_of_the_patient() -> None:
    with pytest.raises(DataError) as caught:
        read_source(file_of(radiograph(Modality="DOE", PatientName="DOE^Jane")))
    assert "DOE" not in str(caught.value) and "modality" in str(caught.value)


def test_kinds_are_checked() -> None:
    assert checked_kinds(["sr", "SEG"]) == ("SEG", "SR")
    with pytest.raises(ConfigError, match="SEG,SR,SC,GSPS"):
        checked_kinds(["PDF"])
