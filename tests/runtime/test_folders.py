"""Folders with bad files, stopped and resumed runs, and the table of both."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_toy import write_toy
from PIL import Image

from adalora_qat.errors import DataError, UserError
from adalora_qat.imaging import radiograph
from adalora_qat.runtime import result as results
from adalora_qat.runtime.model import Model, load
from adalora_qat.runtime.segment import Options, Outcome, segment_files
from adalora_qat.runtime.table import COLUMNS, Table


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def model(models: Path) -> Model:
    return load(write_toy(models / "toy.onnx"), threads=1)


def save_image(path: Path, bright: int = 200) -> Path:
    image = np.zeros((32, 64), dtype=np.uint8)
    image[:, :32] = bright
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images, two of them bad, and a note."""
    folder = tmp_path / "in"
    for index, name in enumerate("abcde"):
        save_image(folder / f"{name}.png", 100 + index)
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:60])
    Image.new("L", (32, 32), 9).save(folder / "d.png")
    (folder / "notes.txt").write_text("")
    return folder


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "segments.csv").open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        assert tuple(reader.fieldnames or ()) == COLUMNS
        return list(reader)


def same_end(one: Path, other: Path) -> None:
    """Assert equal files in two folders, but for times."""
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*"))
    assert names == sorted(str(path.relative_to(other)) for path in other.rglob("*"))
    for name in names:
        if name.endswith(".json"):
            facts = [json.loads((out / name).read_text()) for out in (one, other)]
            assert facts[0].pop("seconds").keys() == facts[1].pop("seconds").keys()
            assert facts[0] == facts[1]
        elif name.endswith("segments.csv"):
            tables = [[{**row, "seconds": ""} for row in rows(out)] for out in (one, other)]
            assert tables[0] == tables[1]
        elif (one / name).is_file():
            assert (one / name).read_bytes() == (other / name).read_bytes()


def test_bad_files_are_rows_and_the_rest_is_done(
    folder: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()
    whole = radiograph._read_file

    def noted(path: Path, *options: Any) -> Any:
        read[path.name] += 1
        return whole(path, *options)

    monkeypatch.setattr(radiograph, "_read_file", noted)
    out = tmp_path / "out"
    outcome = segment_files(folder, model, out)
    assert [result["image"] for result in outcome.results] == ["a.png", "c.png", "e.png"]
    assert [one.path.name for one in outcome.failed] == ["b.png", "d.png"]
    assert [one.path.name for one in outcome.left_out] == ["b.png", "d.png", "notes.txt"]
    assert read == {f"{name}.png": 1 for name in "abcde"}  # none is decoded twice
    table = rows(out)
    assert [(Path(row["path"]).name, row["status"]) for row in table] == [
        ("a.png", "done"), ("b.png", "failed"), ("c.png", "done"), ("d.png", "failed"),
        ("e.png", "done"), ("notes.txt", "skipped"),
    ]  # fmt: skip
    assert table[0]["area_px"] == str(outcome.results[0]["area_px"]) and table[0]["area_mm2"] == ""
    assert float(table[0]["seconds"]) > 0 and table[0]["result"] == "a.json"
    assert "one colour" in table[3]["error"] and table[5]["error"] == "not an image"
    assert len(list(out.iterdir())) == 3 * 3 + 1


def test_fail_fast_stops_and_keeps_what_is_whole(
    folder: Path, model: Model, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"b\.png"):
        segment_files(folder, model, out, fail_fast=True)
    assert sorted(path.name for path in out.iterdir()) == [
        "a.json", "a_mask.png", "a_overlay.png", "segments.csv",
    ]  # fmt: skip
    assert [row["status"] for row in rows(out)] == ["done", "skipped"]


def test_a_stopped_run_resumes_to_the_same_end(folder: Path, model: Model, tmp_path: Path) -> None:
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    segment_files(folder, model, whole)
    outcome = segment_files(folder, model, halted, stop=lambda: True)
    assert outcome.stopped and len(outcome.results) == 1
    assert [row["status"] for row in rows(halted)] == ["done", "skipped"]
    # What a kill may leave: a mask without its JSON, half a file, a table that lacks rows.
    (halted / "c_mask.png").write_bytes(b"")
    for name in (".c_overlay.abcd_123.tmp.png", ".segments.abcd1234.tmp.csv"):
        (halted / name).write_bytes(b"half")
    (halted / "segments.csv").write_text(",".join(COLUMNS) + "\nin/a.p")
    before = (halted / "a.json").stat().st_mtime_ns
    outcome = segment_files(folder, model, halted, resume=True)
    assert outcome.resumed == 1 and not outcome.stopped and len(outcome.results) == 3
    assert (halted / "a.json").stat().st_mtime_ns == before
    same_end(whole, halted)
    assert segment_files(folder, model, halted, resume=True).resumed == 3
    same_end(whole, halted)


def test_rows_are_there_while_the_run_goes_on(folder: Path, model: Model, tmp_path: Path) -> None:
    seen = []

    def look(done: int, total: int, what: str) -> None:
        seen.append([row["status"] for row in rows(tmp_path / "out")])

    segment_files(folder, model, tmp_path / "out", progress=look)
    assert seen[0] == ["done"] and seen[1] == ["done", "failed"] and len(seen[4]) == 5


def test_resume_makes_anew_what_would_differ(
    folder: Path, model: Model, models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    segment_files(folder, model, out)

    def resumed(model: Model = model, **given: Any) -> int:
        return segment_files(folder, model, out, resume=True, **given).resumed

    assert resumed(options=Options(spacing_mm=(0.5, 0.5))) == 0
    assert resumed(options=Options(spacing_mm=(0.5, 0.5))) == 3
    assert resumed(box=(0, 0, 20, 20)) == 0
    assert resumed(box=(0, 0, 20, 20), options=Options(mask_values="labels")) == 0
    assert resumed() == 0
    (out / "a_mask.png").unlink()
    assert resumed() == 2
    other = load(write_toy(models / "other.onnx"), threads=1)
    assert resumed(other) == 0
    save_image(folder / "c.png", 30)
    with pytest.raises(DataError, match="another image named c"):
        resumed(other)


def test_a_folder_may_be_its_own_output(folder: Path, model: Model, tmp_path: Path) -> None:
    first = segment_files(folder, model, folder)
    again = segment_files(folder, model, folder, resume=True)
    assert again.resumed == len(first.results) == 3
    assert [one.path.name for one in again.left_out] == ["b.png", "d.png", "notes.txt"]
    inner = segment_files(folder, model, folder / "out", recursive=True)
    assert len(inner.results) == 3
    assert len(segment_files(folder, model, folder / "out", recursive=True).results) == 3


def test_trees_are_kept(model: Model, tmp_path: Path) -> None:
    for name in ("1/a.png", "2/3/a.png"):
        save_image(tmp_path / "in" / name)
    outcome = segment_files(tmp_path / "in", model, tmp_path / "out", recursive=True)
    assert len(outcome.results) == 2
    assert (tmp_path / "out/1/a_mask.png").is_file()
    assert (tmp_path / "out/2/3/a.json").is_file()
    assert [row["result"] for row in rows(tmp_path / "out")] == ["1/a.json", "2/3/a.json"]


def test_rows_of_earlier_runs_stay_with_their_results(model: Model, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("1", "2"):
        save_image(tmp_path / name / f"{name}.png")
        (tmp_path / name / f"bad{name}.png").write_bytes(b"")
        segment_files(tmp_path / name, model, out)
    assert [row["result"] for row in rows(out)] == ["1.json", "2.json", ""]
    (out / "1.json").unlink()
    segment_files(tmp_path / "2", model, out)
    assert [row["result"] for row in rows(out)] == ["2.json", ""]


def test_another_table_of_that_name_is_kept(folder: Path, model: Model, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "segments.csv").write_text("mine\n")
    with pytest.raises(DataError, match=r"segments\.csv exists and is not a table"):
        segment_files(folder, model, out)
    assert [path.name for path in out.iterdir()] == ["segments.csv"]


def test_a_full_disk_ends_the_run_with_what_is_whole(
    folder: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = results.write_json

    def full(path: Path, value: Any) -> None:
        if path.name == "c.json":
            raise UserError(f"cannot write {path}: No space left on device")
        writing(path, value)

    monkeypatch.setattr(results, "write_json", full)
    with pytest.raises(UserError, match="No space left"):
        segment_files(folder, model, tmp_path / "out")
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["a.json", "a_mask.png", "a_overlay.png", "segments.csv"]
    monkeypatch.undo()
    Path(tmp_path / "table").mkdir()
    table = Table(tmp_path / "table")
    table.path = Path("/dev/full")
    with pytest.raises(UserError, match="cannot write /dev/full"):
        table.add({"path": "a"})


@pytest.mark.parametrize("name", [b"not utf-8 \xff.png", b"red \x1b[31m.png", b"[bold].png"])
def test_names_of_any_bytes(name: bytes, model: Model, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save_image(tmp_path / "x.png").rename(tmp_path / "in" / name.decode("utf-8", "surrogateescape"))
    said: list[str] = []
    outcome = segment_files(
        tmp_path / "in", model, tmp_path / "out", progress=lambda *told: said.append(told[2])
    )
    assert len(list((tmp_path / "out").iterdir())) == 4
    texts = [*said, outcome.results[0]["image"], *(row["path"] for row in rows(tmp_path / "out"))]
    assert all(text.isprintable() and text.encode() for text in texts)
    again = segment_files(tmp_path / "in", model, tmp_path / "out", resume=True)
    assert again.resumed == 1


def test_what_is_written_can_be_chosen(folder: Path, model: Model, tmp_path: Path) -> None:
    options = Options(write=("contours", "mask"), mask_values="labels")
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("file,x0,y0,x1,y1\na.png,0,0,9,9\na.png,4,4,30,30\n")
    outcome: Outcome = segment_files(
        folder / "a.png", model, tmp_path / "out", boxes_csv=boxes, options=options
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.geojson", "a.json", "a_mask.png",
    ]  # fmt: skip
    assert outcome.results[0]["options"]["write"] == ["mask", "contours", "json"]
    # The toy gives each box the same mask: of two masks, the last is on top.
    assert np.unique(np.asarray(Image.open(tmp_path / "out/a_mask.png"))).tolist() == [0, 2]
    features = json.loads((tmp_path / "out/a.geojson").read_text())["features"]
    assert len(features) == 2
    for wrong in ({"write": ("masks",)}, {"mask_values": "1"}, {"max_pixels": 0}):
        with pytest.raises(DataError, match="give"):
            Options(**wrong)  # type: ignore[arg-type]


def test_limits_of_pixels_and_damage_are_passed_on(model: Model, tmp_path: Path) -> None:
    image = save_image(tmp_path / "in" / "a.png")
    with pytest.raises(DataError, match="the limit is 100"):
        segment_files(image, model, tmp_path / "out", options=Options(max_pixels=100))
    image.write_bytes(image.read_bytes()[:-12])  # without its end mark
    with pytest.raises(DataError, match="truncated"):
        segment_files(image, model, tmp_path / "out")
    lenient = segment_files(image, model, tmp_path / "out", options=Options(lenient=True))
    assert lenient.results[0]["options"]["lenient"]
