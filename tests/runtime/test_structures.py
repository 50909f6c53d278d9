"""What masks are called."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adalora_qat.errors import DataError
from adalora_qat.runtime.structures import read_structures, save_masks


def table(folder: Path, *rows: str) -> Path:
    path = folder / "boxes.csv"
    path.write_text("\n".join(rows))
    return path


def test_a_table_may_say_what_its_boxes_hold(tmp_path: Path) -> None:
    rows = ("file, x0, structure", "in/a.png, 1, liver", "b.png, 1, spleen", "a.png, 1, spleen")
    assert read_structures(table(tmp_path, *rows)) == {
        "a.png": ("liver", "spleen"),
        "b.png": ("spleen",),
    }
    assert read_structures(table(tmp_path, "file,x0", "a.png,1")) == {}


@pytest.mark.parametrize("name", ["", "../x", "Left kidney", "2"])
def test_a_name_that_no_file_can_have_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    path = table(tmp_path, "file,structure", "a.png,liver", f"a.png,{name}")
    with pytest.raises(DataError, match=r"boxes\.csv, line 3: .* cannot name a structure"):
        read_structures(path)


def test_masks_of_one_structure_are_united(tmp_path: Path) -> None:
    masks = np.eye(3, dtype=bool)[:, None, :]
    paths = save_masks(tmp_path, "x", masks, ("rib", "liver", "rib"))
    assert [path.name for path in paths] == ["x_rib_mask.png", "x_liver_mask.png"]
    read = [np.asarray(Image.open(path)).tolist() for path in paths]
    assert read == [[[255, 0, 255]], [[0, 255, 0]]]
