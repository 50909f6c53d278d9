"""What is an input, what is not, and what is refused before any work."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adalora_qat.errors import DataError
from adalora_qat.runtime.inputs import Job, LeftOut, own_results, plan, stem_of
from adalora_qat.runtime.table import Table

RESULT = '{\n  "image": "a.png",\n  "image_sha256": "00"}'


def save_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).save(path)
    return path


def planned(source: Path, **given: object) -> tuple[dict[str, str], dict[str, bool]]:
    """Return target → name of its image, and what is left out → whether it failed."""
    jobs, left_out = plan([source], source.parent / "out", **given)  # type: ignore[arg-type]
    return (
        {job.target: job.image.name for job in jobs},
        {one.path.name: one.failed for one in left_out},
    )


def test_a_folder_holds_images_and_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    save_image(folder / "a.png")
    (folder / "without suffix").write_bytes((folder / "a.png").read_bytes())
    (folder / "1.2.840.1").write_bytes(bytes(128) + b"DICM" + bytes(9))
    (folder / "1.2.840.2").write_bytes(b"\x08\0\x05\0CS\x0a\0ISO_IR 100" + bytes(200))
    (folder / "1.2.840.3").write_bytes(b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100" + bytes(200))
    (folder / "broken.dcm").write_bytes(b"")
    for name in ("notes.txt", "DICOMDIR", "BMI.txt"):
        (folder / name).write_bytes(
            b"BMI of all patients" + bytes(109) + b"DICM" * (name == "DICOMDIR")
        )
    (folder / ".DS_Store").write_bytes(b"")
    os.mkfifo(folder / "pipe")
    save_image(folder / "deeper" / "a.png")
    targets, left_out = planned(folder)
    names = ["1.2.840.1", "1.2.840.2", "1.2.840.3", "a.png", "broken.dcm", "without suffix"]
    assert targets == {stem_of(name): name for name in names}
    assert left_out == dict.fromkeys(["BMI.txt", "DICOMDIR", "deeper", "notes.txt", "pipe"], False)
    targets, left_out = planned(folder, recursive=True)
    assert targets[str(Path("deeper/a"))] == "a.png" and "deeper" not in left_out


def test_numbers_of_a_uid_are_no_suffix() -> None:
    assert [stem_of(n) for n in ("a.b.png", "a.dicom", "1.2.840.113", ".x")] == [
        "a.b", "a", "1.2.840.113", ".x",
    ]  # fmt: skip


def test_paths_patterns_and_folders_are_taken_once(tmp_path: Path) -> None:
    paths = [save_image(tmp_path / "in" / name) for name in ("a.png", "b.png", "c.jpg")]
    odd = save_image(tmp_path / "in [2]" / "d.png")
    pattern = str(tmp_path / "in" / "*.png")
    jobs, _ = plan([paths[1], pattern, tmp_path / "in", odd], tmp_path / "out")
    assert [job.image.name for job in jobs] == ["b.png", "a.png", "c.jpg", "d.png"]
    with pytest.raises(DataError, match=r"\*\.gif does not exist"):
        plan([str(tmp_path / "*.gif")], tmp_path / "out")
    for name in ("nul\0", "n" * 300):
        with pytest.raises(DataError, match="does not exist"):
            plan([name], tmp_path / "out")


def test_two_inputs_of_one_name_are_refused(tmp_path: Path) -> None:
    first, second = save_image(tmp_path / "1" / "a.png"), save_image(tmp_path / "2" / "a.png")
    with pytest.raises(DataError, match=r"1/a\.png and .*2/a\.png would both write"):
        plan([first, second], tmp_path / "out")
    table = tmp_path / "boxes.csv"
    table.write_text("file,x0,y0,x1,y1\na.png,0,0,2,2\n")
    with pytest.raises(DataError, match=r"a\.png is there more than once"):
        plan([tmp_path], tmp_path / "out", recursive=True, boxes_csv=table)


def test_own_results_are_no_inputs(tmp_path: Path) -> None:
    for name in ("a.png", "a_mask.png", "a_overlay.png", "a_left_lung_mask.png", "b_mask.png"):
        save_image(tmp_path / name)
    for name in ("a.json", "a.geojson", "b.json"):
        (tmp_path / name).write_text(RESULT if name == "a.json" else "{}")
    names = [path.name for path in tmp_path.iterdir()]
    own = {"a_mask.png", "a_overlay.png", "a_left_lung_mask.png", "a.json", "a.geojson"}
    assert own_results(tmp_path, names) == own
    # A run that was killed: no JSON yet, but its table, and the image.
    (tmp_path / "a.json").unlink()
    assert own_results(tmp_path, names) == set()
    Table(tmp_path)
    own = {"a_mask.png", "a_overlay.png", "a_left_lung_mask.png", "a.geojson", "segments.csv"}
    names = [path.name for path in tmp_path.iterdir()]
    assert own <= own_results(tmp_path, names)
    assert "a.png" not in own_results(tmp_path, names)


def test_names_too_long_for_their_results_are_left_out(tmp_path: Path) -> None:
    fits, over = "n" * 229, "é" * 115
    for stem in (fits, over):
        save_image(tmp_path / "in" / f"{stem}.png")
    targets, left_out = planned(tmp_path / "in")
    assert list(targets) == [fits] and left_out == {f"{over}.png": True}
    [longest] = [name for name in Job(Path("x"), fits).names() if name.endswith("overlay.png")]
    assert len(longest) + len(".12345678.tmp") + 1 == 255
    _, [left] = plan([tmp_path / "in" / f"{over}.png"], tmp_path / "out")
    assert "its name is 1 byte too long" in left.reason


def test_what_cannot_be_listed_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "closed").mkdir()
    (tmp_path / "in" / "nameless").write_bytes(b"")
    listed, opened = Path.iterdir, Path.open

    def deny(function: object, name: str) -> object:
        def call(self: Path, *arguments: object) -> object:
            if self.name == name:
                raise PermissionError(13, "Permission denied", str(self))
            return function(self, *arguments)  # type: ignore[operator]

        return call

    monkeypatch.setattr(Path, "iterdir", deny(listed, "closed"))
    monkeypatch.setattr(Path, "open", deny(opened, "nameless"))
    jobs, left_out = plan([tmp_path / "in"], tmp_path / "out", recursive=True)
    assert [job.target for job in jobs] == ["a"]
    assert [(one.path.name, one.failed) for one in left_out] == [
        ("closed", True),
        ("nameless", True),
    ]
    assert all("Permission denied" in one.reason for one in left_out)
    assert isinstance(left_out[0], LeftOut)
