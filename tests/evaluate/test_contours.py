import math

import numpy as np
import pytest

from adalora_qat.evaluate.contours import ContourDistances, contour_distances, crop, neighbour_codes


def test_neighbour_codes_by_hand() -> None:
    mask = np.array([[True, False], [True, True]])
    # Corners row by row; bits upper left 8, upper right 4, lower left 2, lower right 1.
    assert neighbour_codes(mask).tolist() == [[1, 2, 0], [5, 0b1011, 2], [4, 12, 8]]


def test_lengths_follow_the_spacing() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1:3, 1:4] = True  # 2 × 3 pixels of 3 × 4 mm: sides without corners 3 and 2·4 mm
    found = contour_distances(mask, mask, (3.0, 4.0))
    assert found.truth_lengths.sum() == pytest.approx(2 * 3 + 2 * 2 * 4 + 4 * 2.5)
    assert not found.truth_to_prediction.any()


def test_an_empty_mask_has_no_contour() -> None:
    found = contour_distances(np.zeros((3, 3), bool), np.ones((3, 3), bool))
    assert found.truth_to_prediction.size == found.prediction_lengths.size == 0


def test_percentiles_and_means_weigh_by_length() -> None:
    found = ContourDistances(
        np.array([0.0, 4.0]), np.array([1.0]), np.array([19.0, 1.0]), np.array([5.0])
    )
    assert found.hausdorff(95) == 1  # 19 of 20 reach the 95 % at distance 0
    assert found.hausdorff(96) == 4 and found.hausdorff(100) == 4
    assert found.mean() == (4 * 1 + 1 * 5) / 25
    assert (found.nsd(0), found.nsd(1), found.nsd(4)) == (19 / 25, 24 / 25, 1)
    assert found.scaled(0.5).hausdorff(100) == 2


def test_distances_are_exact_for_any_spacing() -> None:
    rng = np.random.default_rng(0)
    truth, prediction = (rng.random((9, 11)) > 0.7 for _ in range(2))
    found = contour_distances(truth, prediction, (0.3, 1.7))

    def points(mask: np.ndarray) -> list[tuple[float, float]]:
        return [
            (0.3 * r, 1.7 * c)
            for (r, c), code in np.ndenumerate(neighbour_codes(mask))
            if 0 < code < 15
        ]

    t, p = points(truth), points(prediction)
    brute = sorted(min(math.dist(one, other) for other in p) for one in t)
    assert sorted(found.truth_to_prediction) == pytest.approx(brute)


def test_crop_keeps_the_union() -> None:
    truth, prediction = np.zeros((8, 9), bool), np.zeros((8, 9), bool)
    truth[2, 3] = prediction[5, 7] = True
    t, p = crop(truth, prediction)
    assert t.shape == (4, 5) and t[0, 0] and p[3, 4] and t.sum() == p.sum() == 1
