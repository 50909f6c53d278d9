"""What a result shows, writes and says."""

import io
import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
from onnx_toy import write_toy
from PIL import Image

from adalora_qat.errors import DataError, UserError
from adalora_qat.runtime import result as module
from adalora_qat.runtime.model import Model, load
from adalora_qat.runtime.result import Result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(write_toy(tmp_path_factory.mktemp("toy") / "toy.onnx"), threads=1)


def picture(height: int = 32, width: int = 64, bright: int = 200) -> np.ndarray:
    image = np.zeros((height, width), dtype=np.uint8)
    image[:, : width // 2] = bright
    return image


@pytest.fixture
def result(model: Model) -> Result:
    return model(picture(), box=(4, 2, 60, 30), spacing_mm=(0.5, 0.25))


def test_the_overlay_has_the_size_of_the_image(result: Result) -> None:
    drawn = result.overlay()
    assert drawn.mode == "RGB" and drawn.size == (64, 32)
    pixels = np.asarray(drawn)
    # The box's outer pixels: its far edges at 60 and 30 are those of pixels 59 and 29.
    assert tuple(pixels[2, 4]) == tuple(pixels[29, 59]) == (70, 160, 255)
    assert tuple(pixels[30, 60]) == (0, 0, 0)


def test_a_notebook_shows_a_png_of_modest_size(model: Model, result: Result) -> None:
    small = Image.open(io.BytesIO(result._repr_png_()))
    assert small.format == "PNG"
    np.testing.assert_array_equal(np.asarray(small), np.asarray(result.overlay()))
    large = model(picture(900, 3000))
    shown = Image.open(io.BytesIO(large._repr_png_()))
    assert shown.size == (1024, 307) and large.overlay().size == (3000, 900)


def test_save_writes_mask_overlay_and_json(result: Result, tmp_path: Path) -> None:
    written = result.save(tmp_path / "out", stem="case")
    assert [path.name for path in written] == ["case_mask.png", "case_overlay.png", "case.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in written
    )
    np.testing.assert_array_equal(np.asarray(Image.open(written[0])) == 255, result.mask)
    np.testing.assert_array_equal(np.asarray(Image.open(written[1])), np.asarray(result.overlay()))
    facts = json.loads(written[2].read_text())
    assert facts == result.to_json()
    assert facts["area_px"] == int(result.mask.sum())
    assert facts["area_mm2"] == pytest.approx(facts["area_px"] * 0.125)


def test_an_image_in_memory_is_told_from_another_by_its_pixels(
    model: Model, result: Result, tmp_path: Path
) -> None:
    result.save(str(tmp_path))
    result.save(tmp_path)  # the same image again is no loss
    assert (tmp_path / "image.json").is_file()
    other = model(picture(bright=90))
    with pytest.raises(DataError, match="another image named image"):
        other.save(tmp_path)
    turned = model(picture().T.copy())
    assert len({r.to_json()["image_sha256"] for r in (result, other, turned)}) == 3
    other.save(tmp_path, stem="other")
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        other.save(tmp_path / "taken" / "below")


def test_a_result_cannot_be_changed_and_says_what_it_is(result: Result) -> None:
    with pytest.raises(FrozenInstanceError):
        result.name = "other"  # type: ignore[misc]
    assert repr(result) == (
        "<Result image: 1 mask of 64x32 pixels, confidence None, warnings: none>"
    )


def test_what_is_written_can_be_chosen(result: Result, tmp_path: Path) -> None:
    written = result.save(tmp_path, "case", write=("contours",), mask_values="labels")
    assert [path.name for path in written] == ["case.geojson", "case.json"]
    for wrong in ({"write": ("masks",)}, {"write": "mask"}, {"mask_values": "1"}):
        with pytest.raises(DataError, match="give"):
            result.save(tmp_path, "other", **wrong)  # type: ignore[arg-type]
    assert len(list(tmp_path.iterdir())) == 2


def test_labels_number_the_masks(model: Model) -> None:
    result = model(picture(), boxes=[[0, 0, 9, 9]] * 2)
    masks = np.zeros((2, 32, 64), dtype=bool)
    masks[0, :, :10] = masks[1, :, 5:20] = True
    labels = replace(result, masks=masks).mask_values("labels")
    assert labels.dtype == np.uint8
    assert labels[0, [0, 4, 5, 19, 20]].tolist() == [1, 1, 2, 2, 0]
    many = replace(result, masks=np.ones((300, 2, 2), dtype=bool)).mask_values("labels")
    assert many.dtype == np.uint16 and (many == 300).all()


def test_all_files_of_a_result_are_written_or_none(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    result.save(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(module, "write_json", stopped)
        with pytest.raises(KeyboardInterrupt):
            result.save(tmp_path)
    assert list(tmp_path.iterdir()) == []
