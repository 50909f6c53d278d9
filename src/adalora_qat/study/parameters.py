"""Table 2's columns, counted from the model itself."""

from __future__ import annotations

from typing import Any

from torch import nn

from adalora_qat.adapt.inject import Adapter, adapters, inject
from adalora_qat.config import RunConfig
from adalora_qat.model.sam import Segmenter, random_segmenter
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.quantize.policy import load_policy, quantizable
from adalora_qat.train.selection import choose_trainable_stage1


def count_parameters(config: RunConfig) -> dict[str, Any]:
    """Count parameters by part: total, trainable at the start, trainable after pruning.

    The weights are random: counting needs their shapes only.

    Returns
    -------
    ``parts`` (part → total, start, pruned), ``total`` (the same, summed), ``percent`` and
    ``reduction`` (of what trains, at the start and after pruning, against the whole model),
    ``per_rank`` (parameters that one mean rank costs over all adapted layers), ``bytes`` by
    precision, and ``notes``.
    """
    segmenter = random_segmenter(config.model.variant, config.seed, side=config.model.side)
    base = {name: _size(module) for name, module in segmenter.named_children()}
    found = {}
    if config.stage1.encoder == "adapters":
        found = inject(segmenter.image_encoder, config.adapt, config.seed)
    choose_trainable_stage1(segmenter, config)
    start = {name: _trainable(module) for name, module in segmenter.named_children()}
    at_start = sum(_adapter_size(a, a.rank) for a in found.values())
    rank = _last_rank(config)
    pruned = sum(_adapter_size(a, rank) for a in found.values())
    parts = {
        name: {"total": base[name], "start": start[name], "pruned": start[name]} for name in base
    }
    if found:
        parts["image_encoder"]["start"] -= at_start
        parts["image_encoder"]["pruned"] -= at_start
        parts["adapters"] = {"total": pruned, "start": at_start, "pruned": pruned}
    total = {key: sum(part[key] for part in parts.values()) for key in ("total", "start", "pruned")}
    # ΔW is merged into W for deployment: the model itself is no larger for its adapters.
    total["total"] = sum(base.values())
    whole = total["total"]
    return {
        "parts": parts,
        "total": total,
        "percent": {key: 100 * total[key] / whole for key in ("start", "pruned")},
        "reduction": {key: whole / max(1, total[key]) for key in ("start", "pruned")},
        "per_rank": sum(_adapter_size(adapter, 1) for adapter in found.values()),
        "bytes": weight_bytes(config),
        "notes": _notes(config, segmenter, rank),
    }


def weight_bytes(config: RunConfig) -> dict[str, int]:
    """Return the bytes of the whole model's parameters by precision, adapters merged.

    Float32, bfloat16, and the recipe's policy: integers for the weights that it quantizes,
    float32 for all else. Scales and file headers are not in it; ``size`` weighs real files.
    """
    segmenter = random_segmenter(config.model.variant, config.seed, side=config.model.side)
    whole = _size(segmenter)
    found = {"float32": 4 * whole, "bfloat16": 2 * whole}
    policy = load_policy(config.quantize.policy)
    if not policy.rows:
        return found
    fold_batch_norms(segmenter)
    parameters = dict(segmenter.named_parameters())
    saved = 0.0
    for name, numerics in policy.with_options(config.quantize).assign(segmenter).items():
        if numerics.weight is not None:
            weight = parameters[name if name in parameters else f"{name}.weight"]
            saved += weight.numel() * (4 - numerics.weight.bits / 8)
    return {**found, f"policy {config.quantize.policy}": round(4 * _size(segmenter) - saved)}


def layer_numerics(config: RunConfig, policy: str) -> list[dict[str, Any]]:
    """Return what a policy gives each quantizable layer: name, kind, parameters, numerics."""
    segmenter = random_segmenter(config.model.variant, config.seed, side=config.model.side)
    if config.stage1.encoder == "adapters":
        inject(segmenter.image_encoder, config.adapt, config.seed)
    fold_batch_norms(segmenter)
    assigned = load_policy(policy).with_options(config.quantize).assign(segmenter)
    kinds = dict(quantizable(segmenter))
    modules, parameters = dict(segmenter.named_modules()), dict(segmenter.named_parameters())
    return [
        {
            "name": name,
            "kind": kinds[name],
            "parameters": _size(modules[name]) if name in modules else parameters[name].numel(),
            "numerics": str(numerics),
        }
        for name, numerics in assigned.items()
    ]


def _notes(config: RunConfig, segmenter: Segmenter, rank: int) -> list[str]:
    notes = []
    if adapters(segmenter.image_encoder) and config.adapt.method == "adalora":
        notes.append(
            f"after pruning: counted at rank {rank} in every layer; one budget serves all layers, "
            "so a run's own count depends on where its ranks stay"
        )
    return notes


def _last_rank(config: RunConfig) -> int:
    pruned = config.adapt.method == "adalora" and bool(config.adapt.schedule)
    return config.adapt.schedule[-1].rank if pruned else config.adapt.rank


def _adapter_size(adapter: Adapter, rank: int) -> int:
    per_rank = adapter.in_features + adapter.out_features
    # Λ adds one value a rank to AdaLoRA's two vectors.
    return rank * (per_rank + (1 if hasattr(adapter, "lam") else 0))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _trainable(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
