"""From a trained fake-quantized model to integers: what is packed, counted and exported.

A converted layer holds buffers only:

- ``weight_int8`` int8, in the shape of the float weight, within ±limit (±7 at 4 bits)
- ``weight_scale`` float32, () per tensor, (C,) per channel, (C, G) per group; float16 where
  the numerics say so
- ``input_scale`` float32 (), or None where activations stay float32
- ``bias_int32`` int32 of scale s_x·s_w, or ``bias`` float32 where there is no such scale
- ``branch_out`` (out, R) and ``branch_in`` (R, in) float16, where a low-rank branch corrects
  what few bits lose (``compensate``)

Its forward is a float simulation, bit-identical to the fake-quantized layer's in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from adalora_qat.errors import ConfigError
from adalora_qat.quantize.branch import STORED
from adalora_qat.quantize.fake_quant import FakeQuantizer, integers_of, quantize
from adalora_qat.quantize.layers import (
    FakeQuantLayer,
    FakeQuantParameter,
    integer_bias,
    low_rank,
)
from adalora_qat.quantize.numerics import (
    LayerNumerics,
    Numerics,
    broadcast_scale,
    scale_shape,
)
from adalora_qat.quantize.operators import (
    BIAS_LIMIT,
    Kind,
    Operator,
    integer_forward,
    sums_in_half,
)
from adalora_qat.quantize.prepare import layer_parameter, quantized_layers, replace_modules


class QuantizedLayer(nn.Module):
    """What the integer layers share; see the module's docstring for the buffers."""

    weight_int8: Tensor
    weight_scale: Tensor
    input_scale: Tensor | None
    bias_int32: Tensor | None
    bias: Tensor | None
    branch_out: Tensor | None
    branch_in: Tensor | None

    def __init__(
        self,
        name: str,
        operator: Operator,
        numerics: LayerNumerics,
        weight_shape: tuple[int, ...],
        *,
        integer_input: bool,
        has_bias: bool,
        branch_rank: int = 0,
    ) -> None:
        """Make an empty layer of the right shapes, to be filled by ``convert`` or by loading."""
        super().__init__()
        weight = _required(numerics.weight, name)
        self.name, self.operator, self.numerics = name, operator, numerics
        empty = torch.empty(weight_shape, device="meta")
        shape = scale_shape(empty, weight, operator.channel_axis)
        self.register_buffer("weight_int8", torch.zeros(weight_shape, dtype=torch.int8))
        self.register_buffer(
            "weight_scale", torch.ones(shape, dtype=getattr(torch, weight.scale_dtype))
        )
        self.register_buffer("input_scale", torch.ones(()) if integer_input else None)
        integer_bias_fits = integer_input and weight.granularity != "group"
        channels = weight_shape[operator.channel_axis]
        for key, dtype, present in (
            ("bias_int32", torch.int32, has_bias and integer_bias_fits),
            ("bias", torch.float32, has_bias and not integer_bias_fits),
        ):
            self.register_buffer(key, torch.zeros(channels, dtype=dtype) if present else None)
        for key, sides in (
            ("branch_out", (channels, branch_rank)),
            ("branch_in", (branch_rank, weight_shape[-1])),
        ):
            self.register_buffer(key, torch.zeros(sides, dtype=STORED) if branch_rank else None)

    @property
    def weight(self) -> Tensor:
        """The float32 weight that the integers stand for."""
        return self.weight_int8.to(torch.float32) * broadcast_scale(
            self.weight_scale,
            self.weight_int8.shape,
            _required(self.numerics.weight, self.name).group_size,
            self.operator.channel_axis,
        )

    @property
    def branch_rank(self) -> int:
        """The rank of the branch; 0 without one."""
        return 0 if self.branch_in is None else len(self.branch_in)

    def whole_weight(self) -> Tensor:
        """Return the float32 weight with what the branch adds to it."""
        if self.branch_out is None or self.branch_in is None:
            return self.weight
        return self.weight + self.branch_out.to(torch.float32) @ self.branch_in.to(torch.float32)

    @property
    def integer_sums(self) -> bool:
        """Whether products are sums of integers, with one scale for each output."""
        return self.input_scale is not None and self.weight_scale.ndim < 2

    def forward(self, x: Tensor) -> Tensor:
        """Simulate the integer layer on float32 tensors."""
        if self.input_scale is None:
            return self.operator(x, self.whole_weight(), self.bias)
        limit = _required(self.numerics.activation, self.name).limit
        integers = quantize(x, self.input_scale, limit)
        if not self.integer_sums or sums_in_half(x):
            inputs = (integers.to(torch.float32) * self.input_scale).to(x.dtype)
            return self.operator(inputs, self.whole_weight(), self.float_bias())
        out = integer_forward(
            self.operator,
            integers,
            self.weight_int8.to(torch.float32),
            None if self.bias_int32 is None else self.bias_int32.to(torch.float32),
            self.input_scale,
            self.weight_scale,
        )
        if self.branch_out is None or self.branch_in is None:
            return out
        factors = self.branch_out.to(torch.float32), self.branch_in.to(torch.float32)
        return out + low_rank(integers * self.input_scale, *factors)

    def float_bias(self) -> Tensor | None:
        """Return the float32 bias that the layer adds, or None."""
        if self.bias_int32 is None or self.input_scale is None:
            return self.bias
        return self.bias_int32.to(torch.float32) * (self.input_scale * self.weight_scale)

    def to_float(self) -> nn.Module:
        """Return the float32 layer with the dequantized weight and bias."""
        layer = self.operator.empty_layer(tuple(self.weight_int8.shape))
        layer.weight = nn.Parameter(self.whole_weight().detach().clone())
        bias = self.float_bias()
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone())
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """Describe the layer in a printed model."""
        return f"{tuple(self.weight_int8.shape)}, {self.numerics}"


class QuantizedEmbedding(QuantizedLayer):
    """An integer embedding; ``weight`` is what SAM's decoders read themselves."""

    def forward(self, x: Tensor) -> Tensor:
        """Look up indices."""
        return self.operator(x, self.weight)


class DequantizedParameter(nn.Module):
    """A parametrization: the owner stores int8, readers of the parameter get float32."""

    scale: Tensor

    def __init__(self, name: str, numerics: LayerNumerics, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.name, self.numerics = name, numerics
        empty = torch.empty(shape, device="meta")
        self._weight = _required(numerics.weight, name)
        self.register_buffer("scale", torch.ones(scale_shape(empty, self._weight, 0)))

    def forward(self, integers: Tensor) -> Tensor:
        """Return integers times scale."""
        scale = broadcast_scale(self.scale, integers.shape, self._weight.group_size, 0)
        return integers.to(torch.float32) * scale


def integer_class(kind: Kind) -> type[QuantizedLayer]:
    """Return the class of integer layers of a kind."""
    return QuantizedEmbedding if kind == "embedding" else QuantizedLayer


@torch.no_grad()
def convert(model: nn.Module) -> nn.Module:
    """Replace every fake-quantized layer by its integers, in place, and return the model.

    In ``eval`` and float32 the outputs are bit-identical before and after. The float32 master
    weights of converted layers are dropped; layers that stay float32 are left as they are,
    adapters too (``adapt.merge`` works before and after).

    Raises
    ------
    ConfigError
        If the model is not prepared and frozen, or a bias does not fit INT32.
    """
    layers = quantized_layers(model)
    if not layers:
        raise ConfigError("nothing to convert: call prepare, observe, freeze first")
    for layer in layers.values():
        quantizer = layer if isinstance(layer, FakeQuantParameter) else layer.weight_quantizer
        if quantizer.mode != "quantize":
            raise ConfigError(
                f"{layer.name} is in mode {quantizer.mode!r}: call freeze before convert"
            )
    replacements: dict[nn.Module, nn.Module] = {}
    for name, layer in layers.items():
        if isinstance(layer, FakeQuantParameter):
            _convert_parameter(model, name, layer)
        else:
            replacements[layer] = _convert_layer(layer)
    replace_modules(model, replacements)
    return model


def integer_layers(model: nn.Module) -> dict[str, QuantizedLayer | DequantizedParameter]:
    """Return the integer layers and parameters of a converted model by name."""
    return {
        module.name: module
        for module in model.modules()
        if isinstance(module, QuantizedLayer | DequantizedParameter)
    }


@torch.no_grad()
def dequantize(model: nn.Module) -> nn.Module:
    """Replace every integer layer by the float32 layer it stands for, in place; return the model.

    The inverse of prepare and convert, but for what rounding lost: weights and biases are the
    dequantized ones, and activations are float32 again. Names are the float model's own.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    for name, layer in integer_layers(model).items():
        if isinstance(layer, QuantizedLayer):
            replacements[layer] = layer.to_float()
            continue
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        _plain_parameter(module, leaf, getattr(module, leaf).clone())
    replace_modules(model, replacements)
    return model


def store_parameter(
    model: nn.Module, name: str, integers: Tensor, dequantized: DequantizedParameter
) -> None:
    """Store a bare parameter as int8 behind a parametrization that dequantizes it.

    Parameters
    ----------
    model : changed in place.
    name : of the parameter, as ``named_parameters`` has it.
    integers : int8, in the parameter's shape.
    dequantized : holds the scale.
    """
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if parametrize.is_parametrized(module, leaf):
        # Swapped within the list: remove_parametrizations would take the property off a class
        # that deep copies of the model share.
        stored: Any = module.parametrizations[leaf]  # type: ignore[index]
        stored[0] = dequantized
        del stored.original
        stored.register_buffer("original", integers)
        return
    delattr(module, leaf)
    module.register_buffer(leaf, integers)
    # unsafe: the parametrization changes the dtype, which is what it is for.
    parametrize.register_parametrization(module, leaf, dequantized, unsafe=True)


def _plain_parameter(module: nn.Module, leaf: str, value: Tensor) -> None:
    parametrizations: Any = module.parametrizations
    del parametrizations[leaf]
    if len(parametrizations):
        raise ConfigError(f"{leaf} shares its module with a parametrization that is not ours")
    # Only this instance goes back to its class: see ``store_parameter``.
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    module.register_parameter(leaf, nn.Parameter(value))


def _convert_layer(layer: FakeQuantLayer) -> QuantizedLayer:
    weight = layer.effective_weight()
    quantized = integer_class(layer.operator.kind)(
        layer.name,
        layer.operator,
        layer.numerics,
        tuple(weight.shape),
        integer_input=layer.integer_input,
        has_bias=layer.bias is not None,
        branch_rank=0 if layer.branch is None else layer.branch.rank,
    ).to(weight.device)
    quantized.weight_int8.copy_(integers_of(weight, layer.weight_quantizer))
    quantized.weight_scale.copy_(layer.weight_quantizer.scale)
    if quantized.branch_out is not None and layer.branch is not None:
        left, right = layer.branch.shipped_factors()
        quantized.branch_out.copy_(left)
        quantized.get_buffer("branch_in").copy_(right)
    if quantized.input_scale is not None and layer.input_quantizer is not None:
        quantized.input_scale.copy_(layer.input_quantizer.scale)
    scale, bias = layer.bias_scale(), layer.bias
    if quantized.bias_int32 is not None and bias is not None and scale is not None:
        integers = integer_bias(bias, scale)
        if not bool((integers.abs() < BIAS_LIMIT).all()):
            raise ConfigError(
                f"{layer.name}: the bias (up to {float(bias.abs().max()):g}) does not fit INT32 "
                f"at the scale {float(scale.min()):g}; keep this layer float in the policy"
            )
        quantized.bias_int32.copy_(integers)
    elif quantized.bias is not None and bias is not None:
        quantized.bias.copy_(bias)
    return quantized.train(layer.training)


def _convert_parameter(model: nn.Module, name: str, quantizer: FakeQuantParameter) -> None:
    master = layer_parameter(model, name)
    integers = integers_of(master, quantizer).to(torch.int8)
    numerics = LayerNumerics(weight=quantizer.numerics)
    dequantized = DequantizedParameter(name, numerics, tuple(master.shape)).to(master.device)
    dequantized.scale.copy_(_buffer(quantizer))
    store_parameter(model, name, integers, dequantized)


def _buffer(quantizer: FakeQuantizer) -> Tensor:
    return quantizer.scale.detach()


def _required(numerics: Numerics | None, name: str) -> Numerics:
    if numerics is None:
        raise ValueError(f"{name}: an integer layer needs numerics")
    return numerics
