from pathlib import Path

import pytest

from adalora_qat.errors import DataError, UserError
from adalora_qat.evaluate.journal import Journal

IDENTITY = {"model": "a", "targets": ("lung",), "seed": 0}


def filled(path: Path) -> None:
    journal = Journal(path, IDENTITY, resume=True)
    journal.add("one", [{"x": 0.1}])
    journal.add("two", [{"x": float("nan")}, {"x": None}])
    journal.close()


def test_goes_on_where_it_stopped(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    journal = Journal(tmp_path / "j", IDENTITY, resume=True)
    assert journal.done["one"] == [{"x": 0.1}]
    assert journal.done["two"][1] == {"x": None}
    journal.add("three", [])
    journal.close()
    assert list(Journal(tmp_path / "j", IDENTITY, resume=True).done) == ["one", "two", "three"]


def test_begins_anew_when_told(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    assert not Journal(tmp_path / "j", IDENTITY, resume=False).done


@pytest.mark.parametrize("cut", range(1, 40))
def test_half_a_line_is_dropped(tmp_path: Path, cut: int) -> None:
    filled(tmp_path / "j")
    whole = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(whole[:-cut])
    journal = Journal(tmp_path / "j", IDENTITY, resume=True)
    assert list(journal.done) == ["one"]
    journal.add("two", [{"x": float("nan")}, {"x": None}])
    journal.close()
    assert (tmp_path / "j").read_bytes() == whole


def test_half_a_first_line_is_begun_again(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    (tmp_path / "j").write_bytes((tmp_path / "j").read_bytes()[:10])
    filled(tmp_path / "j")
    assert list(Journal(tmp_path / "j", IDENTITY, resume=True).done) == ["one", "two"]


def test_another_identity_is_refused_by_name(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    with pytest.raises(DataError, match=r"seed: 0 there, 1 now.*choose another folder"):
        Journal(tmp_path / "j", IDENTITY | {"seed": 1}, resume=True)
    assert len((tmp_path / "j").read_text().splitlines()) == 3


def test_a_damaged_line_is_told(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    text = (tmp_path / "j").read_text().splitlines()
    text[1] = text[1][:5]
    (tmp_path / "j").write_text("\n".join(text) + "\n")
    with pytest.raises(DataError, match="line 2, is damaged"):
        Journal(tmp_path / "j", IDENTITY, resume=True)


def test_without_a_path_nothing_is_written(tmp_path: Path) -> None:
    journal = Journal(None, IDENTITY, resume=True)
    journal.add("one", [])
    journal.discard()
    assert not list(tmp_path.iterdir()) and "one" in journal.done


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another folder"):
        Journal(tmp_path / "file" / "j", IDENTITY, resume=True)
