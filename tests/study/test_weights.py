"""Weights before and after rounding, as a stage holds them."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adalora_qat.adapt.inject import adapters, inject
from adalora_qat.checkpoint import load_model
from adalora_qat.config import AdaptConfig
from adalora_qat.errors import ConfigError
from adalora_qat.model.sam import random_segmenter
from adalora_qat.quantize.policy import load_policy, parse_policy
from adalora_qat.quantize.prepare import freeze, observe, prepare, quantized_layers
from adalora_qat.study.weights import layer_weights, telling_layers


def test_errors_are_weight_minus_shipped() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30))
    weight = model[0].weight.detach().flatten().numpy()
    prepare(model, parse_policy("name: x\nrows: [{match: '*', weight: {bits: 8}}]", "x"))
    with pytest.raises(ConfigError, match="no scale yet"):
        layer_weights(model)
    observe(model)
    freeze(model)
    (found,), stride = layer_weights(model)
    assert stride == 1
    step = np.abs(weight).max() / 127
    np.testing.assert_allclose(found.fp32, weight)
    np.testing.assert_allclose(found.int8, np.rint(weight / step) * step, rtol=1e-5)
    error = weight - found.int8
    # Uniform rounding: a standard deviation of step / √12, no bias.
    assert error.std() == pytest.approx(step / 12**0.5, rel=0.05)
    assert abs(error.mean()) < 3 * step / 12**0.5 / 1200**0.5
    assert np.abs(error).max() <= step / 2 * 1.001


def test_layers_are_all_that_was_quantized_with_their_adapters_merged(trained: Any) -> None:
    segmenter, _ = load_model(trained.run / "stage2" / "model.safetensors")
    found, stride = layer_weights(segmenter)
    assert stride == 1
    assert [layer.name for layer in found] == list(quantized_layers(segmenter))
    for layer in found:
        # Integers times step, and no further off than half a step where nothing is clipped.
        assert np.abs(layer.error_in_steps).max() <= 0.5 + 1e-3


def test_errors_include_parameters_and_effective_weights() -> None:
    model = random_segmenter("tiny-vit-test", 0)
    inject(model.image_encoder, AdaptConfig(rank=2, schedule=()), 0)
    name, adapter = next(iter(adapters(model.image_encoder).items()))
    adapter.lam.data.fill_(0.5)
    prepare(model, load_policy("int8-all"))
    observe(model)
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 64), torch.tensor([[[5.0, 5, 50, 60]]]))
    freeze(model)
    layers = {layer.name: layer for layer in layer_weights(model)[0]}
    expected = (adapter.weight + adapter.delta_weight()).detach().flatten().numpy()
    np.testing.assert_array_equal(layers[f"image_encoder.{name}"].fp32, expected)
    assert "image_encoder.pos_embed" in layers


def test_of_very_many_weights_evenly_many_are_taken(trained: Any) -> None:
    segmenter, _ = load_model(trained.run / "stage2" / "model.safetensors")
    whole, _ = layer_weights(segmenter)
    total = sum(layer.fp32.size for layer in whole)
    found, stride = layer_weights(segmenter, most=total // 3)
    assert stride in (3, 4)
    for few, every in zip(found, whole, strict=True):
        np.testing.assert_array_equal(few.fp32, every.fp32[::stride])


def test_a_float_model_has_no_error(trained: Any) -> None:
    segmenter, _ = load_model(trained.run / "stage1" / "model.safetensors")
    with pytest.raises(ConfigError, match="no quantized layer"):
        layer_weights(segmenter)


def test_telling_layers_are_the_extremes_and_the_middle(trained: Any) -> None:
    segmenter, _ = load_model(trained.run / "stage2" / "model.safetensors")
    layers = layer_weights(segmenter)[0][:5]
    found = telling_layers(layers, [0.9, 0.99, float("nan"), 0.5, 0.95])
    assert found == [layers[3], layers[4], layers[1]]
    assert telling_layers(layers, [float("nan")] * 5) == []
