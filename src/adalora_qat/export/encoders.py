"""The image encoders as ONNX graphs, channels last, data moved as integers.

They compute what ``model.tiny_vit`` and transformers' SAM ViT do (tests hold them equal), in
the order that suits a CPU runtime:

- Pixels are rows of a matrix throughout, so 1×1 convolutions and linears are the same Gemm.
- Layer norm and quantization come before the windows are cut: both work token by token, so
  windows are cut and padded from uint8.
- Queries, keys and values are three products, and the attention one node: nothing is split or
  transposed in float32.
- What works pixel by pixel, or window by window, is done for a part of the map at a time: the
  wide tensors in between (a perceptron's hidden layer, queries, keys, values) stay in the
  cache, and little memory is needed. So is TinyViT's convolutional stage, in strips.

Shapes: B = 1 image, H W rows and columns, D width, A heads, n tokens on the side of a window,
N = n² tokens of a window, W windows, E side of the embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from adalora_qat.export.graph import Graph
from adalora_qat.export.layers import (
    GELU_FLOOR,
    convolve,
    convolve_planes,
    input_kind,
    is_integer_product,
    linear,
    product,
    quantize,
    quantized_constant,
    stored_integers,
    weight_of,
)
from adalora_qat.model.sam import Segmenter, VitImageEncoder
from adalora_qat.model.tiny_vit import Stage, TinyViT, TinyViTBlock
from adalora_qat.quantize.convert import DequantizedParameter, QuantizedLayer
from adalora_qat.quantize.operators import Operator, operator_of

Size = tuple[int, int]

# Above this many tokens, the scores of all pairs are not kept in memory at once, but those of
# a few rows of queries (fastest for 64 × 64 tokens: 4 of 1, 2, 4, 8, 16).
_MANY_TOKENS = 1024
_ROWS_AT_A_TIME = 4
# A perceptron is applied to this share of a map at a time, the convolutional stage to strips.
# More strips would need less memory, but compute more rows twice.
_PARTS_OF_A_MAP = 16
_STRIPS = 4
_TABLES = ("rel_pos_h", "rel_pos_w")


def encode(g: Graph, segmenter: Segmenter, image: str) -> str:
    """Write the encoder of ``segmenter``: image (1, 3, S, S) → embeddings (E², D)."""
    encoder, side = segmenter.image_encoder, segmenter.variant.frame.side
    with g.scope("image_encoder"):
        if isinstance(encoder, TinyViT):
            return _tiny_vit(g, encoder, image, side)
        return _vit(g, encoder, image, side)


def attention(
    g: Graph, query: str, key: str, value: str, heads: int, scale: float, bias: str | None = None
) -> str:
    """Attend: query (W, N, D), key (W, M, D), value (W, M, V), bias (A, N, M) → (W, N, V)."""
    operands = [query, key, value, *([] if bias is None else [bias])]
    return g.node("Attention", *operands, q_num_heads=heads, kv_num_heads=heads, scale=scale)


@dataclass(frozen=True)
class _Map:
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

    def gelu(self, g: Graph, following: nn.Module | None = None) -> _Map:
        """Apply GELU, in the form that the ``following`` convolution wants."""
        # Right after a convolution, a change of form is part of leaving the blocked layout;
        # any later, ONNX Runtime would make it a slow transposition of bytes.
        if following is not None and is_integer_product(following):
            return replace(self, value=g.gelu(self.as_rows(g)), planes=False)
        return replace(self, value=g.gelu(self.value))

    def add(self, g: Graph, other: _Map) -> _Map:
        """Add another map, in the form of this one."""
        value = other.as_planes(g) if self.planes else other.as_rows(g)
        return replace(self, value=g.add(value, self.value))

    def convolve(self, g: Graph, name: str, module: nn.Module, floor: float | None = None) -> _Map:
        """Apply the convolution ``name`` of ``module``."""
        layer = module.get_submodule(name)
        size, width = _after(layer, self.size), weight_of(layer).shape[0]
        with g.scope(name):
            if is_integer_product(layer):
                value = convolve(g, layer, self.as_rows(g), self.size, floor)
                return _Map(value, size, width, planes=False)
            value = convolve_planes(g, layer, self.as_planes(g), floor)
            return _Map(value, size, width, planes=True)


def _tiny_vit(g: Graph, encoder: TinyViT, image: str, side: int) -> str:
    x = _stem_in_strips(g, encoder, image, side)
    for index, stage in enumerate(encoder.layers[1:], start=1):
        with g.scope(f"layers.{index}"):
            x = _stage(g, stage, x)
    for index, part in enumerate(encoder.neck):
        if isinstance(part, nn.LayerNorm):
            with g.scope(f"neck.{index}"):
                x = replace(x, value=g.layer_norm(part, x.as_rows(g)), planes=False)
        else:
            with g.scope("neck"):
                x = x.convolve(g, str(index), encoder.neck)
    return x.as_rows(g)


def _stem_in_strips(g: Graph, encoder: TinyViT, image: str, side: int) -> _Map:
    """Write TinyViT's convolutional stage, a strip of the map at a time.

    It holds the largest maps of the network. A strip is computed from the rows of the image
    that it sees, and rows that saw the edge of the cut are dropped: the same numbers.
    """
    convolutions = [
        layer
        for part in (encoder.patch_embed, encoder.layers[0])
        for layer in part.modules()
        if isinstance(layer, QuantizedLayer | nn.Conv2d)
    ]
    step = math.prod(_operator(layer).stride[0] for layer in convolutions)
    height = side // step
    rows, strips = height // math.gcd(height, _STRIPS), []
    for first in range(0, height, rows):
        above, below = _rows_seen(convolutions, first, first + rows)
        above, below = max(above // step * step, 0), min(-(-below // step) * step, side)
        cut = image if below - above == side else g.slice(image, 2, above, below)
        x = _stem(g, encoder, _Map(cut, (below - above, side), 3, planes=True))
        start = first - above // step
        pixels = g.reshape(x.as_rows(g), (*x.size, x.width))
        strips.append(g.slice(pixels, 0, start, start + rows))
    whole = g.reshape(g.concat(strips, axis=0), (-1, x.width))
    return _Map(whole, (height, x.size[1]), x.width, planes=False)


def _rows_seen(convolutions: Sequence[nn.Module], start: int, stop: int) -> tuple[int, int]:
    """Return the range of input rows that the output rows from start to stop depend on."""
    for layer in reversed(convolutions):
        operator, kernel = _operator(layer), weight_of(layer).shape[2]
        step, padding = operator.stride[0], int(operator.padding[0])
        start, stop = start * step - padding, (stop - 1) * step - padding + kernel
    return start, stop


def _stem(g: Graph, encoder: TinyViT, x: _Map) -> _Map:
    with g.scope("patch_embed"):
        x = x.convolve(g, "seq.0.c", encoder.patch_embed)
        x = x.gelu(g, encoder.patch_embed.seq[2].c)
        x = x.convolve(g, "seq.2.c", encoder.patch_embed, GELU_FLOOR)
    with g.scope("layers.0"):
        return _stage(g, encoder.layers[0], x)


def _stage(g: Graph, stage: Stage, x: _Map) -> _Map:
    for index, block in enumerate(stage.blocks):
        with g.scope(f"blocks.{index}"):
            if isinstance(block, TinyViTBlock):
                x = _block(g, block, x)
            else:
                x = _inverted(g, block, x).add(g, x).gelu(g)
    if stage.downsample is None:
        return x
    with g.scope("downsample"):
        return _inverted(g, stage.downsample, x)


def _inverted(g: Graph, block: nn.Module, x: _Map) -> _Map:
    """Write conv1 → GELU → conv2 → GELU → conv3."""
    x = x.convolve(g, "conv1.c", block).gelu(g)
    x = x.convolve(g, "conv2.c", block, GELU_FLOOR).gelu(g, block.conv3.c)
    return x.convolve(g, "conv3.c", block, GELU_FLOOR)


def _block(g: Graph, block: TinyViTBlock, x: _Map) -> _Map:
    rows = x.as_rows(g)
    with g.scope("attn"):
        rows = g.add(rows, _tiny_attention(g, block, rows, x.size))
    x = replace(x, value=rows, planes=False).convolve(g, "local_conv.c", block)

    def perceptron(rows: str) -> str:
        with g.scope("mlp"):
            with g.scope("norm"):
                hidden = g.layer_norm(block.mlp.norm, rows)
            return g.add(rows, _mlp(g, block.mlp, ("fc1", "fc2"), hidden))

    rows = _in_parts(g, x.as_rows(g), (math.prod(x.size), x.width), perceptron)
    return replace(x, value=rows, planes=False)


def _in_parts(g: Graph, x: str, shape: Size, body: Callable[[str], str]) -> str:
    """Apply what keeps the shape (M, D), and works row by row, to some rows at a time."""
    parts = math.gcd(shape[0], _PARTS_OF_A_MAP)
    part = (shape[0] // parts, shape[1])
    stacked = g.scan([g.reshape(x, (parts, *part))], [part, part], lambda names: body(names[0]))
    return g.reshape(stacked, shape)


def _mlp(g: Graph, mlp: nn.Module, names: tuple[str, str], x: str) -> str:
    first, second = names
    with g.scope(first):
        x = g.gelu(linear(g, mlp.get_submodule(first), x))
    with g.scope(second):
        return linear(g, mlp.get_submodule(second), x, GELU_FLOOR)


def _tiny_attention(g: Graph, block: TinyViTBlock, x: str, size: Size) -> str:
    module, side = block.attn, block.window
    heads, dim = module.heads, module.norm.normalized_shape[0]
    with g.scope("norm"):
        normed = g.layer_norm(module.norm, x)
    with g.scope("qkv"):
        # Padding is attended to, as in the network that was pretrained; a zero pixel is the
        # norm's bias after the norm.
        blank = quantized_constant(module.qkv, module.norm.bias)
        quantized = quantize(g, module.qkv, normed)
        windows = _cut(g, quantized, size, side, dim, blank)
    table = g.constant("attention_biases", module.attention_biases.view(heads, side, side))
    bias = _pair_bias(g, table, heads, side)
    # The checkpoint interleaves q, k, v by head: (A, 3, D/A).
    rows = torch.arange(3 * dim).view(heads, 3, -1).transpose(0, 1).flatten(1)

    def attend(some: str) -> str:
        with g.scope("qkv"):
            parts = _query_key_value(g, module.qkv, some, rows, side)
        return attention(g, *parts, heads, (dim // heads) ** -0.5, bias)

    return _by_windows(g, module, windows, (size, side, dim), attend)


def _by_windows(
    g: Graph,
    module: nn.Module,
    windows: str,
    shape: tuple[Size, int, int],
    attend: Callable[[str], str],
) -> str:
    """Attend within windows (W·N, D), a row of windows at a time, and project: (H·W, D)."""
    size, side, dim = shape
    rows, columns = (-(-length // side) for length in size)
    tokens = columns * side * side

    def body(names: Sequence[str]) -> str:
        attended = attend(names[0])
        with g.scope("proj"):
            return quantize(g, module.proj, g.reshape(attended, (tokens, dim)))

    if rows == 1:
        attended = body([windows])
    else:
        kinds = [input_kind(module.qkv), input_kind(module.proj)]
        stacked = g.reshape(windows, (rows, tokens, dim))
        attended = g.scan([stacked], [(tokens, dim)] * 2, body, kinds)
    with g.scope("proj"):
        return product(g, module.proj, _join(g, attended, size, side, dim))


def _query_key_value(
    g: Graph, qkv: nn.Module, windows: str, rows: Tensor, side: int
) -> tuple[str, str, str]:
    """Write three products of windows (W·N, D) with the rows (3, D) of the weight."""
    query, key, value = (
        g.reshape(product(g, qkv, windows, part, name), (-1, side * side, len(part)))
        for part, name in zip(rows, ("query", "key", "value"), strict=True)
    )
    return query, key, value


def _cut(g: Graph, x: str, size: Size, side: int, dim: int, blank: NDArray[Any]) -> str:
    """Cut a map (H·W, D) into windows (W·N, D), padded with ``blank`` (D) or ()."""
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


def _pair_bias(g: Graph, table: str, heads: int, side: int) -> str:
    """Spread a bias for each offset, (A, n, n), over the pairs of tokens: (A, N, N)."""
    steps = np.arange(side)
    distance = np.abs(steps[:, None] - steps)
    # Twice a small look-up, by row and by column: an index of N² numbers would be a large part
    # of the file. The runtime computes it once, on loading.
    by_row = g.gather(table, distance, axis=1)
    pairs = g.transpose(g.gather(by_row, distance, axis=3), (0, 1, 3, 2, 4))
    return g.reshape(pairs, (heads, side * side, side * side))


def _vit(g: Graph, encoder: VitImageEncoder, image: str, side: int) -> str:
    patches = _Map(image, (side, side), 3, planes=True)
    with g.scope("patch_embed"):
        patches = patches.convolve(g, "projection", encoder.patch_embed)
    x, size, dim = patches.as_rows(g), patches.size, patches.width
    if encoder.pos_embed is not None:
        x = g.add(x, _positions(g, encoder, size[0] * size[1]))
    for index, layer in enumerate(encoder.layers):
        with g.scope(f"layers.{index}"):
            x = g.add(x, _vit_attention(g, layer, x, size))
            x = _in_parts(g, x, (math.prod(size), dim), partial(_vit_perceptron, g, layer))
    out = _Map(x, size, dim, planes=False)
    for convolution, norm in (("conv1", "layer_norm1"), ("conv2", "layer_norm2")):
        with g.scope("neck"):
            out = out.convolve(g, convolution, encoder.neck)
            with g.scope(norm):
                normed = g.layer_norm(getattr(encoder.neck, norm), out.as_rows(g))
        out = replace(out, value=normed, planes=False)
    return out.value


def _vit_perceptron(g: Graph, layer: nn.Module, x: str) -> str:
    with g.scope("layer_norm2"):
        hidden = g.layer_norm(layer.layer_norm2, x)
    with g.scope("mlp"):
        return g.add(x, _mlp(g, layer.mlp, ("lin1", "lin2"), hidden))


def _positions(g: Graph, encoder: VitImageEncoder, count: int) -> str:
    if not parametrize.is_parametrized(encoder, "pos_embed"):
        return g.constant("pos_embed", encoder.pos_embed.detach().view(count, -1))
    owner = encoder.parametrizations["pos_embed"]
    dequantized: DequantizedParameter = owner[0]
    integers = owner.original.detach()
    stored = stored_integers(g, "pos_embed", integers, dequantized.scale)
    return g.reshape(stored, (count, integers.shape[-1]))


def _vit_attention(g: Graph, layer: nn.Module, x: str, size: Size) -> str:
    module = layer.attn
    side, heads = layer.window_size or size[0], module.num_attention_heads
    dim = weight_of(module.qkv).shape[1]
    with g.scope("layer_norm1"):
        normed = g.layer_norm(layer.layer_norm1, x)
    with g.scope("attn"):
        with g.scope("qkv"):
            # transformers pads after the norm, with zeros.
            blank = quantized_constant(module.qkv, torch.zeros(()))
            cells = _cut(g, quantize(g, module.qkv, normed), size, side, dim, blank)
        relative = None
        if module.use_rel_pos and side * side <= _MANY_TOKENS:
            relative = _relative_positions(g, module, -(-size[1] // side), side, dim)

        def attend(some: str) -> str:
            with g.scope("qkv"):
                rows = torch.arange(3 * dim).view(3, dim)
                query, key, value = _query_key_value(g, module.qkv, some, rows, side)
            if module.use_rel_pos and relative is None:
                return _attention_by_rows(g, (query, key, value), module, side, dim)
            if relative is not None:
                query, key = _with_positions(g, (query, key), relative, heads, side, dim)
            return attention(g, query, key, value, heads, (dim // heads) ** -0.5)

        return _by_windows(g, module, cells, (size, side, dim), attend)


def _attention_by_rows(
    g: Graph, parts: tuple[str, str, str], module: nn.Module, side: int, dim: int
) -> str:
    """Attend over the whole map, (1, N, D) each, some rows of queries at a time: (1, N, D).

    The scores of all pairs of tokens, and their relative positions, would take most of the
    memory of the network; those of a few rows stay in the cache.
    """
    heads, tokens = module.num_attention_heads, side * side
    depth, rows = dim // heads, math.gcd(side, _ROWS_AT_A_TIME)
    steps, queries = side // rows, rows * side
    query = parts[0]
    key, value = (
        g.transpose(g.reshape(part, (1, tokens, heads, depth)), (0, 2, 1, 3)) for part in parts[1:]
    )
    # What a query adds to the score of every key in a row, and in a column, of the map.
    tables = [_offset_table(g, name, getattr(module, name), side) for name in _TABLES]
    by_column = g.matmul(g.reshape(query, (side, side, heads, depth)), tables[1])
    by_column = g.reshape(by_column, (steps, queries, heads, side))
    by_column = g.transpose(by_column, (0, 2, 1, 3))
    query = g.transpose(g.reshape(query, (steps, queries, heads, depth)), (0, 2, 1, 3))
    grid = g.reshape(query, (steps, heads, rows, side, depth))
    by_row = g.matmul(grid, g.reshape(tables[0], (steps, 1, rows, depth, side)))
    by_row = g.reshape(by_row, (steps, heads, queries, side))

    def body(names: Sequence[str]) -> str:
        some, vertical, horizontal = names
        bias = g.add(
            g.reshape(vertical, (heads, queries, side, 1)),
            g.reshape(horizontal, (heads, queries, 1, side)),
        )
        bias = g.reshape(bias, (1, heads, queries, tokens))
        some = g.reshape(some, (1, heads, queries, depth))
        out = g.node("Attention", some, key, value, bias, scale=depth**-0.5)
        return g.reshape(out, (heads, queries, depth))

    slices = [(heads, queries, size) for size in (depth, side, side, depth)]
    attended = g.scan([query, by_row, by_column], slices, body)
    return g.reshape(g.transpose(attended, (0, 2, 1, 3)), (1, tokens, dim))


@dataclass(frozen=True)
class _Relative:
    """What relative positions need: tables (n, D/A, n), and one-hot places (W, N, A, 2n)."""

    rows: str
    columns: str
    places: str


def _relative_positions(
    g: Graph, module: nn.Module, windows: int, side: int, dim: int
) -> _Relative:
    heads = module.num_attention_heads
    # 1/s goes into the tables.
    factor = (dim // heads) ** 0.5
    rows, columns = (
        _offset_table(g, name, getattr(module, name), side, factor) for name in _TABLES
    )
    places = _places(g, side, (windows, side * side, heads, 2 * side))
    return _Relative(rows, columns, places)


def _with_positions(
    g: Graph, pair: tuple[str, str], relative: _Relative, heads: int, side: int, dim: int
) -> tuple[str, str]:
    """Widen queries and keys (W, N, D) so that their product holds the relative positions.

    q·k·s + r_h[y, y'] + r_w[x, x'] = [q, r_h/s, r_w/s]·[k, onehot(y'), onehot(x')]·s: the bias
    of every pair of tokens, (W, A, N, N), the largest tensor of the network, is never made.

    Returns
    -------
    (W, N, A·(D/A + 2n)) each.
    """
    (query, key), depth, tokens = pair, dim // heads, side * side
    by_row = g.matmul(g.reshape(query, (-1, side, side * heads, depth)), relative.rows)
    by_column = g.matmul(g.reshape(query, (-1, side, side, heads, depth)), relative.columns)
    parts = [query, by_row, by_column]
    sizes = (depth, side, side)
    wide_query = g.concat(
        [
            g.reshape(part, (-1, tokens, heads, size))
            for part, size in zip(parts, sizes, strict=True)
        ],
        axis=3,
    )
    wide_key = g.concat([g.reshape(key, (-1, tokens, heads, depth)), relative.places], axis=3)
    shape = (-1, tokens, heads * (depth + 2 * side))
    return g.reshape(wide_query, shape), g.reshape(wide_key, shape)


def _offset_table(g: Graph, name: str, table: Tensor, side: int, factor: float = 1.0) -> str:
    """Write the embedding of each offset times ``factor``, (2n − 1, d) → (n query, d, n key)."""
    # transformers resizes a table of another length.
    resized = F.interpolate(table.detach().T[None], size=2 * side - 1, mode="linear")[0].T
    stored = g.constant(name, resized * factor)
    steps = np.arange(side)
    offsets = g.gather(stored, steps[:, None] - steps + (side - 1), axis=0)
    return g.transpose(offsets, (0, 2, 1))


def _places(g: Graph, side: int, shape: tuple[int, int, int, int]) -> str:
    """Write the one-hot row and column of each token, repeated to (W, N, A, 2n)."""
    cube = (side, side, side)
    eye = g.constant(f"places_{side}", np.eye(side, dtype=np.float32))
    rows = g.expand(g.reshape(eye, (side, 1, side)), cube)
    columns = g.expand(g.reshape(eye, (1, side, side)), cube)
    both = g.concat([rows, columns], axis=2)
    return g.expand(g.reshape(both, (1, side * side, 1, 2 * side)), shape)


def _after(convolution: nn.Module, size: Size) -> Size:
    """Return the size of a convolution's output."""
    operator = _operator(convolution)
    kernel = weight_of(convolution).shape[2:]
    height, width = (
        (length + 2 * padding - k) // stride + 1
        for length, padding, k, stride in zip(
            size, operator.padding, kernel, operator.stride, strict=True
        )
    )
    return height, width


def _operator(layer: nn.Module) -> Operator:
    return layer.operator if isinstance(layer, QuantizedLayer) else operator_of("", layer)
