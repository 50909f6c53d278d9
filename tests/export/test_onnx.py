import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from torch import nn

from adalora_qat.adapt.inject import inject
from adalora_qat.config import AdaptConfig, ExportConfig
from adalora_qat.errors import CheckpointError, ExportError
from adalora_qat.export.graph import MIN_ONNXRUNTIME
from adalora_qat.export.kernels import all_graphs, integer_products
from adalora_qat.export.onnx import export_onnx
from adalora_qat.export.parity import ParityCase
from adalora_qat.imaging.geometry import whole_box
from adalora_qat.model.sam import Segmenter, random_segmenter
from adalora_qat.quantize.policy import load_policy
from adalora_qat.quantize.prepare import prepare
from adalora_qat.runtime.digest import verified_sha256
from adalora_qat.runtime.networks import box_feeds
from adalora_qat.runtime.onnx_predictor import OnnxPredictor

Converted = Callable[[str, str], Segmenter]
Cases = Callable[..., list[ParityCase]]
OPEN = ExportConfig(min_dice=0, min_pixel_agreement=0)


@pytest.mark.parametrize("variant", ["tiny-test", "tiny-vit-test"])
def test_an_int8_file_is_what_it_says(
    variant: str, tmp_path: Path, converted: Converted, some_cases: Cases
) -> None:
    path, cases = tmp_path / "model.onnx", some_cases(2, boxes=2)
    segmenter = converted(variant, "int8-all")
    exported = export_onnx(
        segmenter, path, cases, policy="int8-all", sources={"run": "ff"}, gate=OPEN, golden=cases[0]
    )
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert exported.size_bytes == path.stat().st_size
    assert exported.kernels["QGemm"] >= 50
    # No weight of the file is float32 but norms, biases and tables of positions.
    large = [
        one.name
        for graph in all_graphs(model.graph)
        for one in graph.initializer
        if one.data_type == onnx.TensorProto.FLOAT and np.prod(one.dims) > 500
    ]
    assert all("rel_pos" in name or "biases" in name or "centres" in name for name in large), large
    predictor = OnnxPredictor(path)
    assert predictor.metadata.policy == "int8-all"
    assert predictor.metadata.sources == {"run": "ff"}
    assert predictor.metadata.min_onnxruntime == MIN_ONNXRUNTIME
    assert predictor.metadata.frame == segmenter.variant.frame
    assert predictor.metadata.parity["cases"] == 4
    assert predictor.metadata.parity["dice_min"] == exported.parity.dice_min
    with np.load(tmp_path / "model.golden.npz") as golden:
        logits, iou = predictor.decode(
            predictor.encode(golden["image"]), {key: golden[key] for key in ("points", "labels")}
        )
        np.testing.assert_array_equal(logits, golden["logits"])
        np.testing.assert_array_equal(iou, golden["iou"])


def test_one_flipped_bit_of_a_weight_is_seen(tmp_path: Path, some_cases: Cases) -> None:
    path = tmp_path / "model.onnx"
    segmenter = random_segmenter("tiny-test", 0)
    export_onnx(segmenter, path, some_cases(1), policy="none", sources={})
    assert verified_sha256(path) == OnnxPredictor(path).sha256
    weight = segmenter.mask_decoder.upscale_conv2.weight.detach().permute(2, 3, 1, 0).numpy()
    data = bytearray(path.read_bytes())
    data[data.index(weight.tobytes()) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.onnx is damaged"):
        verified_sha256(path)


def test_an_fp32_file_passes_the_strict_gate(tmp_path: Path, some_cases: Cases) -> None:
    # Batch norms are still there: the exporter folds them in its own copy.
    segmenter = random_segmenter("tiny-test", seed=1)
    exported = export_onnx(
        segmenter, tmp_path / "fp32.onnx", some_cases(2), policy="none", sources={},
        gate=ExportConfig(min_dice=1, min_pixel_agreement=1),
    )  # fmt: skip
    assert exported.parity.logit_difference < 1e-3
    assert not integer_products(onnx.load(tmp_path / "fp32.onnx"))
    assert any(isinstance(module, nn.BatchNorm2d) for module in segmenter.modules())


def test_a_model_that_disagrees_leaves_no_file(
    tmp_path: Path, converted: Converted, some_cases: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = copy.deepcopy(converted("tiny-test", "decoder"))
    forward = segmenter.forward
    monkeypatch.setattr(
        segmenter, "forward", lambda *given: (-forward(*given)[0], given[1][..., 0])
    )
    with pytest.raises(ExportError, match="does not do what the trained one does"):
        export_onnx(segmenter, tmp_path / "model.onnx", some_cases(1), policy="decoder", sources={})
    assert not list(tmp_path.iterdir())


def test_unfinished_models_are_refused(tmp_path: Path, some_cases: Cases) -> None:
    def attempt(segmenter: Segmenter, message: str) -> None:
        with pytest.raises(ExportError, match=message):
            export_onnx(segmenter, tmp_path / "m.onnx", some_cases(1), policy="x", sources={})

    prepared = random_segmenter("tiny-test", seed=0)
    prepare(prepared, load_policy("decoder"))
    attempt(prepared, "prepared but not converted")
    adapted = random_segmenter("tiny-test", seed=0)
    inject(adapted.image_encoder, AdaptConfig(rank=2, schedule=()), seed=0)
    attempt(adapted, "still an adapter")
    with pytest.raises(ExportError, match="no image"):
        export_onnx(
            random_segmenter("tiny-test", 0), tmp_path / "m.onnx", [], policy="", sources={}
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("variant", ["tiny-test", "tiny-vit-test"])
@pytest.mark.parametrize("policy", ["none", "int8-all"])
def test_an_image_is_encoded_once_for_several_prompts(
    variant: str, policy: str, tmp_path: Path, converted: Converted, some_cases: Cases
) -> None:
    path, cases = tmp_path / "model.onnx", some_cases(1)
    export_onnx(converted(variant, policy), path, cases, policy=policy, sources={}, gate=OPEN)
    predictor = OnnxPredictor(path, threads=1)
    image = np.random.default_rng(3).integers(0, 255, (50, 64), dtype=np.uint8)
    boxes = np.array([[4, 6, 40, 44], [10, 10, 60, 30]])
    ask = predictor.prompted(image)
    whole = whole_box(*image.shape[:2])[None]
    first, second = ask(whole), ask(boxes)
    assert ask.embeddings is not None and np.isfinite(ask.embeddings).all()
    # Not nearly: the second prompt reads what the first one stored.
    np.testing.assert_array_equal(first.logits, predictor.predict(image, whole).logits)
    np.testing.assert_array_equal(second.logits, predictor.predict(image, boxes).logits)
    np.testing.assert_array_equal(second.scores, predictor.predict(image, boxes).scores)
    # What is given as embeddings is what is decoded: the image is not looked at again.
    other = ask.embeddings[::-1].copy()
    prompt = box_feeds(np.array([[4, 6, 40, 44]]))
    own, others = (predictor.decode(each, prompt)[0] for each in (ask.embeddings, other))
    assert not np.array_equal(own, others)
    whole_run = predictor.run(cases[0].image[None], np.array([[[4, 6, 40, 44]]], np.float32))[0]
    cut_run = predictor.decode(predictor.encode(cases[0].image[None]), prompt)[0]
    np.testing.assert_array_equal(whole_run, cut_run)
