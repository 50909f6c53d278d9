"""Layers as the ONNX nodes for which ONNX Runtime has integer kernels on a CPU.

What is written, and why (measured on ONNX Runtime 1.32, x86 with VNNI):

- Activations are symmetric int8, as they were trained: what OpenVINO is fastest with and TensorRT
  asks for. The kernels of ONNX Runtime on x86 multiply u8 by s8, so ``runtime.session`` reads the
  zero point as uint8 128 there: the same integers, shifted.
- A linear layer is a 2-D Gemm, its int32 bias behind a DequantizeLinear of scale s_x·s_w: it
  becomes ``QGemm``, which gives float32 without requantizing. A float bias would make it FP32.
- A convolution has an integer kernel only where its output is requantized, which the trained
  model does not do. A 1×1 or dense k×k convolution, and a transposed one with kernel = stride,
  is a Gemm over (patches of) channels-last pixels. A depthwise one stays a float convolution
  over quantized values.
- A weight that is multiplied in float32 is stored as integers behind Cast and Mul (``weights``):
  a convolution behind a DequantizeLinear misses the blocked kernels.
- A low-rank branch beside integers that are multiplied in float32 is added to the weight, which
  ONNX Runtime does once, on loading: it costs bytes and no time. Beside an integer product it is
  two thin float Gemms.
- The integers go from −127 to 127, so Clip takes −128 away, before the QuantizeLinear: between it
  and the DequantizeLinear it would keep runtimes from seeing the pair. It is left out where a
  floor of the input (GELU, ReLU) makes −128 impossible.

A linear layer in the file, y = s_x·s_w · (Σ_k q_x·q_w + q_b):

    x ─ Clip ─ QuantizeLinear ─ DequantizeLinear ─┐
              int8 weight ─ DequantizeLinear ─────┼─ Gemm ─ y      runs as one QGemm
              int32 bias  ─ DequantizeLinear ─────┘

Feature maps are channels last, as matrices: (H·W, C), one row a pixel; B = 1.

Shapes: M rows, K inputs and C outputs of a product; H W rows and columns of a map, k kernel side.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adalora_qat.errors import ExportError
from adalora_qat.export.graph import Graph
from adalora_qat.export.weights import (
    float16,
    float_bias,
    float_operands,
    float_weight,
    integer_operands,
    is_grouped,
    weight_of,
)
from adalora_qat.quantize.convert import QuantizedLayer
from adalora_qat.quantize.operators import operator_of

# The least that GELU gives is −0.16997, at −0.7518.
GELU_FLOOR = -0.17
_LARGEST = 127


def is_integer(layer: nn.Module) -> bool:
    """Return whether a layer multiplies integers: quantized input, one scale for each output."""
    return isinstance(layer, QuantizedLayer) and layer.integer_sums


def is_integer_product(layer: nn.Module) -> bool:
    """Return whether a convolution runs as one integer Gemm: dense, square, integer."""
    geometry, kernel = _geometry(layer), weight_of(layer).shape[2:]
    plain = geometry["group"] == 1 and set(geometry["dilations"]) == {1}
    square = len({*kernel}) == len({*geometry["strides"]}) == len({*geometry["pads"]}) == 1
    return is_integer(layer) and plain and square


def quantize(
    g: Graph, layer: nn.Module, x: str, floor: float | None = None, *, relu: bool = False
) -> str:
    """Give a layer's input the form that the layer multiplies: int8, or float32 as it is.

    Whatever only moves data may be done to the result, which is a quarter of the bytes.

    Parameters
    ----------
    g : the graph that is written.
    layer : float, or converted.
    x : float32, any shape.
    floor : a lower bound of ``x``, where known.
    relu : put a ReLU before the layer.
    """
    if not isinstance(layer, QuantizedLayer) or layer.input_scale is None:
        return g.relu(x) if relu else x
    scale = float(layer.input_scale)
    if relu:
        # A Relu would be joined to the Gemm before it by ONNX Runtime, and so keep that from
        # becoming an integer one.
        x = g.node("Max", x, g.constant("zero", 0.0))
    elif floor is None or floor <= -(_LARGEST + 0.5) * scale:  # ties go to even, to −128
        x = g.node("Clip", x, g.constant("input_least", -_LARGEST * scale))
    return g.node("QuantizeLinear", x, *_input_numerics(g, layer.input_scale))


def _input_numerics(g: Graph, scale: Tensor) -> tuple[str, str]:
    # ``runtime.session`` finds the zero point by its name.
    return g.constant("input_scale", scale), g.constant("input_zero_point", np.int8(0))


def dequantize(g: Graph, layer: nn.Module, quantized: str) -> str:
    """Return the float32 values of what ``quantize`` gave."""
    if not isinstance(layer, QuantizedLayer) or layer.input_scale is None:
        return quantized
    return g.node("DequantizeLinear", quantized, *_input_numerics(g, layer.input_scale))


def quantized_constant(layer: nn.Module, values: Tensor) -> NDArray[Any]:
    """Return what ``quantize`` would give for values that are known now.

    Parameters
    ----------
    layer : whose input they are.
    values : float32, any shape.

    Returns
    -------
    int8, or float32 where the layer multiplies floats, in the shape of the values.
    """
    if not isinstance(layer, QuantizedLayer) or layer.input_scale is None:
        return values.detach().numpy()
    integers = (values / layer.input_scale).round().clamp(-_LARGEST, _LARGEST)
    return integers.to(torch.int8).numpy()


def product(
    g: Graph, layer: nn.Module, quantized: str, rows: Tensor | None = None, part: str = ""
) -> str:
    """Multiply what ``quantize`` gave by a linear layer's weight: (M, K) → (M, C) float32.

    Parameters
    ----------
    layer : linear, weight (C, K).
    quantized : (M, K).
    rows : indices that pick and order the outputs; all C in their order if None.
    part : what the picked outputs are called, in the names of nodes and initializers.
    """
    weight = weight_of(layer)
    if rows is None:
        return _gemm(g, layer, quantized, weight, branch=_branch(layer))
    # One Gemm for each of queries, keys and values: splitting the output of a fused one would
    # copy it as float32.
    branch = _branch(layer, rows)
    return _gemm(g, layer, quantized, weight[rows], lambda values: values[rows], part, branch)


def linear(
    g: Graph, layer: nn.Module, x: str, floor: float | None = None, *, relu: bool = False
) -> str:
    """Apply a linear layer: (M, K) → (M, C).

    Parameters
    ----------
    layer : weight (C, K).
    x : (M, K) float32.
    floor, relu : as in ``quantize``.
    """
    return product(g, layer, quantize(g, layer, x, floor, relu=relu))


def convolve(
    g: Graph, layer: nn.Module, x: str, size: tuple[int, int], floor: float | None = None
) -> str:
    """Apply a convolution as an integer Gemm: a map (H·W, K) → (H'·W', C).

    Parameters
    ----------
    layer : one for which ``is_integer_product`` holds.
    x : (H·W, K) float32, rows of pixels.
    size : (H, W).
    floor : as in ``quantize``.
    """
    weight = weight_of(layer)
    quantized = _patches(g, layer, quantize(g, layer, x, floor), size)
    # A row of the patches holds (row, column, channel) of the kernel's window.
    return _gemm(g, layer, quantized, weight.permute(0, 2, 3, 1).reshape(len(weight), -1))


def convolve_planes(g: Graph, layer: nn.Module, x: str, floor: float | None = None) -> str:
    """Apply a convolution in float32 to planes: (1, K, H, W) → (1, C, H', W').

    Parameters
    ----------
    layer : any convolution.
    x : (1, K, H, W) float32.
    floor : as in ``quantize``.
    """
    x = dequantize(g, layer, quantize(g, layer, x, floor))
    bias = float_bias(g, layer)
    operands = [x, float_weight(g, layer), *([] if bias is None else [bias])]
    return g.node("Conv", *operands, **_geometry(layer))


def convolve_transposed(
    g: Graph, layer: nn.Module, x: str, size: tuple[int, int], floor: float | None = None
) -> str:
    """Apply a transposed convolution, kernel = stride = k: P maps (P·H·W, K) → (P·kH·kW, C).

    Parameters
    ----------
    layer : the convolution.
    x : (P·H·W, K) float32, rows of pixels of P maps.
    size : (H, W).
    floor : as in ``quantize``.

    Raises
    ------
    ExportError
        If it is another kind of transposed convolution.
    """
    weight = weight_of(layer)
    inputs, outputs, kernel, _ = weight.shape
    operator = layer.operator if isinstance(layer, QuantizedLayer) else operator_of(g.path, layer)
    if operator.stride != (kernel, kernel) or weight.shape[3] != kernel or is_grouped(layer):
        raise ExportError(
            f"{g.path}: only transposed convolutions with kernel = stride, and without groups of "
            "weights, can be exported"
        )
    # With kernel = stride every input pixel fills k·k output pixels of its own and no two
    # overlap: a product with the matrix (k·k·C, K), then a move of cells to their places.
    quantized = quantize(g, layer, x, floor)
    matrix = weight.permute(2, 3, 1, 0).reshape(-1, inputs)
    cells = _gemm(g, layer, quantized, matrix, lambda values: values.repeat(kernel * kernel))
    # (P, H, W, k, k, C) → (P, H, k, W, k, C): rows of a cell become rows of the map.
    cells = g.reshape(cells, (-1, *size, kernel, kernel, outputs))
    return g.reshape(g.transpose(cells, (0, 1, 3, 2, 4, 5)), (-1, outputs))


def _patches(g: Graph, layer: nn.Module, x: str, size: tuple[int, int]) -> str:
    """Gather the kernel's windows of a map (H·W, K): (H'·W', k·k·K)."""
    geometry, (_, channels, k, _) = _geometry(layer), weight_of(layer).shape
    step, padding = geometry["strides"][0], geometry["pads"][0]
    height, width = size
    if k == step == 1:
        return x
    if k == step and not padding:
        # Windows that do not overlap are cells of the map: only axes change places.
        cells = g.reshape(x, (height // k, k, width // k, k, channels))
        return g.reshape(g.transpose(cells, (0, 2, 1, 3, 4)), (-1, k * k * channels))
    planes = g.reshape(x, (*size, channels))
    if padding:
        # What 0.0 is as an integer.
        zero = g.constant("input_zero_point", np.int8(0))
        beside = g.expand(zero, (height, padding, channels))
        planes = g.concat([beside, planes, beside], axis=1)
        above = g.expand(zero, (padding, width + 2 * padding, channels))
        planes = g.concat([above, planes, above], axis=0)
    rows, columns = ((n + 2 * padding - k) // step + 1 for n in size)
    # Overlapping windows (im2col): k·k shifted, strided views of the map, side by side.
    windows = []
    for dy in range(k):
        band = g.slice(planes, 0, dy, dy + (rows - 1) * step + 1, step)
        windows += [g.slice(band, 1, dx, dx + (columns - 1) * step + 1, step) for dx in range(k)]
    return g.reshape(g.concat(windows, axis=2), (-1, k * k * channels))


def _gemm(
    g: Graph,
    layer: nn.Module,
    x: str,
    matrix: Tensor,
    per_output: Callable[[Tensor], Tensor] = lambda values: values,
    part: str = "",
    branch: tuple[Tensor, Tensor] | None = None,
) -> str:
    """Multiply (M, K) by ``matrix`` (C, K), as integers where the layer is integer.

    Parameters
    ----------
    g, layer : the graph that is written, and whose scales and bias are taken.
    x : (M, K), in the form that ``quantize`` gave.
    matrix : (C, K), the layer's weight or some of its rows.
    per_output : brings one value for each output of the layer, its bias or its scales, into the
        order of the rows of ``matrix``.
    part : names the nodes where a layer is written as several products.
    branch : what is added to the product: (C, R) and (R, K).
    """
    x = dequantize(g, layer, x)
    # The parts of a layer share what the branch does to its input.
    narrow = None if branch is None else float16(g, "branch_in", branch[1])
    with g.scope(part) if part else nullcontext():
        wide = None if branch is None else float16(g, "branch_out", branch[0])
        if is_integer(layer):
            # transB: both lie with an output's inputs side by side, (C, K).
            operands = integer_operands(g, layer, matrix, per_output)
            y = g.node("Gemm", x, *operands, transB=1)
            if narrow is None or wide is None:
                return y
            # (M, K) → (M, R) → (M, C), R being small: two float products cost less than it would
            # to leave integers for the large one.
            hidden = g.node("Gemm", x, narrow, transB=1)
            return g.add(y, g.node("Gemm", hidden, wide, transB=1))
        operands = float_operands(g, layer, matrix, per_output)
        if narrow is not None and wide is not None:
            # All constants: ONNX Runtime adds the branch to the weight once, on loading.
            operands[0] = g.add(operands[0], g.matmul(wide, narrow))
        return g.node("Gemm", x, *operands, transB=1)


def _branch(layer: nn.Module, rows: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
    """Return a layer's low-rank branch, (C, R) and (R, K) float16, of some rows of outputs."""
    if not isinstance(layer, QuantizedLayer):
        return None
    wide, narrow = layer.branch_out, layer.branch_in
    if wide is None or narrow is None:
        return None
    return wide if rows is None else wide[rows], narrow


def _geometry(layer: nn.Module) -> dict[str, Any]:
    """Return the attributes of ONNX's Conv."""
    operator = layer.operator if isinstance(layer, QuantizedLayer) else operator_of("", layer)
    kernel = weight_of(layer).shape[2:]
    if isinstance(operator.padding, str):
        raise ExportError(f"padding {operator.padding!r} of a convolution must be given in pixels")
    return {
        "kernel_shape": list(kernel),
        "strides": list(operator.stride),
        "pads": [*operator.padding, *operator.padding],
        "dilations": list(operator.dilation),
        "group": operator.groups,
    }
