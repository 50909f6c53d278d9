"""When ranks are pruned: a function of the optimizer step alone, so that a run resumes."""

from __future__ import annotations

from adalora_qat.adapt.rank_budget import scheduled_budget
from adalora_qat.config import AdaptConfig
from adalora_qat.errors import ConfigError


class RankSchedule:
    """The budget of triplets over all layers, by optimizer step.

    Parameters
    ----------
    config : ``schedule`` at epochs' ends, or PEFT's cubic fall; None, LoRA or no layers never
        prune.
    epochs, steps_per_epoch : length of the training.
    layers : number of adapted layers, which share the budget.

    Attributes
    ----------
    last_step : step after which nothing is pruned any more; 0 if nothing ever is.

    Raises
    ------
    ConfigError
        If there are too few steps to prune in.
    """

    def __init__(
        self, config: AdaptConfig | None, *, epochs: int, steps_per_epoch: int, layers: int
    ) -> None:
        prunes = config is not None and config.method == "adalora" and layers > 0 and epochs > 0
        self.config = config if prunes else None
        self.layers = layers
        self.steps = epochs * steps_per_epoch
        self.last_step = 0
        self._events: dict[int, int] = {}
        if self.config is None:
            return
        if self.config.allocation == "cubic":
            self.last_step = self._cubic_end(self.config)
        elif self.config.schedule:
            pruning = self.config.pruning_at(epochs)
            self._events = {epoch * steps_per_epoch: rank for epoch, rank in pruning.items()}
            self.last_step = max(self._events)

    def budget_after(self, step: int) -> int | None:
        """Return the triplets to keep after optimizer step ``step`` (1-based), or None."""
        if self.config is None:
            return None
        if step in self._events:
            return self._events[step] * self.layers
        return scheduled_budget(self.config, step, self.steps, self.layers)

    def _cubic_end(self, config: AdaptConfig) -> int:
        warmup = round(config.cubic_warmup * self.steps)
        end = self.steps - round(config.cubic_final * self.steps)
        if end <= warmup:
            raise ConfigError(
                f"a cubic allocation has no step to prune in: {self.steps} steps in all; "
                "train longer, or use allocation=events"
            )
        return end
