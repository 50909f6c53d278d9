import numpy as np
import pytest
from scipy import ndimage

from adalora_qat.imaging.components import label, largest_components

EIGHT = np.ones((3, 3))


def picture(text: str) -> np.ndarray:
    return np.array([[c == "#" for c in line] for line in text.split()])


def test_components_touch_at_corners_and_join_late() -> None:
    mask = picture("#.#.. ###.. ...#. .....  ##..#")
    labels, areas = label(mask)
    # The two tips join in the second row, the corner pixel in the third is part of them.
    assert areas.tolist() == [6, 2, 1]
    assert labels.tolist() == [
        [1, 0, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [2, 2, 0, 0, 3],
    ]  # fmt: skip


@pytest.mark.parametrize("density", [0.05, 0.35, 0.6, 0.95])
def test_labels_are_scipys(density: float) -> None:
    mask = np.random.default_rng(int(100 * density)).random((61, 47)) < density
    expected, count = ndimage.label(mask, EIGHT)
    labels, areas = label(mask)
    np.testing.assert_array_equal(labels, expected)
    assert areas.tolist() == np.bincount(expected.ravel())[1 : count + 1].tolist()


def test_the_largest_are_kept() -> None:
    mask = picture("##..#  ##...  ...##  ...##  #....")
    assert largest_components(mask, 2).sum() == 8
    assert largest_components(mask, 9).sum() == mask.sum()
    assert not largest_components(np.zeros((4, 4), bool), 2).any()
