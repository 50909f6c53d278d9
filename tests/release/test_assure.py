import numpy as np
import pytest

from adalora_qat.errors import DataError
from adalora_qat.release.assure import fit_calibration


def test_groups_that_fall_are_pooled() -> None:
    # Three groups of ten; the second is truer than the third.
    predicted = np.repeat([0.2, 0.5, 0.8], 10)
    true = np.repeat([0.1, 0.7, 0.5], 10)
    calibration = fit_calibration(predicted, true)
    assert calibration.predicted == pytest.approx((0.2, 0.5, 0.8))
    assert calibration.expected == pytest.approx((0.1, 0.6, 0.6))


def test_an_optimist_is_brought_down_to_what_came_true() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.uniform(0.5, 1, 4000)
    true = np.clip(predicted**2 + rng.normal(0, 0.03, 4000), 0, 1)
    calibration = fit_calibration(predicted, true)
    asked = np.linspace(0.55, 0.95, 9)
    np.testing.assert_allclose(calibration(asked), asked**2, atol=0.02)
    assert calibration.cases == 4000 and len(calibration.predicted) == 16
    assert (np.diff(calibration(np.linspace(0, 1, 50))) >= 0).all()
    # Outside what was seen it says the nearest that it knows.
    assert calibration(0.1) == pytest.approx(calibration.expected[0])


def test_equal_scores_are_one_knot() -> None:
    calibration = fit_calibration(np.full(40, 0.9), np.linspace(0, 1, 40))
    assert calibration.predicted == pytest.approx((0.9,))
    assert calibration.expected == pytest.approx((0.5,))


@pytest.mark.parametrize(
    ("predicted", "true"), [([0.5] * 19, [0.5] * 19), ([0.5] * 30, [np.nan] * 30)]
)
def test_too_little_is_refused(predicted: list[float], true: list[float]) -> None:
    with pytest.raises(DataError):
        fit_calibration(predicted, true)
