"""Fake-quantized layers: a float layer, wrapped, that computes what its integers would.

The wrapped layer lives on as the child ``layer`` with its FP32 master weights. What is
quantized is the effective weight that ships: W + ΔW of an adapted layer, recomputed at each
step, so that gradients reach P, Λ and Q; never W alone. A ``BranchedLinear`` is the exception:
its branch ships beside the integers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adalora_qat.adapt.adapted_linear import AdaptedLinear
from adalora_qat.quantize.branch import BranchedLinear
from adalora_qat.quantize.fake_quant import FakeQuantizer, integers_of, quantize
from adalora_qat.quantize.numerics import LayerNumerics, to_integers
from adalora_qat.quantize.operators import (
    BIAS_LIMIT,
    Operator,
    integer_forward,
    operator_of,
    sums_in_half,
)


class FakeQuantLayer(nn.Module):
    """What the fake-quantized layers share; see the module's docstring.

    Attributes
    ----------
    layer : the float layer that was wrapped.
    weight_quantizer : the weight's quantizer.
    input_quantizer : the input's, or None where activations stay float32.
    operator : the layer's kind and geometry.
    """

    _integers: Tensor | None

    def __init__(self, name: str, layer: nn.Module, numerics: LayerNumerics) -> None:
        super().__init__()
        if numerics.weight is None:
            raise ValueError(f"{name}: a float32 layer is not wrapped")
        self.name = name
        self.numerics = numerics
        self.operator: Operator = operator_of(name, layer)
        self.layer = layer
        weight = self.effective_weight().detach()
        self.weight_quantizer = FakeQuantizer(
            numerics.weight, weight, channel_axis=self.operator.channel_axis
        )
        quantize_input = numerics.activation is not None and self.operator.kind != "embedding"
        self.input_quantizer = (
            FakeQuantizer(numerics.activation).to(weight.device)
            if quantize_input and numerics.activation is not None
            else None
        )
        self.register_buffer("_integers", None, persistent=False)
        self.train(layer.training)
        self.register_load_state_dict_post_hook(_after_loading)  # type: ignore[no-untyped-call]

    def effective_weight(self) -> Tensor:
        """Return the float32 weight that is quantized: W, or W + ΔW of an adapted layer."""
        weight: Tensor = self.layer.weight  # type: ignore[assignment]
        if self.branch is None and isinstance(self.layer, AdaptedLinear):
            return weight + self.layer.delta_weight().to(weight.dtype)
        return weight

    @property
    def branch(self) -> BranchedLinear | None:
        """The layer, if it has a branch that stays beside its integers."""
        return self.layer if isinstance(self.layer, BranchedLinear) else None

    @property
    def bias(self) -> Tensor | None:
        """The float32 master bias."""
        return getattr(self.layer, "bias", None)

    @property
    def integer_input(self) -> bool:
        """Whether the layer's input is quantized (by policy, and seen in calibration)."""
        return self.input_quantizer is not None and self.input_quantizer.active

    @property
    def integer_sums(self) -> bool:
        """Whether the layer's products are sums of integers: one scale for each output."""
        return self.integer_input and self.weight_quantizer.numerics.granularity != "group"

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer as its quantizers' modes have it."""
        if not self.weight_quantizer.active:
            if self.input_quantizer is not None:
                self.input_quantizer(x)
            result: Tensor = self.layer(x)
            return result
        frozen = self.weight_quantizer.mode == "quantize"
        if self.integer_sums and frozen and not sums_in_half(x):
            return self._integer_forward(x)
        weight = self.quantized_weight()
        if self.branch is not None:
            weight = weight + self.branch.shipped_delta()
        inputs = x if self.input_quantizer is None else self.input_quantizer(x)
        return self.operator(inputs, weight, self._quantized_bias())

    def quantized_weight(self) -> Tensor:
        """Return the weight rounded to multiples of its scale, with gradients."""
        if self._integers is not None and not self._weight_trains():
            return self._integers * self.weight_quantizer.broadcast(self._integers)
        quantized: Tensor = self.weight_quantizer(self.effective_weight())
        return quantized

    def bias_scale(self) -> Tensor | None:
        """Return the scale of the INT32 bias, s_x · s_w, () or (C,); None if it stays float."""
        if self.input_quantizer is None or not self.integer_sums or self.bias is None:
            return None
        return self.input_quantizer.scale * self.weight_quantizer.scale

    def freeze(self) -> None:
        """Fix both scales and keep the integers of a weight that does not train."""
        self.weight_quantizer.freeze(self.name, self.effective_weight())
        if self.input_quantizer is not None:
            newly = self.input_quantizer.mode == "observe"
            self.input_quantizer.freeze(self.name)
            if newly and self.integer_sums:
                self._make_room_for_bias(self.input_quantizer)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Compute the kept integers again, after the weights were changed from outside."""
        self._integers = None
        if self.weight_quantizer.mode == "quantize" and not self._weight_trains():
            self._integers = integers_of(self.effective_weight(), self.weight_quantizer)

    def _integer_forward(self, x: Tensor) -> Tensor:
        if self.input_quantizer is None:
            raise ValueError(f"{self.name}: integer sums need a quantized input")
        weight = self._integers
        if weight is None or self._weight_trains():
            weight = self.weight_quantizer.integers(self.effective_weight())
        scale, bias = self.bias_scale(), self.bias
        if bias is not None and scale is not None:
            bias = _quantize_bias(bias, scale)
        integers = self.input_quantizer.integers(x)
        input_scale = self.input_quantizer.scale
        out = integer_forward(
            self.operator, integers, weight, bias, input_scale, self.weight_quantizer.scale
        )
        if self.branch is None:
            return out
        return out + low_rank(integers * input_scale, *self.branch.shipped_factors())

    def _quantized_bias(self) -> Tensor | None:
        scale, bias = self.bias_scale(), self.bias
        if bias is None or scale is None:
            return bias
        # The rounding error is at most half of s_x·s_w: the scales learn nothing from it.
        scale = scale.detach()
        return _quantize_bias(bias, scale) * scale

    def _weight_trains(self) -> bool:
        return any(
            parameter.requires_grad
            for name, parameter in self.layer.named_parameters()
            if name == "weight" or (name != "bias" and self.branch is None)
        )

    @torch.no_grad()
    def _make_room_for_bias(self, input_quantizer: FakeQuantizer) -> None:
        # Where inputs are so small beside the bias that it would overflow INT32, a coarser
        # input scale loses less than half a unit of the bias's own last place.
        if self.bias is None:
            return
        needed = (self.bias.abs() / self.weight_quantizer.scale).max() / 2.0**30
        input_quantizer.scale.clamp_(min=float(needed))


class FakeQuantEmbedding(FakeQuantLayer):
    """An embedding; SAM's prompt encoder and mask decoder also read its ``weight`` itself."""

    @property
    def weight(self) -> Tensor:
        """The embedding as it ships: fake-quantized once scales are frozen."""
        return self.quantized_weight()

    def forward(self, x: Tensor) -> Tensor:
        """Look up indices."""
        return self.operator(x, self.quantized_weight())


class FakeQuantParameter(FakeQuantizer):
    """A bare parameter's quantizer, registered as a parametrization of its module."""

    def __init__(self, name: str, parameter: Tensor, numerics: LayerNumerics) -> None:
        if numerics.weight is None:
            raise ValueError(f"{name}: a float32 parameter is not wrapped")
        super().__init__(numerics.weight, parameter)
        self.name = name
        self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
            _after_loading_parameter
        )


def wrap(name: str, layer: nn.Module, numerics: LayerNumerics) -> FakeQuantLayer:
    """Return a float layer of any quantizable kind in its fake-quantized form."""
    kind = FakeQuantEmbedding if isinstance(layer, nn.Embedding) else FakeQuantLayer
    return kind(name, layer, numerics)


def low_rank(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return what a low-rank branch adds to a layer's output, (x Qᵀ) Lᵀ.

    Parameters
    ----------
    x : (…, in).
    left, right : L (out, R) and Q (R, in).

    Returns
    -------
    (…, out).
    """
    return F.linear(F.linear(x, right), left)


def integer_bias(bias: Tensor, scale: Tensor) -> Tensor:
    """Return a bias as integers, to be added to the sum of integer products.

    Parameters
    ----------
    bias : (out,) float32.
    scale : s_x·s_w, () or (out,).

    Returns
    -------
    (out,) integer-valued float32, saturated at ±(2³¹ − 128).
    """
    return to_integers(bias, scale, BIAS_LIMIT)


def _quantize_bias(bias: Tensor, scale: Tensor) -> Tensor:
    return quantize(bias, scale, BIAS_LIMIT)


def _after_loading(module: Any, keys: Any) -> None:
    del keys
    module.weight_quantizer.restore_mode()
    if module.input_quantizer is not None:
        module.input_quantizer.restore_mode()
    module.refresh()


def _after_loading_parameter(module: Any, keys: Any) -> None:
    del keys
    module.restore_mode()
