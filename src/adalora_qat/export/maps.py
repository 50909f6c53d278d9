"""Feature maps in an ONNX graph, and what both image encoders do to them.

- Pixels are rows of a matrix throughout, so 1×1 convolutions and linears are the same Gemm.
- In large maps, what works pixel by pixel, or window by window, is written for a part of the map
  at a time: the wide tensors in between (a perceptron's hidden layer, queries, keys, values) stay
  in the cache, and little memory is needed.

Shapes: B = 1 image, H W rows and columns, D width, A heads, n tokens on the side of a window,
N = n² tokens of a window, W windows, E side of the embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray
from torch import Tensor, nn

from adalora_qat.export.graph import Graph
from adalora_qat.export.layers import (
    GELU_FLOOR,
    convolve,
    convolve_planes,
    is_integer_product,
    linear,
    product,
    quantize,
)
from adalora_qat.export.weights import weight_of
from adalora_qat.quantize.convert import QuantizedLayer
from adalora_qat.quantize.operators import Operator, operator_of

Size = tuple[int, int]

# Maps of more numbers are worked on in parts: those of SAM's ViT. LiteMedSAM's, 0.5 million at
# most, gain 5 % in speed from parts and lose four times the nodes.
_LARGE = 2**21
_PARTS_OF_A_MAP = 8


def attention(
    g: Graph, query: str, key: str, value: str, heads: int, scale: float, bias: str | None = None
) -> str:
    """Attend: softmax(s·QKᵀ + b) V for every window and head.

    Parameters
    ----------
    query, key, value : (W, N, D), (W, M, D) and (W, M, V), heads side by side in the last axis.
    heads : A.
    scale : s.
    bias : b, (A, N, M), or None.

    Returns
    -------
    (W, N, V).
    """
    query, value = (
        g.transpose(g.reshape(x, (0, 0, heads, -1)), (0, 2, 1, 3)) for x in (query, value)
    )
    key = g.transpose(g.reshape(key, (0, 0, heads, -1)), (0, 2, 3, 1))
    attended = attend(g, query, key, value, scale, bias)
    return g.reshape(g.transpose(attended, (0, 2, 1, 3)), (0, 0, -1))


def attend(
    g: Graph, query: str, key: str, value: str, scale: float, bias: str | None = None
) -> str:
    """Attend, heads apart: queries (…, N, d), keys (…, d, M) and values (…, M, v) → (…, N, v).

    Parameters
    ----------
    g : the graph that is written.
    query, key, value : as above; the keys are transposed.
    scale, bias : as in ``attention``.
    """
    scores = g.matmul(g.multiply(query, g.constant("attention_scale", scale)), key)
    return g.matmul(g.softmax(scores if bias is None else g.add(scores, bias)), value)


@dataclass(frozen=True)
class Map:
    """A feature map of ``size`` (H, W): rows of pixels (H·W, D), or planes (1, D, H, W).

    Integer products want rows, float convolutions planes (which ONNX Runtime keeps in a
    blocked layout from one to the next); a map changes its form only where it must.
    """

    value: str
    size: Size
    width: int
    planes: bool

    def as_rows(self, g: Graph) -> str:
        """Return the map as rows of pixels."""
        if not self.planes:
            return self.value
        return g.reshape(g.transpose(self.value, (0, 2, 3, 1)), (-1, self.width))

    def as_planes(self, g: Graph) -> str:
        """Return the map as planes."""
        if self.planes:
            return self.value
        return g.transpose(g.reshape(self.value, (1, *self.size, self.width)), (0, 3, 1, 2))

    def gelu(self, g: Graph, following: nn.Module | None = None) -> Map:
        """Apply GELU, in the form that the ``following`` convolution wants."""
        # Right after a convolution, a change of form is part of leaving the blocked layout;
        # any later, ONNX Runtime would make it a slow transposition of bytes.
        if following is not None and is_integer_product(following):
            return replace(self, value=g.gelu(self.as_rows(g)), planes=False)
        return replace(self, value=g.gelu(self.value))

    def add(self, g: Graph, other: Map) -> Map:
        """Add another map, in the form of this one."""
        value = other.as_planes(g) if self.planes else other.as_rows(g)
        return replace(self, value=g.add(value, self.value))

    def convolve(self, g: Graph, name: str, module: nn.Module, floor: float | None = None) -> Map:
        """Apply a convolution.

        Parameters
        ----------
        g : the graph that is written.
        name, module : the convolution is ``module.get_submodule(name)``.
        floor : a lower bound of the map, where known; as in ``layers.quantize``.
        """
        layer = module.get_submodule(name)
        size, width = _after(layer, self.size), weight_of(layer).shape[0]
        with g.scope(name):
            if is_integer_product(layer):
                value = convolve(g, layer, self.as_rows(g), self.size, floor)
                return Map(value, size, width, planes=False)
            value = convolve_planes(g, layer, self.as_planes(g), floor)
            return Map(value, size, width, planes=True)


def perceptron(g: Graph, mlp: nn.Module, names: tuple[str, str], x: str) -> str:
    """Widen, GELU, narrow: (M, D) → (M, D).

    Parameters
    ----------
    g : the graph that is written.
    mlp, names : holds the two linear layers under these names, the widening one first.
    x : (M, D).
    """
    first, second = names
    with g.scope(first):
        x = g.gelu(linear(g, mlp.get_submodule(first), x))
    with g.scope(second):
        return linear(g, mlp.get_submodule(second), x, GELU_FLOOR)


def in_parts(g: Graph, x: str, shape: Size, body: Callable[[str], str]) -> str:
    """Apply what works row by row to some rows at a time.

    Parameters
    ----------
    x : (M, D).
    shape : (M, D).
    body : keeps the shape of its rows, (·, D).
    """
    rows, width = shape
    parts = math.gcd(rows, _PARTS_OF_A_MAP) if rows * width > _LARGE else 1
    some = rows // parts
    pieces = (
        [x]
        if parts == 1
        else [g.slice(x, 0, first, first + some) for first in range(0, rows, some)]
    )
    return g.concat([body(piece) for piece in pieces], axis=0)


def query_key_value(
    g: Graph, qkv: nn.Module, windows: str, rows: Tensor, side: int
) -> tuple[str, str, str]:
    """Write queries, keys and values of windows as three products.

    Parameters
    ----------
    qkv : the fused projection, weight (3·D, D).
    windows : (W·N, D), as ``quantize`` gives it.
    rows : (3, D), which rows of the weight give queries, keys and values.
    side : n.

    Returns
    -------
    (W, N, D) each.
    """
    query, key, value = (
        g.reshape(product(g, qkv, windows, part, name), (-1, side * side, len(part)))
        for part, name in zip(rows, ("query", "key", "value"), strict=True)
    )
    return query, key, value


def by_windows(
    g: Graph,
    module: nn.Module,
    windows: str,
    shape: tuple[Size, int, int],
    attend: Callable[[str], str],
) -> str:
    """Attend within windows, in a large map a row of windows at a time, and project: (H·W, D).

    Parameters
    ----------
    module : has ``qkv`` and ``proj``.
    windows : (W·N, D), as ``quantize`` gives it for ``qkv``.
    shape : (H, W) of the map, n and D.
    attend : writes attention of some windows, (·N, D) → (·, N, D).
    """
    size, side, dim = shape
    rows, columns = (-(-length // side) for length in size)
    parts = rows * columns // windows_at_a_time(size, side, dim)
    tokens = rows * columns * side * side // parts
    pieces = []
    for first in range(0, parts * tokens, tokens):
        some = windows if parts == 1 else g.slice(windows, 0, first, first + tokens)
        attended = attend(some)
        with g.scope("proj"):
            pieces.append(quantize(g, module.proj, g.reshape(attended, (-1, dim))))
    with g.scope("proj"):
        joined = _join(g, g.concat(pieces, axis=0), size, side, dim)
        return product(g, module.proj, joined)


def windows_at_a_time(size: Size, side: int, dim: int) -> int:
    """Return how many windows of n × n tokens are written together: all, or a row of them."""
    rows, columns = (-(-length // side) for length in size)
    return columns if math.prod(size) * dim > _LARGE else rows * columns


def cut(g: Graph, x: str, size: Size, side: int, dim: int, blank: NDArray[Any]) -> str:
    """Cut a map into windows: (H·W, D) → (W·N, D).

    Parameters
    ----------
    x : (H·W, D), float32 or int8.
    size : (H, W).
    side : n.
    dim : D.
    blank : (D,) or (), what a pixel of the padding is, in the dtype of ``x``.
    """
    height, width = size
    right, below = -width % side, -height % side
    x = g.reshape(x, (height, width, dim))
    if right:
        beside = g.expand(g.constant("blank", blank), (height, right, dim))
        x = g.concat([x, beside], axis=1)
    if below:
        beneath = g.expand(g.constant("blank", blank), (below, width + right, dim))
        x = g.concat([x, beneath], axis=0)
    rows, columns = (height + below) // side, (width + right) // side
    if rows * columns > 1:
        x = g.transpose(g.reshape(x, (rows, side, columns, side, dim)), (0, 2, 1, 3, 4))
    return g.reshape(x, (-1, dim))


def _join(g: Graph, windows: str, size: Size, side: int, dim: int) -> str:
    """Put windows (W, N, D) back together as (H·W, D), without the padding."""
    height, width = size
    rows, columns = -(-height // side), -(-width // side)
    if rows * columns > 1:
        cells = g.reshape(windows, (rows, columns, side, side, dim))
        windows = g.transpose(cells, (0, 2, 1, 3, 4))
    if rows * side != height or columns * side != width:
        whole = g.reshape(windows, (rows * side, columns * side, dim))
        windows = g.slice(g.slice(whole, 0, 0, height), 1, 0, width)
    return g.reshape(windows, (-1, dim))


def _after(convolution: nn.Module, size: Size) -> Size:
    """Return the size of a convolution's output."""
    operator = operator_of_layer(convolution)
    kernel = weight_of(convolution).shape[2:]
    height, width = (
        (length + 2 * padding - k) // stride + 1
        for length, padding, k, stride in zip(
            size, operator.padding, kernel, operator.stride, strict=True
        )
    )
    return height, width


def operator_of_layer(layer: nn.Module) -> Operator:
    """Return the geometry of a layer, quantized or not."""
    return layer.operator if isinstance(layer, QuantizedLayer) else operator_of("", layer)
