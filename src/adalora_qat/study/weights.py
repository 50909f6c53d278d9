"""The weights of a quantized stage before and after rounding, for the paper's Fig. 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adalora_qat.errors import ConfigError
from adalora_qat.model.sam import Segmenter
from adalora_qat.quantize.fake_quant import FakeQuantizer, integers_of
from adalora_qat.quantize.layers import FakeQuantLayer, FakeQuantParameter
from adalora_qat.quantize.prepare import layer_parameter, quantized_layers
from adalora_qat.report.weight_error import LayerWeights

MOST: Final = 20_000_000
"""Weights that are looked at; of more, evenly many are left out of every layer."""


@torch.no_grad()
def layer_weights(segmenter: Segmenter, most: int = MOST) -> tuple[list[LayerWeights], int]:
    """Return each quantized layer's weights as FP32 and as the integers that ship.

    The FP32 weight is the effective one: W + ΔW where an adapted layer is quantized.

    Parameters
    ----------
    segmenter : prepared and frozen, as ``load_model`` returns ``ptq`` and ``stage2``.
    most : of more weights than this, only every n-th of each layer is taken.

    Returns
    -------
    One entry a layer, in the model's order; and n, 1 if every weight is in it.

    Raises
    ------
    ConfigError
        If the model is not quantized, or a scale is not frozen.
    """
    layers = quantized_layers(segmenter)
    if not layers:
        raise ConfigError("the model has no quantized layer, so its weights have no error")
    tensors = {name: _weight_of(segmenter, name, layer) for name, layer in layers.items()}
    stride = max(1, -(-sum(weight.numel() for weight, _ in tensors.values()) // most))
    found = []
    for name, (weight, quantizer) in tensors.items():
        scale = quantizer.broadcast(weight)
        shipped = integers_of(weight, quantizer) * scale
        step: NDArray[np.float32] = scale.cpu().numpy()
        if scale.ndim:
            step = _taken(scale.expand(weight.shape), stride)
        found.append(LayerWeights(name, _taken(weight, stride), _taken(shipped, stride), step))
    return found, stride


def telling_layers(
    layers: Sequence[LayerWeights], correlations: Sequence[float]
) -> list[LayerWeights]:
    """Return the layers with the lowest, the middle and the highest correlation."""
    known = [i for i in range(len(layers)) if np.isfinite(correlations[i])]
    order = sorted(known, key=lambda i: correlations[i])
    if not order:
        return []
    chosen = dict.fromkeys((order[0], order[len(order) // 2], order[-1]))
    return [layers[i] for i in chosen]


def _weight_of(
    segmenter: Segmenter, name: str, layer: FakeQuantLayer | FakeQuantParameter
) -> tuple[Tensor, FakeQuantizer]:
    """Return a layer's effective FP32 weight and its quantizer."""
    if isinstance(layer, FakeQuantLayer):
        weight, quantizer = layer.effective_weight(), layer.weight_quantizer
    else:
        weight, quantizer = layer_parameter(segmenter, name), layer
    if not quantizer.active:
        raise ConfigError(f"{name} has no scale yet: observe and freeze first")
    return weight, quantizer


def _taken(values: Tensor, stride: int) -> NDArray[np.float32]:
    taken: NDArray[np.float32] = values.flatten()[::stride].float().cpu().numpy()
    return taken
