import math

import numpy as np
import pytest

from adalora_qat.chest.measures import cardiothoracic_ratio, measure, widest_row
from adalora_qat.errors import DataError


def chest() -> dict[str, np.ndarray]:
    """Return lungs of 20 x 10 and 20 x 8 and a heart of 6 x 9 in 40 x 60 pixels."""
    masks = {name: np.zeros((40, 60), bool) for name in ("left_lung", "right_lung", "heart")}
    masks["right_lung"][10:30, 10:20] = True  # on the left of the picture
    masks["left_lung"][12:32, 36:44] = True
    masks["heart"][22:28, 24:33] = True
    return masks


def test_cardiothoracic_ratio_by_hand() -> None:
    lungs, heart = np.zeros((10, 20), bool), np.zeros((10, 20), bool)
    lungs[2, 4:7] = lungs[2, 13:15] = True  # columns 4 to 14: 11 wide
    lungs[6, 2:6] = lungs[6, 14:18] = True  # columns 2 to 17: 16 wide, the widest
    lungs[8, 1:3] = True  # further left than any other row, but one row is no diameter
    heart[5, 7:11] = True  # reaches left to column 7 …
    heart[6, 9:15] = True  # … and right to column 14, on another row: 8 wide
    assert cardiothoracic_ratio(heart, lungs) == 8 / 16


def test_cardiothoracic_ratio_without_a_heart_or_lungs_is_not_a_number() -> None:
    something, nothing = np.ones((4, 4), bool), np.zeros((4, 4), bool)
    assert math.isnan(cardiothoracic_ratio(nothing, something))
    assert math.isnan(cardiothoracic_ratio(something, nothing))


def test_cardiothoracic_ratio_refuses_masks_of_two_sizes() -> None:
    with pytest.raises(DataError, match="of one size"):
        cardiothoracic_ratio(np.ones((4, 4), bool), np.ones((4, 5), bool))


def test_a_chest_is_measured_by_hand() -> None:
    found = measure(chest(), spacing_mm=(2.0, 4.0), view="PA")
    values = {name: one.value for name, one in found.items()}
    assert values == {
        "left_lung_area_px": 160,
        "left_lung_area": 12.8,  # 160 pixels of 8 mm2
        "right_lung_area_px": 200,
        "right_lung_area": 16.0,
        "right_left_area_ratio": 1.25,
        "thorax_width": 13.6,  # columns 10 to 43: 34 of 4 mm
        "thorax_height": 4.4,  # rows 10 to 31: 22 of 2 mm
        "cardiothoracic_ratio": round(9 / 34, 4),
    }
    ratio = found["cardiothoracic_ratio"]
    assert ratio.lines == {
        "heart": ((24.0, 25.0), (33.0, 25.0)),
        "thorax": ((10.0, 21.5), (44.0, 21.5)),  # the middle of the rows that have both lungs
    }
    assert not ratio.withheld and not ratio.notes


def test_specks_do_not_stretch_a_diameter() -> None:
    masks = chest()
    masks["heart"][35, 2] = masks["left_lung"][20, 58] = True
    assert measure(masks)["cardiothoracic_ratio"].value == round(9 / 34, 4)


@pytest.mark.parametrize(
    ("view", "notes"),
    [
        ("PA", ()),
        ("AP", ("not_comparable_ap",)),
        (None, ("not_comparable_view_unknown",)),
    ],
)
def test_a_ratio_that_does_not_compare_says_so(view: str | None, notes: tuple[str, ...]) -> None:
    ratio = measure(chest(), view=view)["cardiothoracic_ratio"]
    assert ratio.value is not None
    assert ratio.notes == notes


def test_a_warning_withholds_every_number() -> None:
    found = measure(chest(), spacing_mm=(1, 1), warned=["low_confidence", "no_box_training"])
    assert all(one.value is None for one in found.values())
    assert {one.withheld for one in found.values()} == {("low_confidence",)}
    assert not any(one.lines for one in found.values())


def test_centimetres_need_a_spacing_that_makes_a_chest() -> None:
    for found, code in (
        (measure(chest()), "no_spacing"),
        (
            measure(chest(), spacing_mm=(20, 20), warned=["spacing_implausible"]),
            "spacing_implausible",
        ),
    ):
        sized = {name for name, one in found.items() if one.withheld == (code,)}
        assert sized == {"left_lung_area", "right_lung_area", "thorax_width", "thorax_height"}
        assert found["cardiothoracic_ratio"].value is not None


def test_a_missing_structure_withholds_what_needs_it() -> None:
    masks = chest()
    masks["left_lung"][:] = False
    found = measure(masks, spacing_mm=(1, 1))
    assert found["right_lung_area"].value == 2.0
    for name in ("left_lung_area_px", "right_left_area_ratio", "cardiothoracic_ratio"):
        assert found[name].withheld == ("structure_missing",)
    del masks["left_lung"]
    assert set(measure(masks)) == {"right_lung_area_px", "right_lung_area"}
    assert measure({"heart": masks["heart"]}) == {}


def test_confidence_is_the_least_of_the_masks_behind_a_number() -> None:
    scores = {"left_lung": 0.9, "right_lung": 0.8, "heart": 0.7}
    found = measure(chest(), confidence=scores)
    assert found["left_lung_area_px"].confidence == 0.9
    assert found["right_left_area_ratio"].confidence == 0.8
    assert found["cardiothoracic_ratio"].confidence == 0.7
    assert measure(chest())["cardiothoracic_ratio"].confidence is None


def test_an_empty_mask_has_no_widest_row() -> None:
    assert widest_row(np.zeros((3, 4), bool)) == ((0, 0), (0, 0))
