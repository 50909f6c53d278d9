import math

import numpy as np
import pytest
from scipy import ndimage

from adalora_qat.errors import DataError
from adalora_qat.evaluate.clinical import (
    area_mm2,
    bland_altman,
    component_count,
)


def test_area_needs_a_spacing() -> None:
    mask = np.zeros((5, 5), bool)
    mask[1:3, 1:4] = True
    assert area_mm2(mask, (0.5, 0.2)) == pytest.approx(0.6)
    assert math.isnan(area_mm2(mask, None))


def test_components_touch_at_corners() -> None:
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1]], bool)
    assert component_count(mask) == 3
    assert component_count(np.zeros((3, 3), bool)) == 0
    assert component_count(np.ones((3, 3), bool)) == 1
    noise = np.random.default_rng(0).random((60, 70)) > 0.7
    assert component_count(noise) == ndimage.label(noise, np.ones((3, 3)))[1]


def test_bland_altman_by_hand() -> None:
    found = bland_altman([10, 12, 14, 16, math.nan], [11, 12, 16, 17, 3])
    assert (found.n, found.dropped, found.bias) == (4, 1, 1.0)
    assert found.difference.tolist() == [1, 0, 2, 1]
    assert found.mean.tolist() == [10.5, 12, 15, 16.5]
    sd = math.sqrt(2 / 3)  # (0 + 1 + 1 + 0) / 3
    assert (found.lower, found.upper) == pytest.approx((1 - 1.96 * sd, 1 + 1.96 * sd))
    t = 3.182446305  # 97.5 % quantile of t with 3 degrees of freedom, from a printed table
    half = t * sd / 2
    assert found.bias_interval == pytest.approx((1 - half, 1 + half))
    assert found.upper_interval == pytest.approx(
        (found.upper - math.sqrt(3) * half, found.upper + math.sqrt(3) * half)
    )


def test_bland_altman_of_one_case_has_a_bias_and_no_limits() -> None:
    found = bland_altman([0.5], [0.6])
    assert found.bias == pytest.approx(0.1)
    assert math.isnan(found.sd) and math.isnan(found.upper) and math.isnan(found.bias_interval[0])
    assert bland_altman([], []).n == 0


def test_bland_altman_refuses_lists_that_do_not_pair() -> None:
    with pytest.raises(DataError, match="pair one to one"):
        bland_altman([1, 2], [1])
