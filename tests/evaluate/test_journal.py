import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError, UserError
from adalora_qat.evaluate.journal import Journal, answer_fingerprint, records_fingerprint
from adalora_qat.predictor import Prediction

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


class Linear:
    name = "linear"

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def predict(self, image: Any, boxes_xyxy_original: Any) -> Prediction:
        logits = (self.weight * image[None].astype(np.float32)).repeat(2, 0)
        return Prediction(logits > 100, np.ones(2, np.float32), logits, boxes_xyxy_original)


def test_the_last_bit_of_a_weight_is_another_model() -> None:
    weight = float(np.float32(0.7))
    assert answer_fingerprint(Linear(weight)) == answer_fingerprint(Linear(weight))
    other = float(np.nextafter(np.float32(weight), np.float32(1)))
    assert answer_fingerprint(Linear(weight)) != answer_fingerprint(Linear(other))


def test_records_are_their_statements_and_their_files(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("image", "lung", "heart")]
    for path in paths:
        path.write_text("x")
    record = Record("s/1", "s", paths[0], {"lung": paths[1], "heart": paths[2]})
    plain = records_fingerprint([record], ["lung"])
    assert records_fingerprint([record], ["lung"]) == plain
    for other in (
        dataclasses.replace(record, label="ill"),
        dataclasses.replace(record, patient="p"),
        dataclasses.replace(record, spacing_mm=(1.0, 1.0)),
    ):
        assert records_fingerprint([other], ["lung"]) != plain
    paths[2].write_text("another heart")
    assert records_fingerprint([record], ["lung"]) == plain  # it is not evaluated
    stamp = paths[1].stat().st_mtime_ns
    paths[1].write_text("y")
    os.utime(paths[1], ns=(stamp, stamp + 1))
    assert records_fingerprint([record], ["lung"]) != plain
