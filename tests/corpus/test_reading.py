"""Nothing may be lost between the disk and the report."""

import os
from pathlib import Path

import pytest

from adalora_qat.corpus.reading import (
    MaskIndex,
    Reading,
    SetAside,
    Tally,
    folders_named,
    missing,
    plain,
    shown,
    subfolders,
)
from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError


def record(name: str, **masks: Path) -> Record:
    return Record(f"s/{name}", "s", Path(f"{name}.png"), masks)


def test_counts_that_do_not_add_up_are_refused() -> None:
    aside = [SetAside(Path("b.txt"), "not an image")]
    Reading("s", Path(), [record("a")], aside, found=2)
    with pytest.raises(DataError, match="3 found, but 1 used and 1 set aside"):
        Reading("s", Path(), [record("a")], aside, found=3)


def test_two_records_of_one_id_are_refused_and_none_at_all_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="more than once"):
        Reading("s", Path(), [record("a"), record("a")], [], found=2)
    with pytest.raises(DataError, match="no images"):
        Reading("s", tmp_path, [], [], found=0)


def test_tally_counts_and_sets_aside_a_second_image_of_a_name() -> None:
    tally = Tally("s", Path())
    tally.use(record("a"))
    tally.use(record("a"))
    tally.leave(Path("c.txt"), "not an image")
    reading = tally.reading()
    assert (reading.found, len(reading.records), len(reading.set_aside)) == (3, 1, 2)
    assert "second image" in reading.set_aside[0].reason


def test_folders_are_found_nearest_first_by_letters_and_digits(tmp_path: Path) -> None:
    for name in ("a/b/Left Lung", "left_lung", ".hidden/left_lung", "__MACOSX/left_lung"):
        (tmp_path / name).mkdir(parents=True)
    found = folders_named(tmp_path, ("leftlung",))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "left_lung",
        "a/b/Left Lung",
    ]
    assert tmp_path / "a" in subfolders(tmp_path, 1)
    assert plain("Left-Lung 2") == "leftlung2"


def test_missing_says_what_was_looked_for_and_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "notes.txt").touch()
    text = str(missing("s", tmp_path, "images/"))
    assert "images/" in text and "pictures/" in text and "1 × .txt" in text


def test_mask_index_serves_the_first_of_two_and_lists_both(tmp_path: Path) -> None:
    for name in ("a_mask.png", "A.png", "b.txt"):
        (tmp_path / name).touch()
    index = MaskIndex([tmp_path], key=lambda stem: stem.lower().removesuffix("_mask"))
    assert index.get("a") == tmp_path / "A.png"
    assert "b" not in index
    assert len(index.files) == 2


def test_a_name_that_is_not_utf8_is_set_aside_and_can_be_printed() -> None:
    tally = Tally("s", Path())
    path = Path(os.fsdecode(b"caf\xe9.png"))
    tally.use(Record("s/caf", "s", path))
    assert not tally.records
    assert "UTF-8" in tally.set_aside[0].reason
    assert shown(path) == "caf\\xe9.png"
    assert shown(Path("café.png")) == "café.png"
