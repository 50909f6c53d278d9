"""SAM's ViT as an ONNX graph, channels last, data moved as integers.

It computes what transformers' SamVisionEncoder does (tests hold them equal). Layer norm and
quantization come before the windows are cut: both work token by token, so windows are cut and
padded from int8. Queries, keys and values are three products: nothing is split in float32.

Shapes: B = 1 image, H W rows and columns, D width, A heads, n tokens on the side of a window,
N = n² tokens of a window, W windows, E side of the embeddings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from adalora_qat.export.graph import Graph
from adalora_qat.export.layers import quantize, quantized_constant
from adalora_qat.export.maps import (
    Map,
    Size,
    attend,
    attention,
    by_windows,
    cut,
    in_parts,
    perceptron,
    query_key_value,
    windows_at_a_time,
)
from adalora_qat.export.weights import stored_integers, weight_of
from adalora_qat.model.sam import VitImageEncoder
from adalora_qat.quantize.convert import DequantizedParameter

# Above this many tokens, the scores of all pairs are not kept in memory at once, but those of
# some heads and rows of queries.
_MANY_TOKENS = 1024
_HEADS_AT_A_TIME = 2
_ROWS_AT_A_TIME = 8
_TABLES = ("rel_pos_h", "rel_pos_w")


def encode_vit(g: Graph, encoder: VitImageEncoder, image: str, side: int) -> str:
    """Write a ViT: image (1, 3, S, S) → embeddings (E², D).

    Parameters
    ----------
    g, encoder : the graph that is written, and whose layers.
    image : (1, 3, S, S) float32, normalised.
    side : S, in pixels.
    """
    patches = Map(image, (side, side), 3, planes=True)
    with g.scope("patch_embed"):
        patches = patches.convolve(g, "projection", encoder.patch_embed)
    x, size, dim = patches.as_rows(g), patches.size, patches.width
    if encoder.pos_embed is not None:
        x = g.add(x, _positions(g, encoder, size[0] * size[1]))
    for index, layer in enumerate(encoder.layers):
        with g.scope(f"layers.{index}"):
            x = g.add(x, _vit_attention(g, layer, x, size))
            x = in_parts(g, x, (math.prod(size), dim), partial(_vit_perceptron, g, layer))
    out = Map(x, size, dim, planes=False)
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
        return g.add(x, perceptron(g, layer.mlp, ("lin1", "lin2"), hidden))


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
            cells = cut(g, quantize(g, module.qkv, normed), size, side, dim, blank)
        relative = None
        if module.use_rel_pos and side * side <= _MANY_TOKENS:
            windows = windows_at_a_time(size, side, dim)
            relative = _relative_positions(g, module, windows, side, dim)

        def attend_some(some: str) -> str:
            with g.scope("qkv"):
                rows = torch.arange(3 * dim).view(3, dim)
                query, key, value = query_key_value(g, module.qkv, some, rows, side)
            if module.use_rel_pos and relative is None:
                return _attention_by_rows(g, (query, key, value), module, side, dim)
            if relative is not None:
                query, key = _with_positions(g, (query, key), relative, heads, side, dim)
            return attention(g, query, key, value, heads, (dim // heads) ** -0.5)

        return by_windows(g, module, cells, (size, side, dim), attend_some)


def _attention_by_rows(
    g: Graph, parts: tuple[str, str, str], module: nn.Module, side: int, dim: int
) -> str:
    """Attend over the whole map, (1, N, D) each, a few heads and rows of queries at a time.

    The scores of all pairs of tokens, and their relative positions, would take most of the
    memory of the network; those of a few heads and rows stay in the cache.
    """
    heads, tokens = module.num_attention_heads, side * side
    some, depth = math.gcd(heads, _HEADS_AT_A_TIME), dim // heads
    rows = math.gcd(side, _ROWS_AT_A_TIME)
    queries = rows * side
    # What a query adds to the score of every key in a row, and in a column, of the map.
    by_row, by_column = (_offset_table(g, name, getattr(module, name), side) for name in _TABLES)
    # Heads apart: (A, N, d), the keys (A, d, N).
    query, value = (
        g.transpose(g.reshape(part, (tokens, heads, depth)), (1, 0, 2))
        for part in (parts[0], parts[2])
    )
    key = g.transpose(g.reshape(parts[1], (tokens, heads, depth)), (1, 2, 0))

    def attended(first: int, row: int) -> str:
        few, keys, values = (g.slice(part, 0, first, first + some) for part in (query, key, value))
        few = g.slice(few, 1, row * side, row * side + queries)
        across = g.matmul(g.reshape(few, (some, rows, side, 1, depth)), by_column)
        own = g.slice(by_row, 0, row, row + rows)
        down = g.matmul(g.reshape(few, (some, rows, side, depth)), own)
        bias = g.add(
            g.reshape(down, (some, queries, side, 1)), g.reshape(across, (some, queries, 1, side))
        )
        bias = g.reshape(bias, (some, queries, tokens))
        return attend(g, few, keys, values, depth**-0.5, bias)

    whole = [
        g.concat([attended(first, row) for row in range(0, side, rows)], axis=1)
        for first in range(0, heads, some)
    ]
    return g.reshape(g.transpose(g.concat(whole, axis=0), (1, 0, 2)), (1, tokens, dim))


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
    """Write the embedding of each offset times ``factor``: (n query, d, n key).

    Parameters
    ----------
    g, name : the graph that is written, and what its constant is called.
    table : (offsets, d), from −(n − 1) to n − 1; resized where it has another length.
    side : n.
    factor : undoes the scale of the queries that the table is multiplied by.
    """
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
