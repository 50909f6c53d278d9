"""Outlines: filled again they give the mask, exactly, and they are valid polygons."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from adalora_qat.imaging.contours import geojson, polygons, rings

DRAWN = {
    "nothing": ["...", "...", "..."],
    "one pixel": ["...", ".#.", "..."],
    "everything": ["##", "##"],
    "a hole": ["####", "#..#", "####"],
    "an island in a lake": ["#####", "#...#", "#.#.#", "#...#", "#####"],
    "pixels that touch at a corner": ["#..", ".#.", "..#"],
    "holes that touch at a corner": ["####", "#.##", "##.#", "####"],
    "a ring closed by a corner": ["###.", "#.#.", "##.#", "...#"],
    "a chequerboard": ["#.#.#", ".#.#.", "#.#.#"],
}


def mask_of(name: str) -> NDArray[np.bool_]:
    return np.array([[letter == "#" for letter in row] for row in DRAWN[name]])


def filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Count, for the middle of each pixel, the upright edges of all polygons to its right."""
    height, width = mask.shape
    inside = np.zeros((height, width), dtype=int)
    for polygon in polygons(mask):
        for ring in polygon:
            for (x0, y0), (x1, y1) in pairwise(ring):
                assert (x0 == x1) != (y0 == y1)  # along the edges of pixels, and never in place
                if x0 == x1:
                    inside[min(y0, y1) : max(y0, y1), :x0] += 1
    return inside % 2 == 1


@pytest.mark.parametrize("name", DRAWN)
def test_polygons_fill_to_the_mask(name: str) -> None:
    mask = mask_of(name)
    np.testing.assert_array_equal(filled(mask), mask)


@pytest.mark.parametrize("seed", range(5))
def test_noise_fills_to_itself_in_rings_that_touch_nowhere_twice(seed: int) -> None:
    mask = np.random.default_rng(seed).random((23, 31)) < (0.3, 0.4, 0.5, 0.6, 0.7)[seed]
    np.testing.assert_array_equal(filled(mask), mask)
    for ring in rings(mask):
        assert ring[0] == ring[-1] and len(set(ring)) == len(ring) - 1
    # Outer rings first, turning one way round more area than their holes, the other way.
    for outer, *holes in polygons(mask):
        assert area(outer) > -sum(map(area, holes)) >= 0
        assert all(area(hole) < 0 for hole in holes)


def area(ring: list[list[int]]) -> float:
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(ring)) / 2


def test_holes_and_islands_belong_where_they_lie() -> None:
    [lake] = [one for one in polygons(mask_of("an island in a lake")) if len(one) == 2]
    assert area(lake[0]) == 25 and area(lake[1]) == -9
    assert len(polygons(mask_of("an island in a lake"))) == 2
    assert polygons(mask_of("one pixel")) == [[[[1, 1], [2, 1], [2, 2], [1, 2], [1, 1]]]]


def test_each_mask_is_a_feature() -> None:
    masks = np.stack([mask_of("one pixel"), mask_of("nothing")])
    made = geojson(masks, ["heart", "lung"])
    assert made["type"] == "FeatureCollection"
    assert [one["properties"] for one in made["features"]] == [
        {"object": 0, "structure": "heart"},
        {"object": 1, "structure": "lung"},
    ]
    assert [len(one["geometry"]["coordinates"]) for one in made["features"]] == [1, 0]
    assert geojson(masks)["features"][0]["properties"] == {"object": 0}
