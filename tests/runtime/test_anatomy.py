"""Results of a chest: masks by name, measures, the picture, the table, some structures alone."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx_toy import toy_metadata, write_toy
from PIL import Image

from adalora_qat.chest.masks import Masks
from adalora_qat.chest.overlay import colours_of
from adalora_qat.errors import DataError
from adalora_qat.runtime.input_check import Caution
from adalora_qat.runtime.model import load
from adalora_qat.runtime.result import Result
from adalora_qat.runtime.segment import Options, segment_files
from adalora_qat.runtime.table import TABLE, Table

NAMES = ("left_lung", "right_lung", "heart")


@pytest.fixture
def chest() -> Result:
    masks = np.zeros((3, 400, 600), bool)
    masks[0, 120:320, 360:440] = True
    masks[1, 100:300, 100:200] = True
    masks[2, 220:280, 240:330] = True
    boxes = np.array([[360, 120, 440, 320], [100, 100, 200, 300], [240, 220, 330, 280]])
    return Result(
        name="chest.png",
        image=np.full((400, 600), 90, np.uint8),
        masks=Masks(masks),
        boxes=boxes.astype(np.float32),
        scores=np.array([0.95, 0.9, 0.8], np.float32),
        confidence=0.88,
        confidence_means="expected IoU",
        warnings=(),
        prompt="automatic",
        spacing_mm=(0.7, 0.7),
        seconds={"read": 0.1, "predict": 0.2},
        model={"file": "toy"},
        structures=NAMES,
        view="PA",
    )


def test_masks_are_an_array_that_knows_names(chest: Result) -> None:
    assert chest.masks.shape == (3, 400, 600)
    assert type(chest.masks["heart"]) is np.ndarray
    np.testing.assert_array_equal(chest.masks["heart"], chest.masks[2])
    np.testing.assert_array_equal(chest.mask, chest.masks[0] | chest.masks[1])
    assert type(chest.masks[0]) is np.ndarray
    with pytest.raises(DataError, match="no mask of 'liver'; there are left_lung, right_lung, hea"):
        chest.masks["liver"]
    with pytest.raises(DataError, match="the masks are of boxes"):
        replace(chest, structures=()).masks["heart"]


def test_some_structures_alone(chest: Result) -> None:
    heart = chest.of(["heart"])
    assert heart.structures == ("heart",) and heart.masks.shape == (1, 400, 600)
    assert heart.boxes.tolist() == [[240, 220, 330, 280]]
    assert heart.measures == {}
    lungs = chest.of(["lungs"])
    assert lungs.structures == ("lung",)
    np.testing.assert_array_equal(lungs.masks["lung"], chest.mask)
    assert lungs.boxes.tolist() == [[100, 100, 440, 320]]
    with pytest.raises(DataError, match="no mask of 'liver'"):
        chest.of(["liver"])
    with pytest.raises(DataError, match="give a list"):
        chest.of("heart")


def test_measures_stand_in_the_json_behind_their_gates(chest: Result) -> None:
    found = chest.to_json()["measures"]
    assert found["cardiothoracic_ratio"]["value"] == round(90 / 340, 4)
    assert found["cardiothoracic_ratio"]["confidence"] == 0.8
    assert found["left_lung_area"] == {
        "value": 78.4,  # 16,000 pixels of 0.49 mm2
        "unit": "cm2",
        "confidence": 0.95,
        "withheld": [],
        "notes": [],
        "lines": {},
    }
    json.dumps(found)
    doubtful = replace(chest, warnings=(Caution("low_confidence", "not sure", 0.4, 0.7),))
    assert all(one.value is None for one in doubtful.measures.values())
    assert "measures" not in replace(chest, structures=()).to_json()


def test_the_picture_has_colours_lines_and_a_legend(chest: Result) -> None:
    pixels = np.asarray(chest.overlay()).astype(int)
    tints = [pixels[310, 400], pixels[290, 150], pixels[225, 300]]
    for tint, name in zip(tints, NAMES, strict=True):
        colour = np.array(colours_of(NAMES)[name])
        np.testing.assert_allclose(tint, 90 + 0.4 * (colour - 90), atol=1)
    thorax = chest.measures["cardiothoracic_ratio"].lines["thorax"]
    row = int(thorax[0][1])
    assert (pixels[row, [105, 300, 435]] == 255).all()  # from lung to lung
    assert not (pixels[row, [80, 460]] == 255).any()
    assert (pixels[:80, :150] != 90).any()  # the legend
    withheld = replace(chest, warnings=(Caution("low_confidence", "not sure", 0.4, 0.7),))
    assert not (np.asarray(withheld.overlay())[row, [300]] == 255).any()


def test_a_row_of_the_table_holds_the_measures(chest: Result, tmp_path: Path) -> None:
    from adalora_qat.runtime.table import done_row

    table = Table(tmp_path)
    table.add(done_row(Path("a.png"), "a.json", chest.to_json()))
    bare = replace(chest, spacing_mm=None)
    table.add(done_row(Path("b.png"), "b.json", bare.to_json()))
    with (tmp_path / TABLE).open(newline="") as handle:
        first, second = csv.DictReader(handle)
    assert first["cardiothoracic_ratio"] == second["cardiothoracic_ratio"] == "0.2647"
    assert first["left_lung_area"] == "78.4" and first["withheld"] == ""
    assert second["left_lung_area"] == "" and second["withheld"] == "no_spacing"


def test_a_table_of_an_earlier_version_gets_the_new_columns(tmp_path: Path) -> None:
    old = "path,status,result,area_px,area_mm2,confidence,warnings,seconds,error\n"
    (tmp_path / TABLE).write_text(old + "a.png,done,a.json,5,,0.9,,1.5,\n")
    (tmp_path / "a.json").write_text("{}")
    Table(tmp_path)
    with (tmp_path / TABLE).open(newline="") as handle:
        (row,) = csv.DictReader(handle)
    assert row["area_px"] == "5" and row["cardiothoracic_ratio"] == ""


def test_structures_that_a_model_does_not_find_are_refused_at_the_start(tmp_path: Path) -> None:
    model = load(write_toy(tmp_path / "lung.onnx", toy_metadata(structures=("lung",))))
    Image.fromarray(np.zeros((32, 64), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="structure 'heart': lung finds one mask"):
        segment_files(
            tmp_path / "a.png", model, tmp_path / "out", options=Options(structures=("heart",))
        )
    assert not (tmp_path / "out").exists()
