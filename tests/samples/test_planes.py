"""Records decoded to the model side."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError
from adalora_qat.samples.planes import decode


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def record(tmp_path: Path) -> Record:
    ramp = np.add.outer(np.arange(120), np.arange(90)).astype(np.uint8)
    left, right = np.zeros((2, 120, 90), np.uint8)
    left[30:80, 50:80] = right[30:90, 10:40] = 255
    masks = {"left_lung": left, "right_lung": right}
    paths = {kind: save(tmp_path / f"{kind}.png", mask) for kind, mask in masks.items()}
    return Record("set/one", "set", save(tmp_path / "image.png", ramp), paths)


def with_mask(record: Record, tmp_path: Path, mask: np.ndarray) -> Record:
    return Record("set/two", "set", record.image, {"lung": save(tmp_path / "lung.png", mask)})


def test_lungs_are_the_union_of_their_sides(record: Record) -> None:
    planes = decode(record, 60, ("lung", "left_lung", "right_lung"))
    assert planes.grey.shape == (60, 45)
    assert planes.masks.shape == (3, 60, 45)
    np.testing.assert_array_equal(planes.masks[0], planes.masks[1] | planes.masks[2])
    expected = np.zeros((60, 45), bool)
    expected[15:40, 25:40] = True
    np.testing.assert_array_equal(planes.masks[1], expected)


def test_mask_stored_smaller_covers_the_same_field(record: Record, tmp_path: Path) -> None:
    half = np.zeros((60, 45), np.uint8)
    half[10:30, 5:40] = 1
    planes = decode(with_mask(record, tmp_path, half), 60, ("lung",))
    np.testing.assert_array_equal(planes.masks[0], half > 0)


def test_mask_of_another_field_is_refused(record: Record, tmp_path: Path) -> None:
    other = with_mask(record, tmp_path, np.ones((90, 90), np.uint8))
    with pytest.raises(DataError, match=r"lung\.png is a mask of 90x90 .* 90x120"):
        decode(other, 60, ("lung",))


def test_empty_and_missing_masks_are_refused(record: Record, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lung\.png.*no foreground"):
        decode(with_mask(record, tmp_path, np.zeros((120, 90), np.uint8)), 60, ("lung",))
    with pytest.raises(DataError, match="set/one has no heart mask"):
        decode(record, 60, ("heart",))


def test_a_speck_survives_the_smaller_frame(record: Record, tmp_path: Path) -> None:
    speck = np.zeros((120, 90), np.uint8)
    speck[101, 61] = 255
    planes = decode(with_mask(record, tmp_path, speck), 24, ("lung",))
    assert np.argwhere(planes.masks[0]).tolist() == [[20, 12]]
