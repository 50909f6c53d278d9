"""Learned prompts in an exported file."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image

from adalora_qat.errors import CheckpointError
from adalora_qat.export.onnx import export_onnx, torch_model
from adalora_qat.export.parity import ParityCase
from adalora_qat.imaging.geometry import whole_box
from adalora_qat.model.predict import TorchPredictor
from adalora_qat.model.sam import Segmenter, random_segmenter
from adalora_qat.runtime.model import load
from adalora_qat.runtime.networks import box_feeds
from adalora_qat.runtime.onnx_predictor import OnnxPredictor
from adalora_qat.runtime.segment import Options, segment_files

NAMES = ("left_lung", "right_lung", "heart")
SIDE = 64


def segmenter() -> Segmenter:
    made = random_segmenter("tiny-test", 0, structures=NAMES)
    torch.manual_seed(0)
    torch.nn.init.normal_(made.structure_prompts.tokens)
    return made


def case() -> ParityCase:
    image = np.random.default_rng(0).random((3, SIDE, SIDE), dtype=np.float32)
    boxes = np.repeat(whole_box(SIDE, SIDE)[None].astype(np.float32), 4, axis=0)
    return ParityCase("noise", image, boxes, (SIDE, SIDE), np.arange(-1, 3))


def test_a_file_takes_the_structures_that_its_model_took(tmp_path: Path) -> None:
    path, model = tmp_path / "model.onnx", segmenter()
    # The strict gate: each structure and none at all, in one run.
    export_onnx(model, path, [case()], policy="none", sources={}, structures=NAMES, golden=case())
    with np.load(tmp_path / "model.golden.npz") as golden:
        assert golden["structures"].tolist() == [[-1, 0, 1, 2]]
        logits = golden["logits"][0]
    expected, _ = torch_model(model)(case().image, *case().prompt)
    np.testing.assert_allclose(logits, expected, atol=1e-3)
    # Structures are told apart: the same box, four masks.
    assert min(np.abs(logits[i] - logits[j]).max() for i in range(4) for j in range(i)) > 0.01
    inputs = {each.name for each in ort.InferenceSession(path).get_inputs()}
    assert "structures" in inputs


def test_without_a_box_each_structure_has_a_mask(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(segmenter(), path, [case()], policy="none", sources={}, structures=NAMES)
    model = load(path)
    image = np.random.default_rng(1).integers(0, 256, (50, 70), dtype=np.uint8)
    result = model(image)
    assert result.structures == NAMES and result.masks.shape == (3, 50, 70)
    assert list(result.masks_by_structure()) == list(NAMES)
    boxed = model(image, box=(5, 5, 60, 40))
    assert boxed.masks.shape == (1, 50, 70) and boxed.structures == ()
    Image.fromarray(image).save(tmp_path / "a.png")
    segment_files(tmp_path / "a.png", model, tmp_path / "out")
    for name, mask in result.masks_by_structure().items():
        written = np.asarray(Image.open(tmp_path / "out" / f"a_{name}_mask.png")) > 0
        np.testing.assert_array_equal(written, mask)


def test_a_second_pass_is_the_same_in_both_predictors_and_of_what_is_named_alone(
    tmp_path: Path,
) -> None:
    model, image = segmenter(), np.random.default_rng(1).random((50, 70), dtype=np.float32)
    plain = TorchPredictor(model, "torch").prompted(image).structures()
    model.refine = ("heart",)
    export_onnx(model, tmp_path / "m.onnx", [case()], policy="none", sources={}, structures=NAMES)
    predictor = OnnxPredictor(tmp_path / "m.onnx")
    assert predictor.metadata.refine == ("heart",)
    there, here = (
        each.prompted(image).structures() for each in (TorchPredictor(model, "torch"), predictor)
    )
    np.testing.assert_array_equal(there.boxes_xyxy_original, here.boxes_xyxy_original)
    np.testing.assert_allclose(there.logits, here.logits, atol=1e-3)
    np.testing.assert_array_equal(plain.logits[:2], there.logits[:2])
    # The box of its first mask, asked for with its own prompt.
    assert not np.array_equal(there.boxes_xyxy_original[2], whole_box(50, 70))
    assert not np.allclose(plain.logits[2], there.logits[2])
    np.testing.assert_array_equal(load(tmp_path / "m.onnx")(image).masks, here.masks)


def test_a_refined_structure_must_be_one_of_the_model(tmp_path: Path) -> None:
    model = segmenter()
    model.refine = ("liver",)
    with pytest.raises(CheckpointError, match="liver"):
        export_onnx(model, tmp_path / "m.onnx", [case()], policy="none", sources={},
                    structures=NAMES)  # fmt: skip


def test_the_command_keeps_the_structures_that_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "chest.onnx"
    export_onnx(segmenter(), path, [case()], policy="none", sources={}, structures=NAMES)
    Image.fromarray(np.tile(np.arange(70, dtype=np.uint8), (50, 1))).save(tmp_path / "a.png")
    model = load(path)
    for asked, files, labels in (
        ((), [f"a_{name}_mask.png" for name in NAMES], 3),
        (("heart", "left_lung"), ["a_heart_mask.png", "a_left_lung_mask.png"], 2),
        (("lungs",), [], 1),
    ):
        out = tmp_path / ("-".join(asked) or "all")
        outcome = segment_files(tmp_path / "a.png", model, out, options=Options(structures=asked))
        masks = {file.name for file in out.glob("*_mask.png")} - {"a_mask.png"}
        assert masks == set(files)
        assert len(outcome.results[0]["objects"]) == labels


def test_structures_move_boxes_and_not_points(tmp_path: Path) -> None:
    path, model = tmp_path / "model.onnx", segmenter()
    export_onnx(model, path, [case()], policy="none", sources={}, structures=NAMES)
    predictor = OnnxPredictor(path)
    embeddings = predictor.encode(case().image[None])
    heart = {"structures": np.array([[2]])}
    boxed = box_feeds(case().boxes[:1])
    plain, named = (predictor.decode(embeddings, {**boxed, **some})[0] for some in ({}, heart))
    assert np.abs(plain - named).max() > 0.01
    pointed = {**boxed, "labels": np.array([[[1, -1]]])}
    plain, named = (predictor.decode(embeddings, {**pointed, **some})[0] for some in ({}, heart))
    np.testing.assert_array_equal(plain, named)
