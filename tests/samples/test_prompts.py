"""Prompts: exact, jittered within bounds, never degenerate, in the configured shares."""

import numpy as np
import pytest

from adalora_qat.config import PromptConfig
from adalora_qat.errors import DataError
from adalora_qat.samples import prompts
from adalora_qat.samples.streams import stream

MASK = np.zeros((80, 100), dtype=bool)
MASK[20:41, 30:71] = True  # rows 20–40, columns 30–70
EXACT = [30, 20, 70, 40]


def rng(number: int) -> np.random.Generator:
    return stream("test", 0, 0, str(number))


def test_exact_box_is_medsams() -> None:
    np.testing.assert_array_equal(prompts.exact_box(MASK, (80, 100)), EXACT)


def test_jitter_is_uniform_and_bounded() -> None:
    boxes = np.array([prompts.jittered_box(MASK, (80, 100), 3, rng(i)) for i in range(700)])
    moves = boxes - EXACT
    values, counts = np.unique(moves, return_counts=True)
    np.testing.assert_array_equal(values, np.arange(-3, 4))
    assert counts.min() > 300  # 400 expected
    assert abs(np.corrcoef(moves.T) - np.eye(4)).max() < 0.15


@pytest.mark.parametrize("jitter", [1, 20, 500])
@pytest.mark.parametrize(
    "mask", [MASK, np.eye(80, 100) * 0 + (np.arange(100) == 99), np.pad([[1]], ((0, 79), (99, 0)))]
)
def test_boxes_stay_inside_and_open(mask: np.ndarray, jitter: int) -> None:
    for i in range(100):
        x0, y0, x1, y1 = prompts.jittered_box(mask, (80, 100), jitter, rng(i))
        assert 0 <= x0 <= x1 - 1 <= 99
        assert 0 <= y0 <= y1 - 1 <= 79


def test_one_pixel_gets_a_box_of_one_pixel_round_it() -> None:
    mask = np.zeros((8, 8), bool)
    mask[3, 5] = True
    x0, y0, x1, y1 = prompts.exact_box(mask, (8, 8))
    assert (x1 - x0, y1 - y0) == (1, 1)
    assert x0 <= 5 <= x1
    assert y0 <= 3 <= y1
    one = prompts.exact_box(np.ones((1, 1), bool), (1, 1))
    np.testing.assert_array_equal(one, [0, 0, 1, 1])


def test_shares_of_exact_and_whole_image_boxes() -> None:
    config = PromptConfig(jitter_px=5, oracle=0.3, whole_image=0.2)
    boxes = [prompts.training_box(MASK, (80, 100), config, rng(i)) for i in range(1000)]
    exact = sum(np.array_equal(box, EXACT) for box in boxes)
    whole = sum(np.array_equal(box, [0, 0, 100, 80]) for box in boxes)
    assert 250 < exact < 350
    assert 150 < whole < 250


def test_empty_mask_has_no_box() -> None:
    with pytest.raises(DataError, match="no foreground"):
        prompts.exact_box(np.zeros((4, 4), bool), (4, 4))


@pytest.mark.parametrize("foreground", [True, False])
def test_points_lie_where_they_should(foreground: bool) -> None:
    found = prompts.points(MASK, (60, 90), 500, rng(0), foreground=foreground)
    assert found.shape == (500, 2)
    inside = MASK[found[:, 1].astype(int), found[:, 0].astype(int)]
    assert (inside == foreground).all()
    assert (found < [90, 60]).all()
    assert (found % 1 == 0.5).all()


def test_points_of_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="outside"):
        prompts.points(np.ones((4, 4), bool), (4, 4), 1, rng(0), foreground=False)
