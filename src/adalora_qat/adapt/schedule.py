"""When ranks are pruned: a function of the optimizer step alone, so that a run resumes."""

from __future__ import annotations

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
        self._budgets: dict[int, int] = {}
        if config is not None and config.method == "adalora" and layers > 0 and epochs > 0:
            if config.allocation == "cubic":
                self._budgets = _cubic(config, epochs * steps_per_epoch, layers)
            else:
                pruning = config.pruning_at(epochs)
                self._budgets = {e * steps_per_epoch: rank * layers for e, rank in pruning.items()}
        self.last_step = max(self._budgets, default=0)

    def budget_after(self, step: int) -> int | None:
        """Return the triplets to keep after optimizer step ``step`` (1-based), or None."""
        return self._budgets.get(step)


def _cubic(config: AdaptConfig, total: int, layers: int) -> dict[int, int]:
    """Return the budget by step; the last falls on the end, whatever the interval."""
    warmup, final = round(config.cubic_warmup * total), round(config.cubic_final * total)
    end = total - final
    if end <= warmup:
        raise ConfigError(
            f"a cubic allocation has no step to prune in: {total} steps in all; "
            "train longer, or use allocation=events"
        )
    start, target = config.rank * layers, config.schedule[-1].rank * layers
    return {
        step: cubic_budget(
            step, total=total, warmup=warmup, final=final, start=start, target=target
        )
        for step in range(warmup + 1, end + 1)
        if step % config.cubic_interval == 0 or step == end
    }


def cubic_budget(step: int, *, total: int, warmup: int, final: int, start: int, target: int) -> int:
    """Return the budget of triplets at an optimizer step (Zhang et al. 2023, Eq. 12).

    ``start`` up to step ``warmup``, ``target`` from step ``total − final`` on, and between them
    target + (start − target)·(1 − (step − warmup)/(total − final − warmup))³, rounded down.
    """
    if step <= warmup:
        return start
    if step >= total - final:
        return target
    left = 1 - (step - warmup) / (total - final - warmup)
    return int(target + (start - target) * left**3)
