"""Masks written as text, against masks drawn by hand."""

import numpy as np
import pytest

from adalora_qat.corpus.mask_codes import CocoShapes, RelativeRuns, decode_rle
from adalora_qat.errors import DataError


def drawn(*rows: str) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows])


def test_relative_runs_go_down_the_columns_and_gaps_count_from_the_last_run() -> None:
    # Pixels 1, 2 of the first column; three further on: pixel 6 = column 1, row 2.
    expected = drawn("..", "#.", "##", "..")
    np.testing.assert_array_equal(decode_rle("1 2 3 1", height=4, width=2), expected)


def test_rows_of_one_image_are_united_and_minus_one_is_nothing() -> None:
    expected = drawn("#.", "..", ".#")
    np.testing.assert_array_equal(decode_rle(["0 1", "5 1", "-1"], 3, 2), expected)
    assert not RelativeRuns(("-1",), 3, 2).decode().any()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1 2 3", "pairs"),
        ("1 x", "whole numbers"),
        ("-2 3", "pairs"),
        ("0 7", "another size"),
        ("0 1 9223372036854775807 2", "another size"),
        ("0 1 99999999999999999999999 2", "whole numbers"),
    ],
)
def test_runs_that_cannot_be_are_refused(row: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode_rle(row, height=3, width=2)


def test_an_impossible_size_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_rle("-1", height=0, width=5)
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_rle("-1", height=10**6, width=10**6)


def test_coco_polygon_fills_pixel_centres_and_annotations_are_united() -> None:
    square = [[1, 0, 3, 0, 3, 2, 1, 2]]
    corner = [[3, 3, 4, 3, 4, 4, 3, 4]]
    mask = CocoShapes((square, corner), 4, 4).decode()
    np.testing.assert_array_equal(mask, drawn(".##.", ".##.", "....", "...#"))


def test_coco_runs_plain_and_packed_are_the_same_mask() -> None:
    # Column by column: three off, two on, then off.
    expected = drawn("...", ".#.", ".#.")
    plain = {"size": [3, 3], "counts": [4, 2, 3]}
    np.testing.assert_array_equal(CocoShapes((plain,), 3, 3).decode(), expected)
    # One group of five bits each, plus 48: 4 → "4", 2 → "2", 3 → "3".
    packed = {"size": [3, 3], "counts": "423"}
    np.testing.assert_array_equal(CocoShapes((packed,), 3, 3).decode(), expected)


def test_packed_counts_use_more_groups_signs_and_differences() -> None:
    # 40 = 8 + 1·32: groups 8|32 = 40 → "X", 1 → "1". Fourth number 5 is written as the
    # difference to the second, 5 − 7 = −2: five bits 11110 = 30 → "N".
    packed = {"size": [64, 1], "counts": "X172N"}
    mask = CocoShapes((packed,), 64, 1).decode()
    on = np.flatnonzero(mask[:, 0])
    np.testing.assert_array_equal(on, [*range(40, 47), *range(49, 54)])


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [4, 4], "counts": [1]},
        {"size": [3, 3], "counts": [8, 2]},
        {"size": [3, 3], "counts": [-1, 2]},
        {"size": [3, 3], "counts": "\x10"},
        {"size": [3, 3], "counts": "X"},
        {"size": [3, 3], "counts": None},
        [[0, 0, 1, 1]],
        [[0, 0, 1, 1, 2]],
        [["a"] * 6],
        [[float("nan")] * 6],
        17,
    ],
)
def test_coco_shapes_that_cannot_be_are_refused(segmentation: object) -> None:
    with pytest.raises(DataError):
        CocoShapes((segmentation,), 3, 3).decode()
