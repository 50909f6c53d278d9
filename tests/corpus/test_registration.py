"""One chest or two that look alike."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from adalora_qat.corpus.descriptor import thumbnail
from adalora_qat.corpus.registration import SAME_IMAGE, Layers, similarity
from adalora_qat.phantom.phantom import phantom


@pytest.fixture(scope="module")
def chest() -> NDArray[np.uint8]:
    return phantom(3, 256).image


def compared(one: NDArray[np.uint8], two: NDArray[np.uint8]) -> float:
    return similarity(Layers(thumbnail(one)), Layers(thumbnail(two)))


def reencoded(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    stored = io.BytesIO()
    Image.fromarray(image).resize((side, side)).save(stored, "JPEG", quality=50)
    return np.asarray(Image.open(stored))


def test_an_image_is_itself(chest: NDArray[np.uint8]) -> None:
    assert compared(chest, chest) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "window", [np.s_[:, :], np.s_[13:243, 13:243], np.s_[6:, :245]], ids=["whole", "crop", "corner"]
)
def test_a_copy_is_known_through_cropping_and_encoding(
    chest: NDArray[np.uint8], window: tuple[slice, slice]
) -> None:
    copy = reencoded((30 + 0.7 * chest[window]).astype(np.uint8), 224)
    assert compared(chest, copy) > SAME_IMAGE


def test_the_window_tells_where_to_start(chest: NDArray[np.uint8]) -> None:
    # Far enough that the alignment does not find home without being told.
    copy = chest[60:, 70:]
    one, two = Layers(thumbnail(chest)), Layers(thumbnail(copy))
    assert similarity(one, two, ((60 / 256, 0.0), (70 / 256, 0.0))) > SAME_IMAGE


def test_a_small_turn_is_no_other_patient(chest: NDArray[np.uint8]) -> None:
    turned = np.asarray(Image.fromarray(chest).rotate(4, Image.Resampling.BILINEAR))
    assert compared(chest, turned) > SAME_IMAGE


@pytest.mark.parametrize("seed", range(10, 22))
def test_another_patient_is_another(chest: NDArray[np.uint8], seed: int) -> None:
    assert compared(chest, phantom(seed, 256).image) < SAME_IMAGE


def test_nothing_to_align_is_no_match(chest: NDArray[np.uint8]) -> None:
    flat = np.full((256, 256), 80, np.uint8)
    assert compared(chest, flat) < SAME_IMAGE
    assert compared(flat, flat) < SAME_IMAGE
