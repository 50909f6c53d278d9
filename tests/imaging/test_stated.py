"""What a header states of view and patient."""

from io import BytesIO
from types import ModuleType

import numpy as np
import pydicom
import pytest

from adalora_qat.imaging.radiograph import read_radiograph
from adalora_qat.imaging.stated import Stated, stated


@pytest.mark.parametrize(
    ("elements", "view"),
    [
        ({"ViewPosition": "PA"}, "PA"),
        ({"ViewPosition": " ap\0"}, "AP"),
        ({"ViewPosition": "LL"}, "lateral"),
        ({"ViewPosition": "LATERAL"}, "lateral"),
        ({"ViewPosition": "", "SeriesDescription": "Chest AP portable"}, "AP"),
        ({"SeriesDescription": "W034 Thorax lat."}, "lateral"),
        ({"SeriesDescription": "PA AND LAT"}, None),
        ({"SeriesDescription": "PAEDIATRIC CHEST"}, None),
        ({"PatientOrientation": ["A", "F"]}, "lateral"),
        ({"PatientOrientation": "L\\F"}, None),
        ({}, None),
    ],
)
def test_the_view(elements: dict[str, object], view: str | None) -> None:
    assert stated(elements).view == view


@pytest.mark.parametrize(
    ("age", "years"),
    [("045Y", 45), ("006M", 0.5), ("002W", 0.04), ("62", 62), ("000Y", None), ("old", None)],
)
def test_the_age_in_years(age: str, years: float | None) -> None:
    assert stated({"PatientAge": age}).age_years == years


def test_orientation_and_side() -> None:
    said = stated({"PatientOrientation": ["L", "F"], "ImageLaterality": "R"})
    assert (said.orientation, said.laterality) == (("L", "F"), "R")
    assert stated({"PatientOrientation": "", "Laterality": "U"}) == Stated()


def test_a_dataset_brings_it_and_a_picture_states_nothing(fuzz_inputs: ModuleType) -> None:

    ramp = np.add.outer(np.arange(24), np.arange(32)).astype(np.uint16)
    plain = fuzz_inputs.dicom_bytes(ramp, 12, fuzz_inputs.ExplicitVRLittleEndian)
    dataset = pydicom.dcmread(BytesIO(plain))
    dataset.ViewPosition, dataset.PatientAge = "AP", "007Y"
    said = read_radiograph(dataset).stated
    assert (said.view, said.age_years, said.view_source) == ("AP", 7, "ViewPosition")
    assert read_radiograph(ramp).stated == Stated()
