from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from adalora_qat.corpus.records import Record
from adalora_qat.samples.structures import assemble, split_sides, usable, wanted

CHEST = ("left_lung", "right_lung", "heart")


def record(*masks: str) -> Record:
    return Record("a/1", "a", Path("1.png"), {name: Path(f"{name}.png") for name in masks})


def lungs(*columns: tuple[int, int], rows: tuple[int, int] = (4, 28)) -> NDArray[np.bool_]:
    mask = np.zeros((32, 32), dtype=np.bool_)
    for first, last in columns:
        mask[rows[0] : rows[1], first:last] = True
    return mask


def test_a_union_is_read_where_sides_are_missing() -> None:
    assert wanted(record(*CHEST), CHEST) == CHEST
    assert wanted(record("lung"), CHEST) == ("lung",)
    assert wanted(record("lung", "heart"), CHEST) == ("heart", "lung")
    assert wanted(record("lung"), ("heart",)) == ()
    assert usable([record("lung"), record("infection")], CHEST, CHEST) == [record("lung")]


def test_two_clear_lungs_become_the_patient_s_right_and_left() -> None:
    right, left = lungs((3, 12)), lungs((18, 29))
    halves = split_sides(right | left)
    assert halves is not None
    # The patient's right is on the left of the picture.
    np.testing.assert_array_equal(halves, [right, left])


@pytest.mark.parametrize(
    "union",
    [
        lungs((3, 29)),  # they touch
        lungs((3, 12)),  # one lung
        lungs((3, 12), (18, 20)),  # one nearly gone
        lungs((10, 14), (15, 19)),  # not apart
        lungs((3, 12), (18, 29)) | lungs((14, 16), rows=(0, 3)),  # a piece that is of neither
    ],
)
def test_unclear_unions_are_not_split(union: NDArray[np.bool_]) -> None:
    assert split_sides(union) is None


def test_what_is_not_drawn_is_unknown_and_an_unclear_union_is_kept() -> None:
    clear, unclear = lungs((3, 12), (18, 29)), lungs((3, 29))
    split = assemble(clear[None], ("lung",), CHEST)
    assert split.known.tolist() == [True, True, False] and not split.merged
    np.testing.assert_array_equal(split.masks[0], lungs((18, 29)))
    assert not split.masks[2].any()
    merged = assemble(unclear[None], ("lung",), CHEST)
    assert merged.known.tolist() == [False, False, False] and merged.merged
    np.testing.assert_array_equal(merged.masks[0], unclear)


def test_given_masks_stay_as_they_are() -> None:
    given = np.stack([lungs((18, 29)), lungs((3, 12)), lungs((12, 20))])
    truth = assemble(given, CHEST, CHEST)
    assert truth.known.all() and not truth.merged
    np.testing.assert_array_equal(truth.masks, given)
