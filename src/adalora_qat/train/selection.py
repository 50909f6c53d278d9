"""What trains in each stage, and at which learning rate: read from the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from adalora_qat.config import RunConfig
from adalora_qat.errors import TrainingError
from adalora_qat.model.sam import Segmenter
from adalora_qat.quantize.prepare import learn, quantized_layers, refresh

ADAPTER_TENSORS = frozenset({"P", "lam", "Q", "A", "B"})
# Part of a segmenter → what stage2.train calls it; the prompt encoder never trains.
PARTS = {"image_encoder": "encoder", "mask_decoder": "decoder"}


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that train, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def choose_trainable_stage1(segmenter: Segmenter, config: RunConfig) -> None:
    """Set ``requires_grad`` as the recipe says; the prompt encoder never trains.

    Raises
    ------
    TrainingError
        If nothing is left to train.
    """
    segmenter.requires_grad_(False)
    if config.stage1.encoder == "full":
        segmenter.image_encoder.requires_grad_(True)
    elif config.stage1.encoder == "adapters":
        for name, parameter in segmenter.image_encoder.named_parameters():
            parameter.requires_grad_(name.rpartition(".")[2] in ADAPTER_TENSORS)
    if config.stage1.decoder == "full":
        segmenter.mask_decoder.requires_grad_(True)
    if segmenter.structures:
        segmenter.structure_prompts.requires_grad_(True)
    if not trainable(segmenter):
        raise TrainingError("nothing trains: stage1.encoder and stage1.decoder are both frozen")


def choose_trainable_stage2(segmenter: Segmenter, config: RunConfig) -> None:
    """Set ``requires_grad`` for stage 2: Λ, and what else ``stage2.train`` names.

    Raises
    ------
    TrainingError
        If nothing is left to train although there are epochs to train.
    """
    segmenter.requires_grad_(False)
    chosen = config.stage2.train
    for name, parameter in segmenter.named_parameters():
        leaf = name.rpartition(".")[2]
        if leaf in ADAPTER_TENSORS:
            parameter.requires_grad_("adapters" in chosen or (leaf == "lam" and "lambda" in chosen))
        else:
            parameter.requires_grad_(PARTS.get(name.partition(".")[0]) in chosen)
    if quantized_layers(segmenter):
        refresh(segmenter)
    if "scales" in config.stage2.train:
        learn(segmenter)
    if config.stage2.epochs and not trainable(segmenter):
        raise TrainingError(
            f"nothing trains in stage 2 with stage2.train={list(chosen)}: there is no Λ without "
            "AdaLoRA adapters; set stage2.train=[decoder] or stage2.epochs=0"
        )


def parameter_groups(segmenter: Segmenter, config: RunConfig) -> list[dict[str, Any]]:
    """Return AdamW's groups of stage 1: encoder and decoder, with decay and without."""
    decay = config.stage1.weight_decay
    groups = [
        group
        for module, lr in (
            (segmenter.image_encoder, config.stage1.lr_encoder),
            (segmenter.mask_decoder, config.stage1.lr_decoder),
        )
        for group in _decayed(trainable(module), lr, decay)
    ]
    if segmenter.structures:
        # They start at zero, not from pretrained weights: they have further to go.
        prompts = list(segmenter.structure_prompts.parameters())
        groups.append({"params": prompts, "lr": config.stage1.lr_structures, "weight_decay": 0.0})
    return groups


def parameter_groups_stage2(segmenter: Segmenter, config: RunConfig) -> list[dict[str, Any]]:
    """Return AdamW's groups of stage 2: Λ, scales and adapters undecayed, weights as it is set."""
    kinds: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in trainable(segmenter).items():
        kinds.setdefault(_kind_of(name), {})[name] = parameter
    stage2 = config.stage2
    undecayed = {
        "lambda": stage2.lr_lambda,
        "scales": stage2.lr_scales,
        "adapters": stage2.lr_adapters,
    }
    groups = [
        *(
            {"params": list(kinds.get(kind, {}).values()), "lr": lr, "weight_decay": 0.0}
            for kind, lr in undecayed.items()
        ),
        *_decayed(kinds.get("encoder", {}), stage2.lr_encoder, stage2.weight_decay),
        *_decayed(kinds.get("decoder", {}), stage2.lr_decoder, stage2.weight_decay),
    ]
    return [group for group in groups if group["params"]]


def _kind_of(name: str) -> str:
    """Return which learning rate of stage 2 a trainable parameter has."""
    leaf = name.rpartition(".")[2]
    if leaf in ADAPTER_TENSORS:
        return "lambda" if leaf == "lam" else "adapters"
    return "scales" if leaf == "scale" else PARTS.get(name.partition(".")[0], "decoder")


def _decayed(
    parameters: Mapping[str, nn.Parameter], lr: float, decay: float
) -> list[dict[str, Any]]:
    # Decay pulls matrices towards zero; norms, biases and Λ are not to be pulled.
    matrices = [p for p in parameters.values() if p.ndim > 1]
    vectors = [p for p in parameters.values() if p.ndim <= 1]
    groups = [
        {"params": matrices, "lr": lr, "weight_decay": decay},
        {"params": vectors, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
