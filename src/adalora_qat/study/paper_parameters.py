"""Table 2's columns: what a recipe's model counts beside what the paper prints.

The paper's figures are data (``paper.py``); ours come in as counted. Every explanation is
arithmetic on the two, none is a guess about how the paper was made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adalora_qat.config import RunConfig
from adalora_qat.report.paper import ABLATIONS, MODELS

# The paper's model, and the one that shares its architecture.
_SAME_SHAPE = frozenset({"sam-vit-base", "medsam"})


@dataclass(frozen=True)
class Beside:
    """One column of the table; None where the paper prints nothing."""

    column: str
    start: float
    pruned: float
    paper: float | None


@dataclass(frozen=True)
class Comparison:
    """A recipe's counts beside a row of the paper.

    Attributes
    ----------
    paper_name : the row's name in the paper, or None if it has none for this recipe.
    rows : the columns.
    differences : why they differ, a sentence each.
    """

    paper_name: str | None
    rows: tuple[Beside, ...]
    differences: tuple[str, ...]


def beside_the_paper(counts: Mapping[str, Any], config: RunConfig) -> Comparison:
    """Set counts (``study.parameters.count_parameters``) beside the paper's row."""
    key = published_row(config)
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
    rows = tuple(Beside(*ours, theirs) for ours, theirs in zip(counted, published, strict=True))
    name = model.name if model else ablation.method if ablation else None
    if key is None:
        return Comparison(None, rows, (_no_row(config),))
    return Comparison(name, rows, tuple(_differences(counts, key)))


def published_row(config: RunConfig) -> str | None:
    """Return the key of the paper's row (``paper.MODELS``, ``ABLATIONS``) that a recipe repeats."""
    if config.baselines is not None:
        return config.baselines.architecture if config.baselines.architecture in MODELS else None
    if config.model.variant not in _SAME_SHAPE:
        return None
    encoder, decoder = config.stage1.encoder, config.stage1.decoder
    if (encoder, decoder) == ("frozen", "full"):
        return "decoder"
    if encoder != "adapters":
        return None
    if config.adapt.method == "lora":
        return "lora" if (config.adapt.rank, decoder) == (8, "frozen") else None
    if decoder != "full":
        return None
    return {"none": "adalora", "decoder": "dqat"}.get(config.quantize.policy, "fullqat")


def _no_row(config: RunConfig) -> str:
    if config.baselines is not None:
        return f"the paper has no {config.baselines.architecture}"
    if config.model.variant not in _SAME_SHAPE:
        return f"the paper counts SAM ViT-B; {config.model.variant} is another model"
    return "the paper prints no parameter count for this recipe"


def _differences(counts: Mapping[str, Any], key: str) -> list[str]:
    if "image_encoder" not in counts["parts"]:
        # A peer: the paper names no backbone, only how many parameters there are.
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
