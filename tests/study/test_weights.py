"""Weights before and after rounding, as a stage holds them."""

from typing import Any

import numpy as np
import pytest

from adalora_qat.checkpoint import load_model
from adalora_qat.errors import ConfigError
from adalora_qat.quantize.accounting import quantization_error
from adalora_qat.study.weights import layer_weights, telling_layers


def test_layers_agree_with_the_accounting(trained: Any) -> None:
    segmenter, _ = load_model(trained.run / "stage2" / "model.safetensors")
    found, stride = layer_weights(segmenter)
    assert stride == 1
    expected = {error.name: error for error in quantization_error(segmenter)}
    assert [layer.name for layer in found] == list(expected)
    for layer in found:
        np.testing.assert_array_equal(layer.fp32, expected[layer.name].weight)
        np.testing.assert_array_equal(layer.int8, expected[layer.name].shipped)
        # Integers times step, and no further off than half a step where nothing is clipped.
        assert np.abs(layer.error_in_steps).max() <= 0.5 + 1e-3


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
