"""The published numbers, as data, so that they can stand beside ours and be seen to be theirs.

Source: the AdaLoRA-QAT paper, Tables 1–3 and Sec. 3.1–3.2. Its test images (10 % of 64,590)
and splits are not published, so its figures are for other cases than ours: never a target
to be met to a digit, always set apart (``tables.Column.faint``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from adalora_qat.config import BaselinesConfig, RunConfig
from adalora_qat.report.tables import Spread

ATTRIBUTION: Final = (
    "Columns headed “paper” are the figures published with the method, on other test images; "
    "they are quoted, not measured here."
)


@dataclass(frozen=True)
class PublishedModel:
    """A row of the paper's Tables 1 and 2 (DSC, IoU, NSD on 0–1; parameters in millions)."""

    name: str
    dsc: Spread | None = None
    iou: Spread | None = None
    nsd: Spread | None = None
    total_millions: float | None = None
    trainable_millions: float | None = None
    reduction: float | None = None
    dsc_percent: float | None = None


@dataclass(frozen=True)
class PublishedAblation:
    """A row of the paper's Table 3."""

    method: str
    encoder: str
    decoder: str
    train_percent: float
    dice_percent: float


MODELS: Final[Mapping[str, PublishedModel]] = MappingProxyType(
    {
        "nnunet": PublishedModel(
            "nnU-Net",
            Spread(0.9485, 0.119),
            Spread(0.9184, 0.148),
            Spread(0.8118, 0.233),
            30.0,
            30.0,
            None,
            94.85,
        ),
        "deeplabv3plus": PublishedModel(
            "DeepLabv3+",
            Spread(0.9536, 0.117),
            Spread(0.9269, 0.142),
            Spread(0.8405, 0.213),
            41.0,
            41.0,
            None,
            95.36,
        ),
        "segformer": PublishedModel(
            "SegFormer",
            Spread(0.9228, 0.174),
            Spread(0.8890, 0.202),
            Spread(0.7622, 0.237),
            84.6,
            84.6,
            None,
            92.28,
        ),
        "decoder": PublishedModel(
            "SAM Decoder FT",
            Spread(0.9555, 0.0664),
            Spread(0.9210, 0.0998),
            Spread(0.9279, 0.0956),
            89.7,
            3.8,
            23.6,
            95.55,
        ),
        "adalora": PublishedModel(
            "SAM Ada-LoRA",
            total_millions=89.7,
            trainable_millions=5.4,
            reduction=16.6,
            dsc_percent=95.60,
        ),
        "dqat": PublishedModel(
            "SAM Ada-LoRA + D-QAT",
            Spread(0.9563, 0.0651),
            Spread(0.9224, 0.0984),
            Spread(0.9293, 0.0947),
            89.7,
            5.4,
            16.6,
            95.63,
        ),
        "fullqat": PublishedModel(
            "SAM Ada-LoRA + Full QAT",
            Spread(0.9559, 0.0647),
            Spread(0.9216, 0.0983),
            Spread(0.9286, 0.0938),
            89.7,
            5.4,
            16.6,
            95.59,
        ),
    }
)
"""Tables 1 and 2, by a key of ours."""

ABLATIONS: Final[Mapping[str, PublishedAblation]] = MappingProxyType(
    {
        "decoder": PublishedAblation("Decoder-only FT", "Frozen", "Full", 4.2, 95.55),
        "lora": PublishedAblation("Enc.-only LoRA (r=8)", "LoRA", "Frozen", 1.9, 70.86),
        "adalora": PublishedAblation("Hybrid (Stage 1)", "AdaLoRA", "Full", 6.1, 95.60),
        "dqat": PublishedAblation("Hybrid + D-QAT (Stage 2)", "AdaLoRA", "INT8", 6.1, 95.63),
        "fullqat": PublishedAblation("Hybrid + Full QAT", "AdaLoRA and INT8", "INT8", 6.1, 95.59),
    }
)
"""Table 3, by a key of ours."""

WEIGHT_ERROR_MEAN: Final = 2.7e-5
WEIGHT_ERROR_SD: Final = 7.8e-3
"""Sec. 3.1: the whole model's; linears alone, by our count."""

SAME_SHAPE: Final = frozenset({"sam-vit-base", "medsam"})
"""The paper's model, and the one that shares its architecture: parameters compare with these."""


def published_row(config: RunConfig, stage: str) -> str | None:
    """Return which of the paper's rows a stage of a run answers to, by how it is trained.

    The backbone may be another one: the figures are quoted, and set apart, all the same.

    Parameters
    ----------
    stage : ``stage1``, ``ptq`` or ``stage2``.

    Returns
    -------
    A key of ``MODELS`` or ``ABLATIONS``. None for what the paper does not list: pretrained
    weights, quantization without training, other policies, ranks and ways of pruning.
    """
    if config.baselines is not None:
        return baseline_row(config.baselines) if config.stage1.epochs else None
    first = _first_stage_row(config)
    if stage == "stage1":
        return first
    if stage == "stage2" and first == "adalora" and config.stage2.epochs:
        return {"decoder": "dqat", "full": "fullqat"}.get(config.quantize.policy)
    return None


def baseline_row(config: BaselinesConfig) -> str | None:
    """Return the row of a trained baseline; the paper's look at the whole image."""
    listed = config.architecture in MODELS and config.input == "image"
    return config.architecture if listed else None


def recipe_row(config: RunConfig) -> str | None:
    """Return the paper's row that a recipe repeats from its first stage to its last."""
    adapted = _first_stage_row(config) == "adalora"
    quantized = adapted and config.quantize.policy != "none"
    return published_row(config, "stage2" if quantized else "stage1")


def _first_stage_row(config: RunConfig) -> str | None:
    encoder, decoder, adapt = config.stage1.encoder, config.stage1.decoder, config.adapt
    if not config.stage1.epochs:
        return None
    if (encoder, decoder) == ("frozen", "full"):
        return "decoder"
    if encoder != "adapters":
        return None
    if adapt.method == "lora":
        return "lora" if (adapt.rank, decoder) == (8, "frozen") else None
    # The paper prunes by its own importance, in several events.
    pruned = (
        adapt.importance == "paper" and adapt.allocation == "events" and len(adapt.schedule) > 1
    )
    return "adalora" if pruned and decoder == "full" else None
