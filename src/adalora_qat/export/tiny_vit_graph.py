"""TinyViT as an ONNX graph, channels last, data moved as integers.

It computes what ``model.tiny_vit`` does (tests hold them equal), in the order that suits a CPU
runtime: layer norm and quantization come before the windows are cut, for both work token by
token, so windows are cut and padded from int8; and the convolutional stage, which holds the
largest maps of the network, is computed in strips.

Shapes: B = 1 image, H W rows and columns, D width, A heads, n tokens on the side of a window,
N = n² tokens of a window, W windows, E side of the embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from adalora_qat.export.graph import Graph
from adalora_qat.export.layers import GELU_FLOOR, quantize, quantized_constant
from adalora_qat.export.maps import (
    Map,
    Size,
    attention,
    by_windows,
    cut,
    in_parts,
    operator_of_layer,
    perceptron,
    query_key_value,
)
from adalora_qat.export.weights import weight_of
from adalora_qat.model.tiny_vit import Stage, TinyViT, TinyViTBlock
from adalora_qat.quantize.convert import QuantizedLayer

# More strips would need less memory, but compute more rows twice.
_STRIPS = 4


def encode_tiny_vit(g: Graph, encoder: TinyViT, image: str, side: int) -> str:
    """Write a TinyViT: image (1, 3, S, S) → embeddings (E², D).

    Parameters
    ----------
    g, encoder : the graph that is written, and whose layers.
    image : (1, 3, S, S) float32, normalised.
    side : S, in pixels.
    """
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


def _stem_in_strips(g: Graph, encoder: TinyViT, image: str, side: int) -> Map:
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
    step = math.prod(operator_of_layer(layer).stride[0] for layer in convolutions)
    height = side // step
    rows, strips = height // math.gcd(height, _STRIPS), []
    for first in range(0, height, rows):
        above, below = rows_seen(convolutions, first, first + rows)
        above, below = max(above // step * step, 0), min(-(-below // step) * step, side)
        some = image if below - above == side else g.slice(image, 2, above, below)
        x = _stem(g, encoder, Map(some, (below - above, side), 3, planes=True))
        start = first - above // step
        pixels = g.reshape(x.as_rows(g), (*x.size, x.width))
        strips.append(g.slice(pixels, 0, start, start + rows))
    whole = g.reshape(g.concat(strips, axis=0), (-1, x.width))
    return Map(whole, (height, x.size[1]), x.width, planes=False)


def rows_seen(convolutions: Sequence[nn.Module], start: int, stop: int) -> tuple[int, int]:
    """Return the range of input rows that the output rows from start to stop depend on."""
    for layer in reversed(convolutions):
        operator, kernel = operator_of_layer(layer), weight_of(layer).shape[2]
        step, padding = operator.stride[0], int(operator.padding[0])
        start, stop = start * step - padding, (stop - 1) * step - padding + kernel
    return start, stop


def _stem(g: Graph, encoder: TinyViT, x: Map) -> Map:
    with g.scope("patch_embed"):
        x = x.convolve(g, "seq.0.c", encoder.patch_embed)
        x = x.gelu(g, encoder.patch_embed.seq[2].c)
        x = x.convolve(g, "seq.2.c", encoder.patch_embed, GELU_FLOOR)
    with g.scope("layers.0"):
        return _stage(g, encoder.layers[0], x)


def _stage(g: Graph, stage: Stage, x: Map) -> Map:
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


def _inverted(g: Graph, block: nn.Module, x: Map) -> Map:
    """Write conv1 → GELU → conv2 → GELU → conv3."""
    x = x.convolve(g, "conv1.c", block).gelu(g)
    x = x.convolve(g, "conv2.c", block, GELU_FLOOR).gelu(g, block.conv3.c)
    return x.convolve(g, "conv3.c", block, GELU_FLOOR)


def _block(g: Graph, block: TinyViTBlock, x: Map) -> Map:
    rows = x.as_rows(g)
    with g.scope("attn"):
        rows = g.add(rows, _tiny_attention(g, block, rows, x.size))
    x = replace(x, value=rows, planes=False).convolve(g, "local_conv.c", block)

    def widened(rows: str) -> str:
        with g.scope("mlp"):
            with g.scope("norm"):
                hidden = g.layer_norm(block.mlp.norm, rows)
            return g.add(rows, perceptron(g, block.mlp, ("fc1", "fc2"), hidden))

    rows = in_parts(g, x.as_rows(g), (math.prod(x.size), x.width), widened)
    return replace(x, value=rows, planes=False)


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
        windows = cut(g, quantized, size, side, dim, blank)
    table = g.constant("attention_biases", module.attention_biases.view(heads, side, side))
    bias = _pair_bias(g, table, heads, side)
    # The checkpoint interleaves q, k, v by head: (A, 3, D/A).
    rows = torch.arange(3 * dim).view(heads, 3, -1).transpose(0, 1).flatten(1)

    def attend_some(some: str) -> str:
        with g.scope("qkv"):
            parts = query_key_value(g, module.qkv, some, rows, side)
        return attention(g, *parts, heads, (dim // heads) ** -0.5, bias)

    return by_windows(g, module, windows, (size, side, dim), attend_some)


def _pair_bias(g: Graph, table: str, heads: int, side: int) -> str:
    """Spread a bias for each offset, (A, n, n), over the pairs of tokens: (A, N, N)."""
    steps = np.arange(side)
    distance = np.abs(steps[:, None] - steps)
    # Twice a small look-up, by row and by column: an index of N² numbers would be a large part
    # of the file. The runtime computes it once, on loading.
    by_row = g.gather(table, distance, axis=1)
    pairs = g.transpose(g.gather(by_row, distance, axis=3), (0, 1, 3, 2, 4))
    return g.reshape(pairs, (heads, side * side, side * side))
