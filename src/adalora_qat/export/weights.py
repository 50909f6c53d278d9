"""Weights and biases in the file: as integers behind their scales, or as float32.

A weight that integer kernels multiply stands behind a DequantizeLinear, as they want it. One that
is multiplied in float32 stands behind Cast and Mul, which ONNX Runtime computes once, on loading:
it keeps a DequantizeLinear for every run. Up to 4 bits, two integers share a byte.

Shapes: C outputs and K inputs of a weight, G groups of inputs that share a scale.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor, nn

from adalora_qat.export.graph import Graph
from adalora_qat.quantize.convert import QuantizedLayer
from adalora_qat.quantize.numerics import broadcast_scale

_HALF_BYTE = 4


def weight_of(layer: nn.Module) -> Tensor:
    """Return the weight of a layer as it is stored, int8 or float32."""
    weight: Tensor = layer.weight_int8 if isinstance(layer, QuantizedLayer) else layer.weight  # type: ignore[assignment]
    return weight.detach()


def float_weight(g: Graph, layer: nn.Module) -> str:
    """Return a layer's weight as float32, stored as integers where it is quantized."""
    if not isinstance(layer, QuantizedLayer):
        return g.constant("weight", weight_of(layer))
    axis, scale = layer.operator.channel_axis, layer.weight_scale
    if is_grouped(layer):
        matrix = _grouped_weight(g, layer, layer.weight_int8.flatten(1), scale)
        return g.reshape(matrix, layer.weight_int8.shape)
    spread = broadcast_scale(scale, layer.weight_int8.shape, None, axis)
    return stored_integers(g, "weight", layer.weight_int8, spread, _bits(layer))


def float_bias(g: Graph, layer: nn.Module) -> str | None:
    """Return a layer's bias as float32, stored as it is in the layer; None without one."""
    if isinstance(layer, QuantizedLayer) and layer.bias_int32 is not None:
        if layer.input_scale is None:
            raise TypeError(f"{g.path}: an integer bias needs the scale of the input")
        scale = layer.input_scale * layer.weight_scale
        return stored_integers(g, "bias", layer.bias_int32, scale)
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    return None if bias is None else g.constant("bias", bias)


def integer_operands(
    g: Graph, layer: nn.Module, matrix: Tensor, per_output: Callable[[Tensor], Tensor]
) -> list[str]:
    """Return weight, and bias if there is one, as an integer Gemm takes them.

    Parameters
    ----------
    layer : with a quantized input.
    matrix : (C, K) int8, the layer's integers in the order of the Gemm's outputs.
    per_output : brings one value for each output of the layer into the order of ``matrix``.
    """
    if not isinstance(layer, QuantizedLayer) or layer.input_scale is None:
        raise TypeError(f"{g.path} is not an integer layer")
    scale = per_output(layer.weight_scale) if layer.weight_scale.ndim else layer.weight_scale
    operands = [_operand(g, "weight", matrix, scale, _bits(layer))]
    if layer.bias_int32 is not None:
        # The scale of the sum Σ q_x·q_w: the kernel adds the bias before it leaves integers.
        bias = per_output(layer.bias_int32)
        operands.append(_operand(g, "bias", bias, layer.input_scale * scale))
    return operands


def float_operands(
    g: Graph, layer: nn.Module, matrix: Tensor, per_output: Callable[[Tensor], Tensor]
) -> list[str]:
    """Return weight, and bias if there is one, as a float32 Gemm takes them.

    Parameters
    ----------
    layer : float, or converted.
    matrix : (C, K) int8 or float32, the layer's weight in the order of the Gemm's outputs.
    per_output : as in ``integer_operands``.
    """
    if isinstance(layer, QuantizedLayer):
        scale, bias = layer.weight_scale, layer.float_bias()
        if is_grouped(layer):
            weight = _grouped_weight(g, layer, matrix, per_output(scale))
        else:
            # (C,) → (C, 1): a scale for each row of the matrix.
            column = per_output(scale)[:, None] if scale.ndim else scale
            weight = stored_integers(g, "weight", matrix, column, _bits(layer))
    else:
        bias: Tensor | None = layer.bias  # type: ignore[assignment,no-redef]
        weight = g.constant("weight", matrix)
    return [weight] if bias is None else [weight, g.constant("bias", per_output(bias))]


def stored_integers(
    g: Graph, name: str, integers: Tensor, scale: Tensor, bits: int | None = None
) -> str:
    """Store integers and return them times a scale, as float32.

    Parameters
    ----------
    name : of the initializers, within the scope.
    integers : int8 or int32, any shape.
    scale : float32 or float16, broadcasts against the integers.
    bits : of the integers; 4 or fewer are stored as INT4.
    """
    stored = g.node("Cast", _stored(g, name, integers, bits), to=TensorProto.FLOAT)
    if scale.dtype == torch.float16:
        return g.multiply(stored, float16(g, f"{name}_scale", scale))
    return g.multiply(stored, g.constant(f"{name}_scale", scale))


def float16(g: Graph, name: str, values: Tensor) -> str:
    """Store float16 and return it as float32."""
    return g.node("Cast", g.constant(name, values), to=TensorProto.FLOAT)


def is_grouped(layer: nn.Module) -> bool:
    """Return whether groups of a weight's inputs have scales of their own, (C, G)."""
    return isinstance(layer, QuantizedLayer) and layer.weight_scale.ndim == 2


def _grouped_weight(g: Graph, layer: QuantizedLayer, matrix: Tensor, scale: Tensor) -> str:
    """Return a weight with a scale for each group of its inputs, as float32 (C, K).

    Parameters
    ----------
    g, layer : the graph that is written, and whose numerics.
    matrix : (C, K) integers.
    scale : (C, G), G groups of neighbouring inputs.
    """
    (outputs, inputs), groups = matrix.shape, scale.shape[1]
    size = layer.numerics.weight.group_size or inputs if layer.numerics.weight else inputs
    # (C, K) → (C, G, size): the scale (C, G, 1) then needs no repeating, and no room in the file.
    padded = F.pad(matrix, (0, groups * size - inputs)).view(outputs, groups, size)
    weight = stored_integers(g, "weight", padded, scale[:, :, None], _bits(layer))
    weight = g.reshape(weight, (outputs, groups * size))
    return weight if groups * size == inputs else g.slice(weight, 1, 0, inputs)


def _operand(g: Graph, name: str, integers: Tensor, scale: Tensor, bits: int | None = None) -> str:
    """Return integers behind a DequantizeLinear, as integer kernels take them.

    Parameters
    ----------
    g, name : the graph that is written, and what its constants are called.
    integers : of any shape.
    scale : one for all, or one for each entry of the first axis.
    bits : 4 stores two in a byte; None their own type.
    """
    stored = _stored(g, name, integers, bits)
    if bits is not None and bits <= _HALF_BYTE:
        # The kernels multiply int8; ONNX Runtime widens once, on loading.
        stored = g.node("Cast", stored, to=TensorProto.INT8)
    factor = g.constant(f"{name}_scale", scale)
    # Always zero, but written: ``runtime.session`` finds integer weights by it.
    zero = g.constant(f"{name}_zero_point", torch.zeros(scale.shape, dtype=integers.dtype))
    return g.node("DequantizeLinear", stored, factor, zero, axis=0)


def _stored(g: Graph, name: str, integers: Tensor, bits: int | None) -> str:
    """Store integers in half a byte each where they fit, else in their own type.

    Parameters
    ----------
    g, name : the graph that is written, and what its constant is called.
    integers : of any shape.
    bits : of the numerics; None their own type.
    """
    if bits is not None and bits <= _HALF_BYTE:
        return g.integers4(f"{name}_int4", integers)
    kind = str(integers.dtype).removeprefix("torch.")
    return g.constant(f"{name}_{kind}", integers)


def _bits(layer: QuantizedLayer) -> int | None:
    return None if layer.numerics.weight is None else layer.numerics.weight.bits
