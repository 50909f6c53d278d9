from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError
from adalora_qat.evaluate.mask_files import load_truth, mask_path, save_mask


def record(folder: Path, **masks: np.ndarray) -> Record:
    files = {kind: folder / f"{kind}.png" for kind in masks}
    for kind, mask in masks.items():
        Image.fromarray(mask).save(files[kind])
    return Record("s/1", "s", folder / "image.png", files)


def random_mask(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width)) > 0.5


def test_a_truth_of_the_images_size_is_taken_as_it_is(tmp_path: Path) -> None:
    given = random_mask(9, 7)
    mask, resized = load_truth(record(tmp_path, lung=given), "lung", (9, 7))
    assert not resized and np.array_equal(mask, given)


def test_both_lungs_are_joined(tmp_path: Path) -> None:
    left, right = random_mask(9, 7, 1), random_mask(9, 7, 2)
    both = record(tmp_path, left_lung=left, right_lung=right)
    assert np.array_equal(load_truth(both, "lung", (9, 7))[0], left | right)


def test_another_size_is_resized_by_nearest_neighbour_and_said_so(tmp_path: Path) -> None:
    given = random_mask(6, 4)
    mask, resized = load_truth(record(tmp_path, lung=given), "lung", (12, 8))
    assert resized and np.array_equal(mask, np.kron(given, np.ones((2, 2), bool)))
    # RGB masks of 0 and 255, as the COVID-19 Radiography Database has them.
    rgb = np.repeat(given[..., None] * np.uint8(255), 3, axis=2)
    assert np.array_equal(load_truth(record(tmp_path, lung=rgb), "lung", (12, 8))[0], mask)


def test_a_target_the_record_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="s/1 gives no heart mask"):
        load_truth(record(tmp_path, lung=random_mask(3, 3)), "heart", (3, 3))


def test_mask_files_of_two_cases_never_coincide(tmp_path: Path) -> None:
    assert mask_path(tmp_path, "set/a b", "lung") != mask_path(tmp_path, "set/a_b", "lung")
    assert mask_path(tmp_path, "../../x", "lung").parent == tmp_path / "masks"


def test_a_saved_mask_reads_back(tmp_path: Path) -> None:
    given = random_mask(9, 7)
    save_mask(tmp_path / "masks" / "x.png", given)
    image = Image.open(tmp_path / "masks" / "x.png")
    assert image.mode == "1" and np.array_equal(np.asarray(image), given)
