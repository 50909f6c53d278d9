import numpy as np
import pytest

from adalora_qat.runtime.plausibility import (
    IMPLAUSIBLE,
    LOW,
    UNSTEADY,
    Plausibility,
    agreement,
    balance,
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
