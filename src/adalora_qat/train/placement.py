"""A model on its device: memory layout, attention kernel, recomputation, compilation."""

from __future__ import annotations

import torch

from adalora_qat.config import RunConfig
from adalora_qat.errors import ConfigError
from adalora_qat.model.fast_attention import install_best
from adalora_qat.model.sam import Segmenter, VitImageEncoder
from adalora_qat.model.tiny_vit import TRITON, TinyViT, fuse_windows
from adalora_qat.train.objective import Objective
from adalora_qat.train.processes import autocast_dtype


def place(segmenter: Segmenter, config: RunConfig, device: torch.device) -> str:
    """Put a model where it trains, as the recipe asks; return how its encoder attends."""
    segmenter.to(device)
    if config.gradient_checkpointing:
        recompute_activations(segmenter)
    if device.type == "cuda":
        segmenter.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    kernel, dtype = None, autocast_dtype(config.precision)
    if config.attention == "auto":
        kernel = install_best(segmenter, device, dtype)
    if isinstance(segmenter.image_encoder, TinyViT):
        fused = config.attention == "auto" and TRITON
        fuse_windows(segmenter.image_encoder, fused)
        served = fused and device.type == "cuda" and dtype != torch.float32
        kernel = "triton" if served else None
    return kernel or "sdpa"


def compile_mode(objective: Objective, device: torch.device, processes: int) -> str:
    """Return the mode of ``torch.compile`` for an objective.

    CUDA graphs ("reduce-overhead") where launching takes longer than computing: TinyViT, and
    any decoder on kept embeddings. Not with several processes or accumulated gradients, whose
    gradients live on from one graph to the next.
    """
    if processes > 1:
        # DDP's hooks would cut the graph at every bucket, of which these few gradients need none.
        torch._dynamo.config.optimize_ddp = False
    short = isinstance(objective.segmenter.image_encoder, TinyViT) or objective.entry == "embedding"
    alone = device.type == "cuda" and processes == 1 and objective.accumulate == 1
    return "reduce-overhead" if short and alone else "default"


def recompute_activations(segmenter: Segmenter) -> None:
    """Let a ViT encoder keep the inputs of its layers only, and compute the rest again.

    Raises
    ------
    ConfigError
        If the encoder is no ViT.
    """
    if not isinstance(segmenter.image_encoder, VitImageEncoder):
        raise ConfigError(
            f"gradient_checkpointing is for the ViT encoders of SAM, not for "
            f"{segmenter.variant.name}; set gradient_checkpointing=false, and stage1.accumulate "
            "to save memory"
        )
    segmenter.image_encoder.recompute = True
