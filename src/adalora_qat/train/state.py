"""What a loop is told, what it remembers, and what it reports."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from adalora_qat.config import AdaptConfig, Stage1Config, Stage2Config


@dataclass(frozen=True)
class StepReport:
    """What a watcher is told after each optimizer step.

    ``skipped`` counts the steps so far that loss scaling left out because a gradient
    overflowed.
    """

    stage: str
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    val_dice: float | None
    skipped: int = 0


@dataclass(frozen=True)
class FitSettings:
    """What the loop needs to know, whatever the stage."""

    stage: str
    epochs: int
    batch_size: int
    accumulate: int
    seed: int
    clip_norm: float | None = None
    warmup_steps: int = 0
    cosine: bool = False
    patience: int | None = None
    ema: float | None = None
    """Decay of the average of the weights that is validated and kept; None keeps the last."""
    adapt: AdaptConfig | None = None
    """Prunes ranks as this says; None leaves them as they are."""
    checkpoint_seconds: float = 60.0

    @classmethod
    def of(
        cls,
        stage: str,
        section: Stage1Config | Stage2Config,
        seed: int,
        checkpoint_seconds: float,
        adapt: AdaptConfig | None = None,
    ) -> FitSettings:
        """Return what a stage's section of the recipe says."""
        return cls(
            stage=stage,
            epochs=section.epochs,
            batch_size=section.batch_size,
            accumulate=section.accumulate,
            seed=seed,
            clip_norm=section.clip_norm,
            warmup_steps=section.warmup_steps,
            cosine=section.lr_decay == "cosine",
            patience=section.patience,
            ema=section.ema,
            adapt=adapt,
            checkpoint_seconds=checkpoint_seconds,
        )


@dataclass
class FitState:
    """Where the loop stands, and what it has seen: saved with every checkpoint."""

    epoch: int = 1
    step_in_epoch: int = 0
    step: int = 0
    averaged: int = 0
    skipped: int = 0
    best_dice: float = -math.inf
    best_epoch: int = 0
    steps: list[dict[str, float]] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
