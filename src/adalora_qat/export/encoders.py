"""The image encoder of a segmenter as an ONNX graph."""

from __future__ import annotations

from adalora_qat.export.graph import Graph
from adalora_qat.export.tiny_vit_graph import encode_tiny_vit
from adalora_qat.export.vit_graph import encode_vit
from adalora_qat.model.sam import Segmenter
from adalora_qat.model.tiny_vit import TinyViT


def encode(g: Graph, segmenter: Segmenter, image: str) -> str:
    """Write the encoder of ``segmenter``: image (1, 3, S, S) → embeddings (E², D)."""
    encoder, side = segmenter.image_encoder, segmenter.variant.frame.side
    with g.scope("image_encoder"):
        if isinstance(encoder, TinyViT):
            return encode_tiny_vit(g, encoder, image, side)
        return encode_vit(g, encoder, image, side)
