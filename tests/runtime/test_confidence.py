import numpy as np
import pytest

from adalora_qat.errors import DataError
from adalora_qat.runtime.confidence import Calibration, fit_calibration, isotonic


def test_adjacent_violators_are_pooled_by_weight() -> None:
    assert isotonic([1, 3, 2, 4], [1, 1, 1, 1]).tolist() == [1, 2.5, 2.5, 4]
    assert isotonic([5, 1], [1, 3]).tolist() == [2, 2]
    assert isotonic([3, 2, 1], [1, 1, 1]).tolist() == [2, 2, 2]


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


def test_the_table_survives_the_file() -> None:
    calibration = Calibration((0.5, 0.9), (0.25, 0.75), 40)
    assert Calibration.from_json(calibration.to_json()) == calibration
    assert calibration([[0.7]]).tolist() == [[0.5]]


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


def test_a_falling_table_is_refused() -> None:
    with pytest.raises(DataError, match="do not fall"):
        Calibration((0.1, 0.2), (0.5, 0.4), 40)
