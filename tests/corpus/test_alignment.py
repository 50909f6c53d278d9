"""A mask on its lungs agrees with the edges; a wrong one does not."""

import numpy as np
import pytest

from adalora_qat.corpus.alignment import edge_agreement
from adalora_qat.phantom.phantom import phantom

SIDE = 200


def discs() -> tuple[np.ndarray, np.ndarray]:
    """Return a bright field with two dark discs, and their mask."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    for centre in (60, 140):
        mask |= np.hypot(rows - 100, columns - centre) < 32
    return np.where(mask, 60, 200).astype(np.uint8), mask


def test_a_drawn_contour_agrees_fully_and_an_inverted_image_not_at_all() -> None:
    image, mask = discs()
    assert edge_agreement(image, mask) > 0.97
    assert edge_agreement(255 - image, mask) < 0.2


def test_agreement_falls_with_the_shift() -> None:
    image, mask = discs()
    shifted = [edge_agreement(image, np.roll(mask, step, axis=0)) for step in (0, 6, 12, 24)]
    assert shifted == sorted(shifted, reverse=True)
    assert shifted[-1] < 0.45


def test_the_longer_side_sets_the_scale() -> None:
    image, mask = discs()
    padded = [np.pad(array, ((0, 100), (0, 0))) for array in (image, mask)]
    assert edge_agreement(*padded) > 0.9


@pytest.mark.parametrize("seed", range(4))
def test_phantoms_agree_with_their_own_masks_and_not_upside_down(seed: int) -> None:
    case = phantom(seed, 256)
    lung = case.masks["left_lung"] | case.masks["right_lung"]
    assert edge_agreement(case.image, lung) > 0.6
    assert edge_agreement(case.image, lung[::-1]) < 0.5


def test_too_short_a_contour_says_nothing() -> None:
    image, _ = discs()
    dot = np.zeros_like(image, dtype=bool)
    dot[100, 100] = True
    assert edge_agreement(image, dot) == 1.0
    assert edge_agreement(image, np.zeros_like(dot)) == 1.0
