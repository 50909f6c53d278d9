"""Phantoms: the anatomy holds, the masks are exact, and a seed is a patient."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adalora_qat.errors import DataError
from adalora_qat.phantom.phantom import phantom, write_phantoms

SEEDS = range(12)
ORGANS = ("left_lung", "right_lung", "heart")


@pytest.mark.parametrize("seed", SEEDS)
def test_anatomy_holds(seed: int) -> None:
    made = phantom(seed, 128)
    masks = {organ: made.masks[organ] for organ in ORGANS}
    assert made.image.shape == (128, 128)
    assert made.image.dtype == np.uint8
    assert np.ptp(made.image) > 100
    total = sum(mask.astype(int) for mask in masks.values())
    assert total.max() == 1, "organs overlap"
    centre = {organ: np.argwhere(mask).mean(axis=0) for organ, mask in masks.items()}
    assert centre["right_lung"][1] < centre["heart"][1] < centre["left_lung"][1]
    assert centre["heart"][0] > centre["left_lung"][0]
    lungs = (masks["left_lung"] | masks["right_lung"]).mean()
    assert 0.12 < lungs < 0.5
    assert masks["heart"].mean() > 0.02


@pytest.mark.parametrize("seed", SEEDS)
def test_lungs_are_darker_than_heart_and_abdomen(seed: int) -> None:
    made = phantom(seed, 128)
    lungs = made.masks["left_lung"] | made.masks["right_lung"]
    assert made.image[lungs].mean() + 10 < made.image[made.masks["heart"]].mean()


def test_a_seed_is_one_patient_at_every_side() -> None:
    small, large = phantom(5, 64), phantom(5, 256)
    for organ in ORGANS:
        shrunk = large.masks[organ].reshape(64, 4, 64, 4).mean(axis=(1, 3)) > 0.5
        differing = (shrunk != small.masks[organ]).sum()
        assert differing < 0.02 * small.masks[organ].sum() + 2


def test_the_same_seed_is_the_same_image_and_another_is_not() -> None:
    first, again, other = phantom(3, 64), phantom(3, 64), phantom(4, 64)
    np.testing.assert_array_equal(first.image, again.image)
    assert (first.image != other.image).mean() > 0.5


@pytest.mark.parametrize("arguments", [(-1, 256), (0, 8), (0, 64, "foot")])
def test_impossible_phantoms_are_refused(arguments: tuple) -> None:
    with pytest.raises(DataError, match="phantom"):
        phantom(*arguments)


def test_written_folder_holds_images_and_masks(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_phantoms(tmp_path, 3, 40, 64, lambda done, total, _: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert len(list((tmp_path / "images").iterdir())) == 3
    made = phantom(41, 64)
    name = "phantom_000041.png"
    np.testing.assert_array_equal(Image.open(tmp_path / "images" / name), made.image)
    for organ in ORGANS:
        mask = np.asarray(Image.open(tmp_path / "masks" / organ / name))
        np.testing.assert_array_equal(mask, made.masks[organ] * np.uint8(255))
    before = (tmp_path / "images" / name).read_bytes()
    write_phantoms(tmp_path, 3, 40, 64)
    assert (tmp_path / "images" / name).read_bytes() == before


def test_no_phantoms_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="count=0"):
        write_phantoms(tmp_path, 0)
