"""What a descriptor keeps and what it lets go."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from adalora_qat.corpus.descriptor import (
    COMPARED,
    FREQUENCIES,
    WHOLE,
    describe,
    local_contrast,
    thumbnail,
    window_map,
)
from adalora_qat.phantom.phantom import phantom


def seen(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    flat = describe(thumbnail(grey)).astype(np.float32).ravel()
    return window_map(WHOLE) @ flat


def cosine(one: NDArray[np.float32], two: NDArray[np.float32]) -> float:
    return float(one @ two / np.sqrt((one @ one) * (two @ two)))


@pytest.fixture(scope="module")
def chest() -> NDArray[np.uint8]:
    return phantom(1, 256).image


def test_survives_resizing_contrast_and_another_shape(chest: NDArray[np.uint8]) -> None:
    own = seen(chest)
    dim = (40 + chest * 0.6).astype(np.uint8)
    flat = np.asarray(Image.fromarray(chest).resize((224, 180)))
    assert cosine(own, seen(dim)) > 0.99
    assert cosine(own, seen(flat)) > 0.99
    assert cosine(own, seen(phantom(2, 256).image)) < 0.8


def test_the_window_of_a_descriptor_is_the_descriptor_of_the_window(
    chest: NDArray[np.uint8],
) -> None:
    # 10 % off the left, 5 % off the top: 230 x 243 pixels are left.
    cut = chest[13:, 26:]
    flat = describe(thumbnail(chest)).astype(np.float32).ravel()
    from_whole = window_map(((13 / 256, 0.0), (26 / 256, 0.0))) @ flat
    assert cosine(from_whole, seen(cut)) > 0.93
    assert cosine(window_map(WHOLE) @ flat, seen(cut)) < 0.75


def test_shapes_and_determinism(chest: NDArray[np.uint8]) -> None:
    small = thumbnail(chest)
    assert (small.shape, small.dtype) == ((128, 128), np.uint8)
    described = describe(small)
    assert (described.shape, described.dtype) == ((FREQUENCIES, FREQUENCIES), np.float16)
    assert window_map(WHOLE).shape == (COMPARED**2 - 1, FREQUENCIES**2)
    assert (described == describe(small)).all()


def test_a_cosine_wave_lands_on_its_own_frequency() -> None:
    row, column = (np.arange(128) + 0.5) / 128, (np.arange(128) + 0.5) / 128
    wave = np.cos(np.pi * 5 * row)[:, None] * np.cos(np.pi * 8 * column)[None]
    described = np.abs(describe((127 + 100 * wave).astype(np.uint8)).astype(float))
    assert np.unravel_index(described.argmax(), described.shape) == (5, 8)


def test_local_contrast_is_even_where_the_image_is_not() -> None:
    stripes = np.tile([0, 0, 1, 1], 32)[None].repeat(128, axis=0)
    strength = np.linspace(10, 100, 128)[:, None]
    image = (100 + stripes * strength).astype(np.uint8)
    detail = local_contrast(image, 0.5, 4, 27, 1.0)
    top, bottom = detail[20:40].std(), detail[90:110].std()
    assert abs(top / bottom - 1) < 0.1
    flat = np.full((128, 128), 90, np.uint8)
    assert np.abs(local_contrast(flat, 0, 4, 27, 1.0)).max() < 1e-3


def test_a_thumbnail_averages_areas() -> None:
    board = (np.indices((256, 256)).sum(axis=0) % 2 * 200).astype(np.uint8)
    assert (thumbnail(board) == 100).all()
    assert thumbnail(cv2.resize(board, (60, 40))).shape == (128, 128)
