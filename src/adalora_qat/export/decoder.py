"""SAM's prompt encoder and mask decoder as an ONNX graph.

It computes what transformers' SamPromptEncoder and SamMaskDecoder do (tests hold them equal).
The number of prompts is dynamic; pixels and tokens are rows of matrices.

Shapes: N prompts of one image, T tokens of a prompt, E embedding side, D width, L = 4·E.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamAttention, SamFeedForward

from adalora_qat.export.graph import Graph
from adalora_qat.export.layers import GELU_FLOOR, convolve_transposed, linear
from adalora_qat.export.maps import attention
from adalora_qat.export.weights import float_weight, weight_of
from adalora_qat.model.sam import Segmenter


def no_mask(g: Graph, segmenter: Segmenter) -> str:
    """Return the dense embedding (1, D) that stands for "no previous mask"."""
    with g.scope("prompt_encoder.no_mask_embed"):
        return float_weight(g, segmenter.prompt_encoder.no_mask_embed)


def embed_points(g: Graph, segmenter: Segmenter, points: str, labels: str) -> str:
    """Embed points of the model frame, with labels, as tokens (N, T, D).

    Parameters
    ----------
    g, segmenter : the graph that is written, and whose layers.
    points : (1, N, T, 2) float32, (x, y) in pixels of the model frame.
    labels : (1, N, T) int64: 1 in the object, 0 outside it, 2 and 3 the corners of a box, −1 no
        point.
    """
    encoder = segmenter.prompt_encoder
    with g.scope("prompt_encoder"):
        minus_one = g.constant("minus_one", np.asarray([-1], dtype=np.int64))
        flat = g.squeeze(points, 0)
        with g.scope("shared_embedding"):
            tokens = _fourier(g, segmenter, _to_unit(g, segmenter, flat))
        kinds = g.node("Unsqueeze", g.squeeze(labels, 0), minus_one)
        # A missing point has no position, only its own embedding.
        absent = g.node("Equal", kinds, minus_one)
        zero = g.constant("zero", 0.0)
        tokens = g.node("Where", absent, zero, tokens)
        rows = [(f"point_embed.{label}", label) for label in range(4)]
        for name, label in [*rows, ("not_a_point_embed", -1)]:
            with g.scope(name):
                is_kind = g.node("Equal", kinds, g.constant("label", np.int64(label)))
                weight = float_weight(g, encoder.get_submodule(name))
                tokens = g.add(tokens, g.node("Where", is_kind, weight, zero))
        return tokens


def name_structures(
    g: Graph, segmenter: Segmenter, prompts: str, labels: str, structures: str
) -> str:
    """Add learned prompts of structures to the corners of boxes, as ``model.sam.StructurePrompts``.

    Parameters
    ----------
    g, segmenter : the graph that is written, and whose prompts.
    prompts : tokens (N, T, D).
    labels : (1, N, T) int64, as in ``embed_points``.
    structures : (1, N) int64: which structure each mask shall be, −1 for none.
    """
    with g.scope("structure_prompts"):
        tokens = segmenter.structure_prompts.tokens.detach()
        # Row 0 stands for no structure; then each structure's two corners.
        corners = g.reshape(g.constant("tokens", tokens), (-1, tokens.shape[-1]))
        table = g.concat([g.constant("none", torch.zeros(1, tokens.shape[-1])), corners], axis=0)
        kinds, named = g.squeeze(labels, 0), g.transpose(structures, (1, 0))
        two, one = (g.constant(name, np.int64(n)) for name, n in (("two", 2), ("one", 1)))
        row = g.node("Sub", g.add(g.multiply(named, two), kinds), one)
        is_corner = g.node("Greater", kinds, one)
        is_named = g.node("Greater", named, g.constant("unnamed", np.int64(-1)))
        zero = g.constant("zero", np.int64(0))
        row = g.node("Where", g.node("And", is_corner, is_named), row, zero)
        return g.add(prompts, g.node("Gather", table, row, axis=0))


def decode(g: Graph, segmenter: Segmenter, pixels: str, prompts: str) -> tuple[str, str]:
    """Decode embeddings and prompts into masks.

    Parameters
    ----------
    g, segmenter : the graph that is written, and whose layers.
    pixels : embeddings (E², D), dense prompt added.
    prompts : tokens (N, T, D).

    Returns
    -------
    logits (1, N, L, L) and predicted IoU (1, N).
    """
    decoder, side = segmenter.mask_decoder, segmenter.variant.embedding_side
    width = weight_of(decoder.iou_token).shape[1]
    with g.scope("mask_decoder"):
        tokens, repeated = _start(g, decoder, pixels, prompts, (side * side, width))
        with g.scope("transformer"):
            tokens, repeated = _transform(g, segmenter, tokens, repeated)
        upscaled = _upscale(g, decoder, repeated, side)
        weights = _mask_weights(g, decoder, tokens, width)
        # The first mask is the one for an unambiguous prompt.
        masks = g.slice(g.matmul(upscaled, weights), 2, 0, 1)
        with g.scope("iou_prediction_head"):
            first = g.reshape(g.slice(tokens, 1, 0, 1), (-1, width))
            iou = _feed_forward(g, decoder.iou_prediction_head, first)
        logits = g.reshape(masks, (1, -1, 4 * side, 4 * side))
        return logits, g.reshape(g.slice(iou, 1, 0, 1), (1, -1))


def _to_unit(g: Graph, segmenter: Segmenter, points: str) -> str:
    """Bring points (…, 2) of the model frame into the unit square."""
    # Half a pixel: SAM's points lie in the middle of pixels.
    shifted = g.add(points, g.constant("half_pixel", 0.5))
    return g.node("Div", shifted, g.constant("side", float(segmenter.variant.frame.side)))


def _fourier(g: Graph, segmenter: Segmenter, unit: str) -> str:
    """Encode points (…, 2) of the unit square by random Fourier features: (…, D)."""
    table = segmenter.prompt_encoder.shared_embedding.positional_embedding
    centred = g.node("Sub", g.multiply(unit, g.constant("two", 2.0)), g.constant("one", 1.0))
    waves = g.matmul(centred, g.constant("positional_embedding", table))
    waves = g.multiply(waves, g.constant("two_pi", 2 * math.pi))
    return g.concat([g.node("Sin", waves), g.node("Cos", waves)], axis=-1)


def _start(
    g: Graph, decoder: nn.Module, pixels: str, prompts: str, shape: tuple[int, int]
) -> tuple[str, str]:
    """Put the output tokens before the prompts (N, T, D), and repeat the pixels N times."""
    rows = []
    for name in ("iou_token", "mask_tokens"):
        with g.scope(name):
            rows.append(float_weight(g, decoder.get_submodule(name)))
    output = g.concat(rows, axis=0)
    count = g.node("Shape", prompts, start=0, end=1)

    def repeated(value: str, size: tuple[int, int]) -> str:
        sizes = g.constant(f"sizes_{size[0]}_{size[1]}", np.asarray(size, dtype=np.int64))
        return g.node("Expand", value, g.concat([count, sizes], axis=0))

    number = 1 + decoder.num_mask_tokens
    tokens = g.concat([repeated(output, (number, shape[1])), prompts], axis=1)
    return tokens, repeated(pixels, shape)


def _transform(g: Graph, segmenter: Segmenter, prompts: str, pixels: str) -> tuple[str, str]:
    """Run the two-way transformer on prompts (N, T, D) and pixels (N, E², D)."""
    transformer = segmenter.mask_decoder.transformer
    grid, tokens = _grid(g, segmenter), prompts
    for index, layer in enumerate(transformer.layers):
        with g.scope(f"layers.{index}"):
            tokens = _attend_self(g, layer, tokens, prompts)
            query, key = g.add(tokens, prompts), g.add(pixels, grid)
            attended = _attention(g, layer, "cross_attn_token_to_image", query, key, pixels)
            tokens = _norm(g, layer, "layer_norm2", g.add(tokens, attended))
            tokens = _norm(g, layer, "layer_norm3", g.add(tokens, _mlp(g, layer.mlp, tokens)))
            query = g.add(tokens, prompts)
            attended = _attention(g, layer, "cross_attn_image_to_token", key, query, tokens)
            pixels = _norm(g, layer, "layer_norm4", g.add(pixels, attended))
    query, key = g.add(tokens, prompts), g.add(pixels, grid)
    attended = _attention(g, transformer, "final_attn_token_to_image", query, key, pixels)
    return _norm(g, transformer, "layer_norm_final_attn", g.add(tokens, attended)), pixels


def _attend_self(g: Graph, layer: nn.Module, tokens: str, prompts: str) -> str:
    if layer.skip_first_layer_pe:
        attended = _attention(g, layer, "self_attn", tokens, tokens, tokens)
        return _norm(g, layer, "layer_norm1", attended)
    query = g.add(tokens, prompts)
    attended = _attention(g, layer, "self_attn", query, query, tokens)
    return _norm(g, layer, "layer_norm1", g.add(tokens, attended))


def _attention(g: Graph, parent: nn.Module, name: str, query: str, key: str, value: str) -> str:
    """Attend: query (N, T, D), key and value (N, M, D) → (N, T, D)."""
    module: SamAttention = parent.get_submodule(name)
    width, heads = weight_of(module.q_proj).shape[0], module.num_attention_heads
    with g.scope(name):
        # Gemm wants a matrix: how many rows belong to one prompt is kept from the input.
        parts = [
            _rows(g, module, projection, x)
            for projection, x in (("q_proj", query), ("k_proj", key), ("v_proj", value))
        ]
        attended = attention(g, *parts, heads, (width // heads) ** -0.5)
        return _rows(g, module, "out_proj", attended)


def _rows(g: Graph, parent: nn.Module, name: str, x: str, *, relu: bool = False) -> str:
    """Apply a linear layer to (N, T, K) as to N·T rows."""
    layer = parent.get_submodule(name)
    outputs, inputs = weight_of(layer).shape
    with g.scope(name):
        shape = g.node("Shape", x, start=0, end=2)
        y = linear(g, layer, g.reshape(x, (-1, inputs)), relu=relu)
        last = g.constant("outputs", np.asarray([outputs], dtype=np.int64))
        return g.node("Reshape", y, g.concat([shape, last], axis=0))


def _mlp(g: Graph, mlp: nn.Module, x: str) -> str:
    with g.scope("mlp"):
        return _rows(g, mlp, "lin2", _rows(g, mlp, "lin1", x), relu=True)


def _norm(g: Graph, parent: nn.Module, name: str, x: str) -> str:
    with g.scope(name):
        return g.layer_norm(parent.get_submodule(name), x)


def _grid(g: Graph, segmenter: Segmenter) -> str:
    """Encode the centres of the embedding's pixels: (E², D)."""
    side = segmenter.variant.embedding_side
    centres = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    points: Tensor = torch.stack([x, y], dim=-1).view(-1, 2)
    return _fourier(g, segmenter, g.constant("pixel_centres", points))


def _upscale(g: Graph, decoder: nn.Module, pixels: str, side: int) -> str:
    """Upscale pixels (N, E², D) four times: (N, L², D/8)."""
    width = weight_of(decoder.upscale_conv1).shape[0]
    with g.scope("upscale_conv1"):
        x = g.reshape(pixels, (-1, width))
        x = convolve_transposed(g, decoder.upscale_conv1, x, (side, side))
    x = g.gelu(_norm(g, decoder, "upscale_layer_norm", x))
    with g.scope("upscale_conv2"):
        layer, size = decoder.upscale_conv2, (2 * side, 2 * side)
        x = g.gelu(convolve_transposed(g, layer, x, size, GELU_FLOOR))
    return g.reshape(x, (-1, 16 * side * side, weight_of(layer).shape[1]))


def _mask_weights(g: Graph, decoder: nn.Module, tokens: str, width: int) -> str:
    """Turn the mask tokens into the weights of the masks: (N, D/8, masks)."""
    weights = []
    for index, network in enumerate(decoder.output_hypernetworks_mlps):
        with g.scope(f"output_hypernetworks_mlps.{index}"):
            token = g.reshape(g.slice(tokens, 1, 1 + index, 2 + index), (-1, width))
            outputs = weight_of(network.proj_out).shape[0]
            weights.append(g.reshape(_feed_forward(g, network, token), (-1, outputs, 1)))
    return g.concat(weights, axis=2)


def _feed_forward(g: Graph, network: SamFeedForward, x: str) -> str:
    """Apply a small MLP with ReLU between its layers to (N, D)."""
    names = ["proj_in", *(f"layers.{index}" for index in range(len(network.layers))), "proj_out"]
    for index, name in enumerate(names):
        with g.scope(name):
            x = linear(g, network.get_submodule(name), x, relu=index > 0)
    return x
