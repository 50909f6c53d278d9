"""Table 2's columns: counted from the model itself, and beside what the paper prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from adalora_qat.adapt.inject import Adapter, inject
from adalora_qat.config import RunConfig
from adalora_qat.model.sam import random_segmenter
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.quantize.policy import load_policy, quantizable
from adalora_qat.report.paper import ABLATIONS, MODELS, SAME_SHAPE, recipe_row
from adalora_qat.study.size import parameter_count, weight_bytes
from adalora_qat.train.selection import choose_trainable_stage1


@dataclass(frozen=True)
class PaperColumn:
    """One column of the table; None where the paper prints nothing."""

    column: str
    start: float
    pruned: float
    paper: float | None


@dataclass(frozen=True)
class BesidePaper:
    """A recipe's counts beside a row of the paper.

    Attributes
    ----------
    paper_name : the row's name in the paper, or None if it has none for this recipe.
    rows : the columns.
    differences : why they differ, a sentence each.
    """

    paper_name: str | None
    rows: tuple[PaperColumn, ...]
    differences: tuple[str, ...]


def count_parameters(config: RunConfig) -> dict[str, Any]:
    """Count parameters by part: total, trainable at the start, trainable after pruning.

    Returns
    -------
    ``parts`` (part → total, start, pruned), ``total`` (the same, summed), ``percent`` and
    ``reduction`` (of what trains, at the start and after pruning, against the whole model),
    ``per_rank`` (parameters that one mean rank costs over all adapted layers), ``bytes`` by
    precision, and ``notes``.
    """
    parts, per_rank = count_parts(config)
    total = {key: sum(part[key] for part in parts.values()) for key in ("total", "start", "pruned")}
    # ΔW is merged into W for deployment: the model itself is no larger for its adapters.
    whole = total["total"] = total["total"] - parts.get("adapters", {}).get("total", 0)
    return {
        "parts": parts,
        "total": total,
        "percent": {key: 100 * total[key] / whole for key in ("start", "pruned")},
        "reduction": {key: whole / max(1, total[key]) for key in ("start", "pruned")},
        "per_rank": per_rank,
        "bytes": weight_bytes(config),
        "notes": _notes(config),
    }


def count_parts(
    config: RunConfig, kept: int | None = None
) -> tuple[dict[str, dict[str, int]], int]:
    """Count what stage 1 trains, part by part.

    The weights are random: counting needs their shapes only.

    Parameters
    ----------
    kept : parameters that a run's adapters have after pruning; None counts the last rank of the
        schedule in every layer.

    Returns
    -------
    Part → total, start, pruned, the adapters a part of their own; and the parameters that one
    mean rank costs over all adapted layers.
    """
    segmenter = random_segmenter(config.model.variant, config.seed, side=config.model.side)
    base = {name: parameter_count(module) for name, module in segmenter.named_children()}
    found: dict[str, Adapter] = {}
    if config.stage1.encoder == "adapters":
        found = inject(segmenter.image_encoder, config.adapt, config.seed)
    choose_trainable_stage1(segmenter, config)
    start = {name: _trainable(module) for name, module in segmenter.named_children()}
    at_start = adapter_parameters(found)
    parts = {n: {"total": base[n], "start": start[n], "pruned": start[n]} for n in base}
    if found:
        last = adapter_parameters(found, _last_rank(config)) if kept is None else kept
        parts["image_encoder"]["start"] -= at_start
        parts["image_encoder"]["pruned"] -= at_start
        parts["adapters"] = {"total": last, "start": at_start, "pruned": last}
    return parts, adapter_parameters(found, 1)


def adapter_parameters(found: Mapping[str, Adapter], rank: int | None = None) -> int:
    """Return how many parameters adapters have, at their own ranks or all at one."""
    # Λ adds one value a rank to AdaLoRA's two vectors.
    return sum(
        (a.rank if rank is None else rank)
        * (a.in_features + a.out_features + (1 if hasattr(a, "lam") else 0))
        for a in found.values()
    )


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
            "parameters": parameter_count(modules[name])
            if name in modules
            else parameters[name].numel(),
            "numerics": str(numerics),
        }
        for name, numerics in assigned.items()
    ]


def beside_the_paper(counts: Mapping[str, Any], config: RunConfig) -> BesidePaper:
    """Set counts (``count_parameters``) beside the paper's row.

    Every explanation is arithmetic on the two, none is a guess about how the paper was made.
    """
    comparable = config.baselines is not None or config.model.variant in SAME_SHAPE
    key = recipe_row(config) if comparable else None
    model, ablation = MODELS.get(key or ""), ABLATIONS.get(key or "")
    total, percent, reduction = counts["total"], counts["percent"], counts["reduction"]
    millions = {name: total[name] / 1e6 for name in ("total", "start", "pruned")}
    published = (
        model.total_millions if model else None,
        model.trainable_millions if model else None,
        model.reduction if model else None,
        ablation.train_percent if ablation else None,
    )
    counted = (
        ("total (M)", millions["total"], millions["total"]),
        ("trainable (M)", millions["start"], millions["pruned"]),
        ("reduction (×)", reduction["start"], reduction["pruned"]),
        ("trainable (%)", percent["start"], percent["pruned"]),
    )
    rows = tuple(
        PaperColumn(*ours, theirs) for ours, theirs in zip(counted, published, strict=True)
    )
    name = model.name if model else ablation.method if ablation else None
    if key is None:
        return BesidePaper(None, rows, (_no_row(config),))
    return BesidePaper(name, rows, tuple(_differences(counts, key)))


def _no_row(config: RunConfig) -> str:
    if config.baselines is not None and config.baselines.architecture not in MODELS:
        return f"the paper has no {config.baselines.architecture}"
    if config.baselines is None and config.model.variant not in SAME_SHAPE:
        return f"the paper counts SAM ViT-B; {config.model.variant} is another model"
    return "the paper prints no parameter count for this recipe"


def _differences(counts: Mapping[str, Any], key: str) -> list[str]:
    if "image_encoder" not in counts["parts"]:
        # A baseline: the paper names no backbone, only how many parameters there are.
        return []
    encoder = counts["parts"]["image_encoder"]["total"]
    decoder = counts["parts"]["mask_decoder"]["total"]
    whole, start, pruned = (counts["total"][name] for name in ("total", "start", "pruned"))
    said = [
        f"total: the paper's 89.7 M is the image encoder alone ({encoder:,}); the whole model, "
        f"with mask decoder ({decoder:,}) and prompt encoder, has {whole:,}",
        f"by the paper's total, ours trains {100 * start / encoder:.1f} % "
        f"({encoder / start:.1f}×) at the start and {100 * pruned / encoder:.1f} % "
        f"({encoder / pruned:.1f}×) after pruning",
    ]
    published = MODELS[key].trainable_millions if key in MODELS else None
    if key == "decoder" and published is not None:
        said.append(
            f"trainable: the paper's decoder has {published} M; the published mask decoder, with "
            f"its four mask heads and its IoU head, has {decoder / 1e6:.2f} M, all of which trains"
        )
    elif published is not None:
        left, each = 1e6 * published - decoder, counts["per_rank"]
        said.append(
            f"trainable: the paper's {published} M less the decoder's {decoder / 1e6:.2f} M leave "
            f"{left / 1e6:.2f} M for adapters, on these layers a mean rank of {left / each:.1f}; "
            f"ours is {(start - decoder) / each:.0f} at the start and "
            f"{(pruned - decoder) / each:.0f} after pruning"
        )
    if key == "lora":
        wanted = ABLATIONS[key].train_percent / 100 * encoder
        said.append(
            f"trainable: rank 8 on these layers is {start:,} parameters; the paper's "
            f"{ABLATIONS[key].train_percent} % would be {wanted / 1e6:.2f} M, a rank of "
            f"{wanted / counts['per_rank']:.0f} on them"
        )
    return said


def _notes(config: RunConfig) -> list[str]:
    if config.stage1.encoder != "adapters" or config.adapt.method != "adalora":
        return []
    return [
        f"after pruning: counted at rank {_last_rank(config)} in every layer; one budget serves "
        "all layers, so a run's own count depends on where its ranks stay"
    ]


def _last_rank(config: RunConfig) -> int:
    pruned = config.adapt.method == "adalora" and bool(config.adapt.schedule)
    return config.adapt.schedule[-1].rank if pruned else config.adapt.rank


def _trainable(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
