import json
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest
from made_dicom import chest

from adalora_qat import Model
from adalora_qat.dicom.answer import Answering
from adalora_qat.dicom.folder import Outcome, answer_folder
from adalora_qat.errors import DataError


def run(source: Path, out: Path, model: Model, **options: bool) -> Outcome:
    return answer_folder(source, out, partial(Answering, model, ("SEG", "SR")), **options)


def test_a_tree_with_a_zip_and_rubbish(tmp_path: Path, model: Model) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "IM0001").write_bytes(chest(1))
    (source / "notes.txt").write_text("no image")
    (source / "cut.dcm").write_bytes(chest(2)[:3000])
    (source / "hand.dcm").write_bytes(chest(4, BodyPartExamined="HAND"))
    with zipfile.ZipFile(source / "more.zip", "w") as archive:
        archive.writestr("a/IM0002", chest(3))
    outcome = run(source, out, model)
    assert len(outcome.images) == 2 and outcome.skipped == 1
    assert sorted("another part" in one["reason"] for one in outcome.refused) == [False, True]
    said = json.loads((out / "result.json").read_text())
    for image in said["images"]:
        for kind, name in image["objects"].items():
            made = pydicom.dcmread(out / name)
            assert made.Modality == kind and made.PatientID == "P-4711"
    assert "P-4711" not in (out / "result.json").read_text()


def test_names_as_mercure_has_them(tmp_path: Path, model: Model) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.2#1.3.dcm").write_bytes(chest(1))
    outcome = run(tmp_path / "in", tmp_path / "out", model, mercure_names=True)
    for name in outcome.images[0]["objects"].values():
        made = pydicom.dcmread(tmp_path / "out" / name)
        assert name == f"{made.SeriesInstanceUID}#{made.SOPInstanceUID}.dcm"
    said = json.loads((tmp_path / "out" / "result.json").read_text())
    assert "1 segmented" in said["__mercure_notification"]["text"]


def test_a_source_without_dicom_is_an_error(tmp_path: Path, model: Model) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="no DICOM image"):
        run(tmp_path, tmp_path / "out", model)


def test_nothing_of_a_patient_is_printed(
    tmp_path: Path, model: Model, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_bytes(chest(1, PatientName="Single"))
    run(tmp_path / "in", tmp_path / "out", model)
    said = "".join(capfd.readouterr())
    assert "Single" not in said and "P-4711" not in said


def test_mutated_files_are_answered_or_refused_with_a_reason(model: Model) -> None:
    answer, rng = Answering(model, ("SR",)), np.random.default_rng(0)
    whole = chest(1)
    for _ in range(12):
        data = bytearray(whole)
        for place in rng.integers(128, 1500, rng.integers(1, 6)):
            data[place] = rng.integers(256)
        cut = int(rng.integers(200, len(data) + 1)) if rng.random() < 0.3 else len(data)
        answered = answer(bytes(data[:cut]))
        assert bool(answered.refusal) != bool(answered.objects)


def test_a_damaged_archive_is_refused_and_the_rest_is_answered(
    tmp_path: Path, model: Model
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "fine").write_bytes(chest(1))
    (source / "cut.zip").write_bytes(b"PK\3\4 and no more")
    outcome = run(source, tmp_path / "out", model)
    assert len(outcome.images) == 1
    assert [one["reason"] for one in outcome.refused] == ["the file or archive is unreadable"]


@pytest.mark.parametrize(("position", "word"), [("LL", "lateral"), ("RLO", "oblique")])
def test_a_view_that_is_not_frontal_is_refused_by_its_header(
    position: str, word: str, model: Model
) -> None:
    answer = Answering(model, ("SEG",))(chest(1, ViewPosition=position))
    assert word in answer.refusal and not answer.objects
