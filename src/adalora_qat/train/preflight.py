"""Whether a recipe can run to its end, found out before its first step."""

from __future__ import annotations

import torch

from adalora_qat.adapt.inject import inject
from adalora_qat.config import RunConfig
from adalora_qat.model.sam import Segmenter, variant
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.quantize.compensate import compensable
from adalora_qat.quantize.policy import load_policy
from adalora_qat.quantize.prepare import prepare
from adalora_qat.train.placement import recompute_activations
from adalora_qat.train.selection import choose_trainable_stage1, choose_trainable_stage2


def check_recipe(config: RunConfig) -> None:
    """Go through both stages of a recipe on a model without weights: names and shapes.

    Raises
    ------
    ConfigError
        What a stage would have raised: an unknown variant or policy, a pattern that matches
        nothing, a rank that does not fit, nothing to train.
    """
    if config.baselines is not None:
        return
    policy = load_policy(config.quantize.policy)
    with torch.device("meta"):
        segmenter = Segmenter(variant(config.model.variant).at_side(config.model.side))
    # Memory that nothing has been written to costs nothing.
    segmenter.to_empty(device="cpu")
    if config.gradient_checkpointing:
        recompute_activations(segmenter)
    if config.stage1.encoder == "adapters":
        inject(segmenter.image_encoder, config.adapt, config.seed)
    choose_trainable_stage1(segmenter, config)
    if policy.rows:
        fold_batch_norms(segmenter)
        prepare(segmenter, policy, config.quantize)
    if config.quantize.compensate != "none":
        # The branches, which stage 2 would train, come with the calibration.
        compensable(segmenter, config.quantize)
    elif config.stage2.epochs:
        choose_trainable_stage2(segmenter, config)
