"""Data of one's own: pairs, tables, COCO, images alone."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from adalora_qat.corpus.generic_sources import (
    read_coco,
    read_images,
    read_manifest_table,
    read_pairs,
)
from adalora_qat.corpus.mask_codes import EncodedRecord
from adalora_qat.corpus.sources import read_source
from adalora_qat.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_pairs_in_two_folders_with_kinds_and_subfolders(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "images/x.png",
        "images/sub/y.dcm",
        "images/notes.txt",
        "masks/x.png",
        "masks/heart/x.png",
        "masks/left_lung/sub/y_mask.png",
        "masks/z.png",
    )
    reading = read_pairs(tmp_path)
    masks = {record.image.name: sorted(record.masks) for record in reading.records}
    assert masks == {"x.png": ["heart", "lung"], "y.dcm": ["left_lung"]}
    assert reading.found == 4
    assert {item.path.name for item in reading.set_aside} == {"notes.txt", "z.png"}


def test_pairs_in_one_folder_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a_mask.png", "b.jpg", "b_left_lung.png", "b-heart.png", "c.png")
    reading = read_pairs(tmp_path)
    masks = {record.image.name: sorted(record.masks) for record in reading.records}
    assert masks == {"a.png": ["lung"], "b.jpg": ["heart", "left_lung"], "c.png": []}
    assert not reading.set_aside


def test_pairs_of_any_structure_by_folder(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "images/x.png",
        "images/site/y.png",
        "masks/Left Kidney/x.png",
        "masks/spleen/site/y_mask.png",
        "masks/site/y.png",
        "masks/site/z.png",
    )
    reading = read_pairs(tmp_path)
    masks = {record.image.name: list(record.masks) for record in reading.records}
    # A folder that the images have too is a sub-folder, not a structure.
    assert masks == {"x.png": ["left_kidney"], "y.png": ["lung", "spleen"]}
    assert [item.path.name for item in reading.set_aside] == ["z.png"]


def test_pairs_of_any_structure_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a_1.png", "a_1_spleen_mask.png", "a_left-kidney_mask.png")
    touch(tmp_path, "a_lateral.png", "a_1_Liver.png")
    reading = read_pairs(tmp_path)
    masks = {record.image.name: sorted(record.masks) for record in reading.records}
    assert masks == {
        "a.png": ["left_kidney"],
        "a_1.png": ["spleen"],
        "a_1_Liver.png": [],
        "a_lateral.png": [],
    }
    (note,) = reading.notes
    assert note.startswith("2 images") and "name it a_1_liver_mask" in note


def test_pairs_without_any_pair_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "images/x.png", "masks/y.png")
    with pytest.raises(DataError, match="mask of the same name"):
        read_pairs(tmp_path)
    touch(tmp_path / "other", "images/x.png")
    with pytest.raises(DataError, match="one folder masks/"):
        read_pairs(tmp_path / "other")


def test_images_alone_find_dicom_without_a_suffix(tmp_path: Path, fuzz_inputs: ModuleType) -> None:
    touch(tmp_path, "a.png", "sub/b.jpg", "readme.txt", "c")
    pixels = np.zeros((4, 4), np.uint8)
    whole = fuzz_inputs.dicom_bytes(pixels, 8, fuzz_inputs.ExplicitVRLittleEndian)
    (tmp_path / "d").write_bytes(whole)
    (tmp_path / "e").write_bytes(b"\x08\x00\x05\x00CS")
    reading = read_images(tmp_path)
    assert [record.image.name for record in reading.records] == ["a.png", "d", "e", "b.jpg"]
    assert reading.found == 6
    assert all(not record.masks for record in reading.records)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_table_rows_become_records_and_bad_rows_are_set_aside(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, "x.png", "y.png", "m/x.png", "m/h.png")
    rows = [
        {"image": "x.png", "mask": "m/x.png", "mask_heart": "m/h.png", "patient": "007",
         "label": "ill", "spacing_row_mm": 0.2, "spacing_col_mm": 0.3},
        {"image": "y.png", "id": "second"},
        {"image": "gone.png"},
        {"image": "x.png", "id": "third", "mask": "m/gone.png"},
        {"label": "no image"},
    ]  # fmt: skip
    path = tmp_path / f"table{suffix}"
    table = pd.DataFrame(rows)
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    reading = read_manifest_table(path)
    first, second = reading.records
    assert (first.id, first.patient, first.label) == ("manifest/x", "007", "ill")
    assert first.spacing_mm == (0.2, 0.3)
    assert sorted(first.masks) == ["heart", "lung"]
    assert (second.id, second.masks, second.spacing_mm) == ("manifest/second", {}, None)
    assert reading.found == 5
    assert ["gone.png" in i.reason for i in reading.set_aside] == [True, True, False]


def test_table_without_an_image_column_is_refused_with_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("file,mask\nx,y\n")
    with pytest.raises(DataError, match=r"it has file, mask"):
        read_manifest_table(path)


def table(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text)
    return path


def test_table_columns_of_any_structure_and_a_note_on_the_rest(tmp_path: Path) -> None:
    touch(tmp_path, "x.png", "s.png", "k.png")
    path = table(tmp_path, "image,mask_spleen,Mask_Left Kidney,age\nx.png,s.png,k.png,40\n")
    reading = read_manifest_table(path)
    assert reading.records[0].masks == {
        "spleen": tmp_path / "s.png",
        "left_kidney": tmp_path / "k.png",
    }
    (note,) = reading.notes
    assert "'age'" in note and "table.csv" in note


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,mask_2\nx.png,m.png\n", "'mask_2' .* names no structure"),
        ("image,spleen_mask\nx.png,m.png\n", "'spleen_mask' .* mask_<structure>"),
        ("image,mask,mask_lung\nx.png,m.png,m.png\n", "two columns of lung masks"),
        ("image,mask_Milz ü\nx.png,m.png\n", "names no structure"),
        ("image,spacing_row_mm,spacing_col_mm\nx.png,0.2,wide\n", "row 2: .* not 0.2 and wide"),
        ("image,spacing_row_mm\nx.png,0.2\n", "must both be sizes"),
        ("image,spacing_row_mm,spacing_col_mm\nx.png,0.2,0\n", "above 0"),
        ("image,spacing_row_mm,spacing_col_mm\nx.png,inf,inf\n", "above 0"),
        ("image\n", "no images"),
        ("", "cannot be read as a table"),
    ],
)
def test_tables_that_say_something_else_are_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    touch(tmp_path, "x.png", "m.png")
    with pytest.raises(DataError, match=message):
        read_manifest_table(table(tmp_path, text))


def test_a_folder_that_cannot_be_read_is_no_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(folder: str, onerror: Callable[[OSError], None]) -> list[object]:
        onerror(PermissionError(13, "Permission denied", f"{folder}/closed"))
        return []

    monkeypatch.setattr("adalora_qat.corpus.generic_sources.os.walk", forbidden)
    with pytest.raises(DataError, match="closed cannot be read"):
        read_source("images", tmp_path)


def coco(root: Path, **changes: object) -> Path:
    square = [[0, 0, 2, 0, 2, 2, 0, 2]]
    content: dict[str, object] = {
        "images": [
            {"id": 1, "file_name": "x.png", "height": 4, "width": 4},
            {"id": 2, "file_name": "gone.png", "height": 4, "width": 4},
            {"id": 3, "file_name": "y.png"},
        ],
        "categories": [{"id": 7, "name": "Left lung"}, {"id": 8, "name": "rib"}],
        "annotations": [
            {"image_id": 1, "category_id": 7, "segmentation": square},
            {"image_id": 1, "category_id": 8, "segmentation": square},
        ],
    }
    path = root / "annotations" / "instances.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content | changes))
    return path


def test_coco_categories_become_structures(tmp_path: Path) -> None:
    touch(tmp_path, "images/x.png", "images/y.png")
    coco(tmp_path)
    reading = read_coco(tmp_path)
    (record,) = reading.records
    assert isinstance(record, EncodedRecord)
    assert list(record.codes) == ["left_lung", "rib"]
    assert all(code.decode().sum() == 4 for code in record.codes.values())
    reasons = " | ".join(item.reason for item in reading.set_aside)
    assert reading.found == 3
    assert "no image file" in reasons and "height and width" in reasons


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": [{"id": 1, "name": "car"}]}, "category 7, which its categories lack"),
        ({"categories": [{"id": 7, "name": "7"}]}, "category '7' .* cannot name a structure"),
        ({"categories": [{"id": [7], "name": "car"}]}, "neither a number nor a text"),
        ({"images": 3}, "must hold the lists"),
        ({"annotations": [3]}, "must hold the lists"),
    ],
)
def test_coco_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_coco(coco(tmp_path, **changes))
