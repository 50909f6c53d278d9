"""Pictures of cases, read back."""

import io

import numpy as np
from PIL import Image

from adalora_qat.report.overlays import (
    difference_png,
    grey_jpeg,
    mask_png,
    resized,
    stored_size,
)


def test_small_pictures_stay_and_large_ones_keep_their_shape() -> None:
    assert stored_size((100, 50), 448) == (50, 100)
    assert stored_size((3000, 2000), 300) == (200, 300)
    assert stored_size((1, 5000), 10) == (10, 1)


def test_mask_keeps_its_area_when_shrunk() -> None:
    mask = np.zeros((300, 300), bool)
    mask[30:270, 60:240] = True
    small = resized(mask, (100, 100))
    assert small.sum() == 80 * 60


def test_mask_png_is_clear_outside_and_opaque_at_the_edge() -> None:
    mask = np.zeros((40, 40), bool)
    mask[10:30, 10:30] = True
    rgba = np.asarray(Image.open(io.BytesIO(mask_png(mask, (1, 2, 3)))).convert("RGBA"))
    assert rgba[5, 5, 3] == 0
    assert tuple(rgba[10, 20]) == (1, 2, 3, 255)
    assert 0 < rgba[20, 20, 3] < 128


def test_difference_png_shows_single_pixels_in_the_colour_of_their_mask() -> None:
    first = np.zeros((100, 100), bool)
    second = first.copy()
    first[20, 20], second[70, 70] = True, True
    red, blue = (255, 0, 0), (0, 0, 255)
    picture = Image.open(io.BytesIO(difference_png(first, second, (50, 50), red, blue)))
    rgba = np.asarray(picture.convert("RGBA"))
    assert tuple(rgba[10, 10, :3]) == red
    assert tuple(rgba[35, 35, :3]) == blue
    assert np.count_nonzero(rgba[..., 3]) == 10  # two plus signs


def test_sixteen_bits_and_one_colour_can_be_shown() -> None:
    deep = (np.arange(64 * 64).reshape(64, 64) * 15).astype(np.uint16)
    shown = np.asarray(Image.open(io.BytesIO(grey_jpeg(deep, (64, 64)))))
    assert shown.min() < 10
    assert shown.max() > 245
    grey_jpeg(np.full((8, 8), 7, np.uint8), (8, 8))


def test_tall_pictures_keep_rows_and_columns_apart() -> None:
    first, second = np.zeros((2, 100, 60), bool)
    first[90, 10] = True
    picture = Image.open(io.BytesIO(difference_png(first, second, (30, 50), (9, 9, 9), (8, 8, 8))))
    assert picture.size == (30, 50)
    assert np.asarray(picture.convert("RGBA"))[45, 5, 3] > 200
    assert Image.open(io.BytesIO(grey_jpeg(np.eye(100, 60), (30, 50)))).size == (30, 50)
