"""Findings on chests drawn by hand: each from what it is about, and none on a good one."""

import numpy as np
import pytest

from adalora_qat.chest.caution import Caution
from adalora_qat.chest.findings import findings, header_findings
from adalora_qat.imaging.stated import Stated

SIDE = 320
Masks = dict[str, np.ndarray]


def ellipse(x: float, y: float, half_width: float, half_height: float) -> np.ndarray:
    """Draw in shares of the side."""
    rows, columns = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
    return ((columns - x) / half_width) ** 2 + ((rows - y) / half_height) ** 2 <= 1


@pytest.fixture
def chest() -> Masks:
    """Right lung left on the picture; the heart low and towards the patient's left."""
    return {
        "left_lung": ellipse(0.71, 0.5, 0.13, 0.33),
        "right_lung": ellipse(0.29, 0.5, 0.15, 0.33),
        "heart": ellipse(0.54, 0.64, 0.14, 0.11),
    }


def codes(masks: Masks, stated: Stated | None = None) -> list[str]:
    return [caution.code for caution in findings(masks, stated)]


def turned(masks: Masks, quarters: int) -> Masks:
    return {name: np.rot90(mask, quarters) for name, mask in masks.items()}


def test_a_good_chest_has_none(chest: Masks) -> None:
    assert findings(chest, Stated("PA", "ViewPosition", 45.0, ("L", "F"))) == []
    wide = {name: np.repeat(mask, 7, axis=1).repeat(7, axis=0) for name, mask in chest.items()}
    assert findings(wide) == []


def test_a_mirrored_picture(chest: Masks) -> None:
    # As a model sees it: the sides are where they always are, the heart is on the other one.
    heart = {**chest, "heart": chest["heart"][:, ::-1]}
    found = findings(heart)
    assert [one.code for one in found] == ["mirrored"] and "situs" in found[0].message
    assert found[0].value < found[0].limit < 0
    assert "header gives the sides" in findings(heart, Stated(orientation=("L", "F")))[0].message
    assert codes(chest, Stated(orientation=("R", "F"))) == ["mirrored"]


def test_upside_down(chest: Masks) -> None:
    down = {name: mask[::-1] for name, mask in chest.items()}
    assert codes(down) == ["upside_down"]


@pytest.mark.parametrize("edge", ["left", "right", "upper", "lower"])
def test_a_lung_that_is_cut_off(chest: Masks, edge: str) -> None:
    keep = {
        "left": np.s_[:, 70:], "right": np.s_[:, :-70], "upper": np.s_[65:], "lower": np.s_[:-65],
    }[edge]  # fmt: skip
    found = {one.code: one for one in findings({k: m[keep] for k, m in chest.items()})}
    assert f"by the {edge} edge" in found["lung_cut_off"].message
    assert found["lung_cut_off"].value > found["lung_cut_off"].limit


def test_a_missing_lung_is_the_only_thing_said_of_masks(chest: Masks) -> None:
    nothing = np.zeros((SIDE, SIDE), bool)
    assert codes({**chest, "left_lung": nothing}) == ["lung_missing"]
    assert codes({**chest, "right_lung": ellipse(0.29, 0.3, 0.05, 0.06)}) == ["lung_missing"]
    assert codes(dict.fromkeys(chest, nothing)) == ["lung_missing", "lung_missing"]


def test_masks_that_no_chest_has(chest: Masks) -> None:
    assert codes({**chest, "heart": np.zeros((SIDE, SIDE), bool)}) == ["implausible_mask"]
    assert codes({**chest, "heart": ellipse(0.53, 0.7, 0.02, 0.02)}) == ["implausible_mask"]
    dots = {"left_lung": ellipse(0.6, 0.5, 0.03, 0.08), "right_lung": ellipse(0.4, 0.5, 0.03, 0.08)}
    assert codes(dots) == ["implausible_mask"]


def test_how_the_patient_stood(chest: Masks) -> None:
    high = {**chest, "left_lung": ellipse(0.71, 0.38, 0.13, 0.33)}
    assert codes(high) == ["tilted"]
    narrow = {**chest, "left_lung": ellipse(0.71, 0.5, 0.07, 0.33)}
    assert codes(narrow) == ["patient_rotated"]
    short = {name: mask[::2] for name, mask in chest.items()}
    assert codes(short) == ["poor_inspiration"]


def test_specks_and_holes(chest: Masks) -> None:
    rng = np.random.default_rng(0)
    speckled = {**chest, "heart": chest["heart"] ^ (rng.random((SIDE, SIDE)) < 0.02)}
    found = findings(speckled)
    assert [one.code for one in found] == ["ragged_mask"] and "heart" in found[0].message


def test_what_the_header_says(chest: Masks) -> None:
    lateral = Stated("lateral", "ViewPosition")
    assert codes(chest, lateral) == ["view_disagrees"]
    nothing = dict.fromkeys(chest, np.zeros((SIDE, SIDE), bool))
    assert codes(nothing, lateral) == ["lateral_view", "lung_missing", "lung_missing"]
    child = header_findings(Stated(age_years=4.0))
    assert child == [Caution("child", child[0].message, 4.0, 16.0)]
    assert header_findings(Stated(age_years=16.0)) == []


def test_masks_of_other_things_have_none() -> None:
    assert findings({"heart": np.zeros((4, 4), bool)}, Stated("lateral", "ViewPosition")) == []
