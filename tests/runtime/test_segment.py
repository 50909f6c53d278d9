import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnx_toy import write_toy
from PIL import Image

from adalora_qat.errors import DataError, UserError
from adalora_qat.files import sha256_file
from adalora_qat.imaging.stated import Stated
from adalora_qat.runtime.model import Model, load
from adalora_qat.runtime.segment import Options, segment_files


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy") / "toy.onnx")


@pytest.fixture(scope="module")
def model(toy: Path) -> Model:
    return load(toy, threads=1)


def save_image(path: Path, height: int = 32, width: int = 64, bright: int = 200) -> Path:
    """Bright on the left half."""
    image = np.zeros((height, width), dtype=np.uint8)
    image[:, : width // 2] = bright
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def test_one_image_gives_mask_overlay_and_facts(tmp_path: Path, toy: Path, model: Model) -> None:
    image, out = save_image(tmp_path / "case.png"), tmp_path / "out"
    options = Options(spacing_mm=(0.5, 0.25))
    [result] = segment_files(image, model, out, box=(4, 2, 60, 30), options=options).results
    assert sorted(path.name for path in out.iterdir()) == [
        "case.json",
        "case_mask.png",
        "case_overlay.png",
    ]
    mask = np.asarray(Image.open(out / "case_mask.png"))
    assert mask.shape == (32, 64)
    assert set(np.unique(mask)) == {0, 255}
    assert mask[:, :24].all()
    assert not mask[:, 40:].any()
    drawn = np.asarray(Image.open(out / "case_overlay.png"))
    assert drawn.shape == (32, 64, 3)
    assert tuple(drawn[2, 4]) == (70, 160, 255)  # the box's corner pixels
    assert tuple(drawn[29, 59]) == (70, 160, 255)
    assert tuple(drawn[10, 50]) == (0, 0, 0)  # outside mask and box line: the image itself
    assert drawn[10, 10, 0] > drawn[10, 10, 2]  # inside the mask: tinted
    assert json.loads((out / "case.json").read_text()) == result
    assert result["box"] == [4, 2, 60, 30]
    assert result["area_px"] == int((mask > 0).sum())
    assert result["area_mm2"] == pytest.approx(result["area_px"] * 0.125)
    assert result["score"] == pytest.approx(0.02)  # the toy: x0 in the model frame / 100
    assert result["model"]["sha256"] == sha256_file(toy)
    assert result["seconds"]["predict"] > 0
    assert (result["height"], result["width"]) == (32, 64)


def test_several_boxes_give_a_union_and_each_object(tmp_path: Path, model: Model) -> None:
    save_image(tmp_path / "in" / "a.png")
    table = tmp_path / "boxes.csv"
    table.write_text("file,x0,y0,x1,y1\na.png,0,0,20,20\na.png,10,5,64,32\n")
    [result] = segment_files(tmp_path / "in", model, tmp_path / "out", boxes_csv=table).results
    assert result["box"] == [0, 0, 64, 32]
    assert [one["box"] for one in result["objects"]] == [[0, 0, 20, 20], [10, 5, 64, 32]]
    assert result["area_mm2"] is None


def test_a_folder_is_taken_in_order_and_reports_progress(tmp_path: Path, model: Model) -> None:
    for name in ("b.png", "a.jpg", "c.tif"):
        save_image(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    seen: list[tuple[int, int, str]] = []
    results = segment_files(
        tmp_path / "in", model, tmp_path / "out", progress=lambda *step: seen.append(step)
    ).results
    assert [result["image"] for result in results] == ["a.jpg", "b.png", "c.tif"]
    assert seen == [(1, 3, "a.jpg"), (2, 3, "b.png"), (3, 3, "c.tif")]
    assert all(result["prompt"] == "automatic" for result in results)


def test_sixteen_bits_and_colour_are_read(tmp_path: Path, model: Model) -> None:
    deep = np.zeros((32, 32), dtype=np.uint16)
    deep[:, :16] = 4000
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(np.repeat((deep // 16).astype(np.uint8)[..., None], 3, 2)).save(
        tmp_path / "colour.png"
    )
    results = segment_files(tmp_path, model, tmp_path / "out").results
    assert results[0]["area_px"] == results[1]["area_px"] > 0


def refused(tmp_path: Path, model: Model, message: str, **given: object) -> None:
    source = given.pop("source", tmp_path / "in")
    with pytest.raises(DataError, match=message):
        segment_files(source, model, tmp_path / "out", **given)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_one_image_that_is_named_and_bad_leaves_nothing(tmp_path: Path, model: Model) -> None:
    good = save_image(tmp_path / "in" / "a.png")
    bad = tmp_path / "in" / "b.png"
    bad.write_bytes(good.read_bytes()[:60])
    refused(tmp_path, model, r"b\.png", source=bad)
    bad.write_bytes(b"")
    refused(tmp_path, model, r"b\.png", source=bad)
    Image.new("L", (32, 32), 9).save(bad)
    refused(tmp_path, model, "one colour", source=bad)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0, 0, 65, 32), r"a\.png.*outside"),
        ((40, 0, 10, 32), "--box: .*reversed"),
        ((4, 4, 4, 10), "--box: .*empty"),
    ],
)
def test_bad_boxes(tmp_path: Path, model: Model, box: tuple[float, ...], message: str) -> None:
    refused(tmp_path, model, message, source=save_image(tmp_path / "a.png"), box=box)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,x0,y0,x1\na.png,0,0,9\n", "lacks the column y1"),
        ("file,x0,y0,x1,y1\n", "holds no boxes"),
        ("file,x0,y0,x1,y1\na.png,0,0,9\n", "line 2"),
        ("file,x0,y0,x1,y1\na.png,0,zero,9,9\n", "line 2"),
        ("file,x0,y0,x1,y1\nother.png,0,0,9,9\n", r"names other\.png"),
        ("file,x0,y0,x1,y1\na.png,0,0,9,9\n", r"no row for b\.png"),
        ("file,x0,y0,x1,y1\na.png,0,0,9,9\nb.png,9,0,0,9\n", r"b\.png.*reversed"),
    ],
)
def test_bad_tables(tmp_path: Path, model: Model, table: str, message: str) -> None:
    save_image(tmp_path / "in" / "a.png")
    save_image(tmp_path / "in" / "b.png")
    path = tmp_path / "boxes.csv"
    path.write_text(table)
    refused(tmp_path, model, message, boxes_csv=path)


def test_missing_inputs(tmp_path: Path, model: Model) -> None:
    refused(tmp_path, model, "does not exist", source=tmp_path / "none.png")
    (tmp_path / "in").mkdir()
    refused(tmp_path, model, "holds no image")
    save_image(tmp_path / "in" / "a.png")
    refused(tmp_path, model, "cannot be read", boxes_csv=tmp_path / "none.csv")
    refused(tmp_path, model, "not both", box=(0, 0, 1, 1), boxes_csv=tmp_path / "none.csv")


def test_two_images_of_one_stem_are_refused(tmp_path: Path, model: Model) -> None:
    save_image(tmp_path / "in" / "a.png")
    save_image(tmp_path / "in" / "a.jpg")
    refused(tmp_path, model, r"a\.jpg and .*a\.png would both write")
    (tmp_path / "in" / "a.jpg").rename(tmp_path / "in" / "A.jpg")
    refused(tmp_path, model, "would both write")


def test_inputs_and_other_results_are_never_overwritten(tmp_path: Path, model: Model) -> None:
    first, second = save_image(tmp_path / "1" / "a.png"), save_image(tmp_path / "2" / "a.png", 48)
    out = tmp_path / "results"
    segment_files(first, model, out)
    segment_files(first, model, out)  # the same image again is no loss
    with pytest.raises(DataError, match="another image named a"):
        segment_files(second, model, out)
    (out / "a.json").write_text("{}")
    with pytest.raises(DataError, match="not a result"):
        segment_files(first, model, out)
    shadow = save_image(tmp_path / "3" / "b_mask.png")
    save_image(tmp_path / "3" / "b.png")
    before = shadow.read_bytes()
    with pytest.raises(DataError, match="overwrite the input"):
        segment_files(tmp_path / "3", model, tmp_path / "3")
    assert shadow.read_bytes() == before


def test_out_that_cannot_be_a_folder(tmp_path: Path, model: Model) -> None:
    image = save_image(tmp_path / "a.png")
    (tmp_path / "taken").write_text("")
    with pytest.raises(DataError, match="is a file"):
        segment_files(image, model, tmp_path / "taken")
    with pytest.raises(UserError, match="cannot write"):
        segment_files(image, model, tmp_path / "taken" / "below")


def test_dicom_is_read_or_its_package_named(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scan.dcm").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "adalora_qat.imaging.dicom", None)
    with pytest.raises(DataError, match=r"scan\.dcm is DICOM.*adalora-qat\[dicom\]"):
        segment_files(tmp_path / "scan.dcm", model, tmp_path / "out")
    read = SimpleNamespace(
        read_dicom=lambda path, **options: SimpleNamespace(
            pixels=np.arange(1024, dtype=np.uint16).reshape(32, 32),
            spacing_mm=(0.5, 0.5),
            stated=Stated(),
        )
    )
    monkeypatch.setitem(sys.modules, "adalora_qat.imaging.dicom", read)
    [result] = segment_files(tmp_path / "scan.dcm", model, tmp_path / "out").results
    assert result["area_px"] > 0
    assert result["area_mm2"] == pytest.approx(result["area_px"] * 0.25)
    assert result["warnings"] == [] and result["confidence"] is None
