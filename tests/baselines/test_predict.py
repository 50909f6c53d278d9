"""Baselines behind the protocol, and what their evaluation says of boxes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adalora_qat.baselines.model_file import read_baseline
from adalora_qat.baselines.predict import BaselinePredictor, expected_iou, open_baseline
from adalora_qat.checkpoint import MODEL_FILE, load_model, write_tensors
from adalora_qat.config import BaselinesConfig
from adalora_qat.errors import CheckpointError, DataError, ExportError
from adalora_qat.evaluate.cases import evaluate_cases
from adalora_qat.evaluate.robustness import evaluate_prompts
from adalora_qat.export.run import export_stage
from adalora_qat.imaging.geometry import whole_box
from adalora_qat.predictor import Predictor, uses_boxes

IMAGE = (128 + 90 * np.sin(np.arange(80 * 60).reshape(80, 60) / 37)).astype(np.uint8)
BOXES = np.array([[5, 10, 50, 70], [20, 20, 40, 60]], np.float32)


def constant(value: float, side: int = 64) -> Any:
    return lambda unit: np.full((side, side), value, np.float32)


def stub(given: Any, **options: Any) -> BaselinePredictor:
    config = BaselinesConfig(architecture="unet", side=64, **options)
    return BaselinePredictor(given, config, "stub")


def test_whole_image_baselines_ignore_boxes(trained: Any) -> None:
    predictor = open_baseline(trained("unet").run.stage("stage1") / MODEL_FILE)
    assert isinstance(predictor, Predictor)
    assert not uses_boxes(predictor)
    whole = whole_box(*IMAGE.shape)[None]
    alone, asked = predictor.predict(IMAGE, whole), predictor.predict(IMAGE, BOXES)
    assert asked.masks.shape == (2, 80, 60)
    assert np.array_equal(asked.masks[0], asked.masks[1])
    assert np.array_equal(alone.masks[0], asked.masks[0])
    assert asked.boxes_xyxy_original.tolist() == [[0, 0, 60, 80]] * 2
    assert ((asked.scores >= 0) & (asked.scores <= 1)).all()


def test_a_crop_is_answered_inside_its_window_only() -> None:
    predictor = stub(constant(3.0), input="crop", margin=0.1)
    assert uses_boxes(predictor)
    masks = predictor.predict(IMAGE, BOXES).masks
    # Margin 0.1 of 45 × 60 is 4.5 × 6, in whole pixels outwards: x 0 to 55, y 4 to 76.
    assert masks[0].sum() == 55 * 72
    assert masks[0, 4:76, 0:55].all()
    assert masks[1, 16:64, 18:42].all()
    assert masks[1].sum() == 48 * 24


def test_what_the_network_sees_of_a_crop_is_the_crop() -> None:
    seen = []

    def look(unit: Any) -> Any:
        seen.append(unit)
        return np.zeros((64, 64), np.float32)

    image = np.zeros((128, 128), np.uint8)
    image[32:96, 32:96] = 200
    image[0, 0] = 100  # outside, and darker: only the whole image's range counts
    stub(look, input="crop", margin=0.0).predict(image, np.array([[32, 32, 96, 96]]))
    assert seen[0].shape == (64, 64)
    assert seen[0].min() == seen[0].max() == 1.0


def test_boxes_and_images_that_cannot_be_used(trained: Any) -> None:
    for predictor in (stub(constant(1.0)), stub(constant(1.0), input="crop")):
        with pytest.raises(DataError, match="reversed"):
            predictor.predict(IMAGE, np.array([[50, 10, 5, 70]]))
        with pytest.raises(DataError, match="one colour"):
            predictor.predict(np.zeros((80, 60), np.uint8), BOXES)


def test_expected_iou_by_hand() -> None:
    logits = np.array([[np.log(4), np.log(4), -np.log(4), -60]], np.float32)
    # p = .8 .8 .2 0: mask of two pixels, 1.6 / (2 + .2).
    assert expected_iou(logits) == pytest.approx(1.6 / 2.2, abs=1e-6)
    assert expected_iou(np.full((2, 2), -60, np.float32)) == pytest.approx(0, abs=1e-12)


def test_evaluations_name_the_box_that_was_used(trained: Any) -> None:
    done = trained("unet")
    whole = open_baseline(done.run.stage("stage1") / MODEL_FILE)
    rows = evaluate_cases(whole, done.test, ["lung"], "oracle")
    assert set(rows["box"]) == {"none"}
    assert len(rows) == 3
    assert set(evaluate_prompts(whole, done.test, ["lung"])["box"]) == {"none"}
    crop = stub(constant(1.0), input="crop")
    assert set(evaluate_cases(crop, done.test, ["lung"], "oracle")["box"]) == {"oracle"}


def test_a_baseline_has_no_export(trained: Any, tmp_path: Path) -> None:
    done = trained("unet")
    with pytest.raises(ExportError, match="run of a baseline"):
        export_stage(done.run, "stage1", tmp_path / "x.onnx", done.test)


def test_files_are_not_taken_for_another_kind(trained: Any, tmp_path: Path) -> None:
    file = trained("unet").run.stage("stage1") / MODEL_FILE
    with pytest.raises(CheckpointError, match="is a baseline"):
        load_model(file)
    other = tmp_path / "other.safetensors"
    write_tensors(other, {}, {"variant": "tiny-test"})
    with pytest.raises(CheckpointError, match="holds no baseline"):
        open_baseline(other)
    with pytest.raises(CheckpointError, match="holds no baseline"):
        read_baseline(other)
