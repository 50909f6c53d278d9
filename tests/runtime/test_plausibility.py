import numpy as np
import pytest

from adalora_qat.runtime.plausibility import (
    IMPLAUSIBLE,
    LOW,
    SPACING,
    UNSTEADY,
    Plausibility,
    agreement,
    balance,
    spacing_caution,
)

LIMITS = Plausibility(0.1, 0.6, 0.4, 0.8, 0.7)


def lungs(left: int = 10, right: int = 10) -> np.ndarray:
    mask = np.zeros((40, 40), bool)
    mask[5:35, 4 : 4 + left] = True
    mask[5:35, 35 - right : 35] = True
    return mask


def test_a_pair_of_lungs_passes() -> None:
    assert LIMITS.look(lungs(), 0.9, lungs()) == []


@pytest.mark.parametrize(
    ("mask", "confidence", "first", "code"),
    [
        (np.zeros((40, 40), bool), 0.9, None, IMPLAUSIBLE),
        (np.ones((40, 40), bool), 0.9, None, IMPLAUSIBLE),
        (lungs(left=3, right=14), 0.9, None, IMPLAUSIBLE),
        (lungs(), 0.9, lungs(left=6, right=6), UNSTEADY),
        (lungs(), 0.5, lungs(), LOW),
    ],
)
def test_odd_masks_are_named(
    mask: np.ndarray, confidence: float, first: np.ndarray | None, code: str
) -> None:
    assert [finding.code for finding in LIMITS.look(mask, confidence, first)] == [code]


def test_balance_and_agreement_by_hand() -> None:
    assert balance(lungs()) == 1
    assert balance(np.zeros((3, 3), bool)) == 0
    mask = np.array([[True, False, True, True]])
    assert balance(mask) == 0.5
    assert agreement(mask, np.array([[True, True, False, True]])) == 0.5
    assert agreement(np.zeros((2, 2), bool), np.zeros((2, 2), bool)) == 1


@pytest.mark.parametrize(
    ("column_mm", "whole", "limit"),
    [
        (80 / 31, True, None),  # 31 columns: 8 cm
        (79 / 31, True, 8.0),
        (10.0, True, None),
        (17.0, True, 50.0),
        (17.0, False, 50.0),
        (0.1, True, 8.0),
        (0.1, False, None),
    ],
)
def test_lungs_have_the_width_of_a_chest(
    column_mm: float, whole: bool, limit: float | None
) -> None:
    masks = np.stack([lungs(), np.zeros((40, 40), bool)])
    found = spacing_caution(masks, column_mm, whole=whole)
    if limit is None:
        assert found == []
        return
    assert [(one.code, one.limit) for one in found] == [(SPACING, limit)]
    assert found[0].value == pytest.approx(3.1 * column_mm)
    assert spacing_caution(masks[1:], column_mm, whole=whole) == []
