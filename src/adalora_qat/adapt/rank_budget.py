"""One rank budget for all adapted layers: importance, pruning, compaction.

A triplet i of a layer is its (P[:, i], λ[i], Q[i, :]). Its importance is
I_i = |λ_i| · |∂L/∂λ_i|  (paper, Sec. 2.2), summed over the steps since the last pruning.
L may be the whole loss of Eq. 2: the orthogonality penalty does not involve Λ, so ∂L/∂λ is that
of the task loss.

In a training step: backward → unscale → finite check → ``accumulate`` → clip → optimizer →
``after_step`` → zero grad. At the end of a pruning epoch: ``prune_to``, then ``compact``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adalora_qat.adapt.importance import (
    Adapters,
    Importance,
    SensitivitySum,
    SmoothedSensitivity,
)
from adalora_qat.adapt.svd_linear import RANK_DIMENSIONS
from adalora_qat.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class RankEvent:
    """What one pruning did.

    Attributes
    ----------
    epoch, step : when, 1-based epoch and count of optimizer steps.
    budget : triplets to keep over all layers.
    ranks_before, ranks : layer → active triplets.
    importance : layer → sum of the importances of its triplets before the pruning.
    """

    epoch: int
    step: int
    budget: int
    ranks_before: dict[str, int]
    ranks: dict[str, int]
    importance: dict[str, float]


class RankBudget:
    """The running importance of every triplet, and the record of what was pruned.

    Parameters
    ----------
    adapters : the layers that share the budget, by name.
    importance : "paper" is |λ|·|∂L/∂λ| summed since the last pruning; "peft" is the smoothed
        measure of AdaLoRA and PEFT. Either way a pruned triplet never comes back (in PEFT it may).

    Attributes
    ----------
    steps : optimizer steps accumulated since the last pruning.
    history : one event for each pruning, oldest first.
    """

    def __init__(self, adapters: Adapters, importance: Literal["paper", "peft"] = "paper") -> None:
        kind = {"paper": SensitivitySum, "peft": SmoothedSensitivity}[importance]
        self._importance: Importance = kind(adapters)
        self.steps = 0
        self.history: list[RankEvent] = []

    @property
    def importance(self) -> dict[str, Tensor]:
        """Return layer → (R,) FP32, the present score of every triplet."""
        return self._importance.scores()

    def accumulate(self, adapters: Adapters, *, checked: bool = False) -> None:
        """Take this step's gradients into the importance.

        Gradients must be unscaled, unclipped and synchronised over processes, which is the case
        after the last backward of an accumulated step and before clipping. ``checked``: they
        are known to be finite, so the device need not be waited for.

        Raises
        ------
        TrainingError
            If a gradient is missing or not finite; names the layer. Nothing is added then.
        """
        self._importance.update(adapters, checked=checked)
        self.steps += 1

    def prune_to(
        self, adapters: Adapters, budget: int, *, epoch: int = 0, step: int = 0
    ) -> RankEvent:
        """Keep the ``budget`` most important of all active triplets of all layers.

        Sets masks (those of process 0 everywhere), zeroes pruned λ, records the event and starts
        the accumulation anew. A pruned triplet never comes back.

        Raises
        ------
        ConfigError
            If the budget is negative or above what is left: ranks only fall.
        """
        before = ranks(adapters)
        _check_budget(budget, before)
        scores = self.importance
        kept = global_masks(scores, {name: a.mask for name, a in adapters.items()}, budget)
        for name, adapter in adapters.items():
            adapter.mask.copy_(kept[name])
        broadcast_masks(adapters)
        zero_pruned(adapters)
        layer_importance = {name: float(score.sum()) for name, score in scores.items()}
        event = RankEvent(epoch, step, budget, before, ranks(adapters), layer_importance)
        self.history.append(event)
        self._importance.restart()
        self.steps = 0
        return event

    def compact(self, adapters: Adapters, optimizer: torch.optim.Optimizer | None) -> None:
        """Drop pruned triplets from memory: adapters, optimizer state and importance."""
        for name, kept in compact(adapters, optimizer).items():
            self._importance.keep(name, kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the accumulation as tensors; ``history`` is saved apart, as JSON."""
        state = {key: value.clone() for key, value in self._importance.tensors().items()}
        return {**state, "steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the accumulation.

        Raises
        ------
        CheckpointError
            If the layers or ranks differ from those of the adapters this was built with.
        """
        shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
        own = {key: tuple(tensor.shape) for key, tensor in self.state_dict().items()}
        if shapes != own:
            odd = sorted(set(shapes.items()) ^ set(own.items()))[:4]
            raise CheckpointError(f"rank budget of another model or allocation; differing: {odd}")
        for key, value in self._importance.tensors().items():
            value.copy_(state[key])
        self.steps = int(state["steps"])

    def history_json(self) -> list[dict[str, Any]]:
        """Return the history as plain JSON values."""
        return [asdict(event) for event in self.history]

    def load_history(self, events: list[dict[str, Any]]) -> None:
        """Restore the history from ``history_json``."""
        self.history = [RankEvent(**event) for event in events]


def global_masks(
    scores: Mapping[str, Tensor], active: Mapping[str, Tensor], budget: int
) -> dict[str, Tensor]:
    """Return masks that keep the ``budget`` best of all active triplets of all layers.

    Ties are broken by triplet index, then by layer name: of equals, low indices stay, which
    spreads them evenly over the layers, and the result does not depend on the module order.
    """
    names = sorted(scores)
    triplets = [
        (-value, index, name)
        for name in names
        for index, (value, alive) in enumerate(
            zip(scores[name].tolist(), active[name].tolist(), strict=True)
        )
        if alive
    ]
    kept = {name: torch.zeros(scores[name].shape, dtype=torch.bool) for name in names}
    for _, index, name in sorted(triplets)[:budget]:
        kept[name][index] = True
    return {name: kept[name].to(active[name].device) for name in scores}


def ranks(adapters: Adapters) -> dict[str, int]:
    """Return layer → number of active triplets."""
    return {name: adapter.active_rank for name, adapter in adapters.items()}


@torch.no_grad()
def broadcast_masks(adapters: Adapters, source: int = 0) -> None:
    """Give every process the masks of process ``source``; alone, do nothing."""
    if not (dist.is_available() and dist.is_initialized()) or not adapters:
        return
    names = sorted(adapters)
    flat = torch.cat([adapters[name].mask for name in names]).to(torch.uint8)
    dist.broadcast(flat, source)
    masks = torch.split(flat, [adapters[name].rank for name in names])
    for name, mask in zip(names, masks, strict=True):
        adapters[name].mask.copy_(mask.bool())


@torch.no_grad()
def zero_pruned(adapters: Adapters) -> None:
    """Set λ to zero where a triplet is pruned."""
    for adapter in adapters.values():
        adapter.lam.masked_fill_(~adapter.mask, 0)


@torch.no_grad()
def after_step(adapters: Adapters, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Keep pruned triplets pruned: zero their λ and forget their optimizer moments.

    The last link of a step. Their gradients are zero by construction, but momentum from before
    the pruning would still move λ.
    """
    for adapter in adapters.values():
        pruned = ~adapter.mask
        adapter.lam.masked_fill_(pruned, 0)
        for value in (optimizer.state.get(adapter.lam, {}) if optimizer else {}).values():
            if isinstance(value, Tensor) and value.shape == adapter.lam.shape:
                value.masked_fill_(pruned.to(value.device), 0)


@torch.no_grad()
def compact(
    adapters: Adapters, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Tensor]:
    """Drop pruned triplets from memory, optimizer state included; return the kept indices.

    The function computed and the training that follows are those of the masked adapters. The
    optimizer's groups are updated; any other list of the model's parameters must be made anew,
    and so must a DDP wrapper, a moving average or a captured graph of the model.

    Raises
    ------
    ConfigError
        If the optimizer keeps state that is neither a scalar nor of the parameter's shape; it
        cannot be sliced, and nothing has been changed.
    """
    if optimizer is not None:
        for name, adapter in adapters.items():
            for leaf in RANK_DIMENSIONS:
                _check_sliceable(f"{name}.{leaf}", getattr(adapter, leaf), optimizer)
    kept = {}
    for name, adapter in adapters.items():
        old = {leaf: getattr(adapter, leaf) for leaf in RANK_DIMENSIONS}
        kept[name] = adapter.compact()
        for leaf, parameter in old.items():
            if optimizer is not None:
                new, dimension = getattr(adapter, leaf), RANK_DIMENSIONS[leaf]
                _hand_over(optimizer, parameter, new, dimension, kept[name])
    return kept


def history_csv(history: list[RankEvent]) -> str:
    """Return the history as CSV: one row an event and layer."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["event", "epoch", "step", "layer", "rank_before", "rank", "importance"])
    for number, event in enumerate(history, start=1):
        for layer, rank in event.ranks.items():
            row = [number, event.epoch, event.step, layer, event.ranks_before[layer], rank]
            writer.writerow([*row, repr(event.importance[layer])])
    return text.getvalue()


def _check_budget(budget: int, before: Mapping[str, int]) -> None:
    left = sum(before.values())
    if not 0 <= budget <= left:
        raise ConfigError(
            f"cannot prune to {budget} triplets: {left} are left in {len(before)} layers; "
            "ranks only fall, from one pruning to the next"
        )


def _check_sliceable(name: str, parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
    for key, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
            raise ConfigError(
                f"optimizer state {key!r} of {name} is {tuple(value.shape)}, the parameter "
                f"{tuple(parameter.shape)}: it cannot be compacted; use an optimizer with state "
                "of the parameter's shape, such as AdamW"
            )


def _hand_over(
    optimizer: torch.optim.Optimizer,
    old: nn.Parameter,
    new: nn.Parameter,
    dimension: int,
    kept: Tensor,
) -> None:
    for group in optimizer.param_groups:
        group["params"] = [new if member is old else member for member in group["params"]]
    # state is a defaultdict: a parameter that never stepped has no entry, and gets none.
    if old not in optimizer.state:
        return
    state = optimizer.state.pop(old)
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == old.shape:
            state[key] = value.index_select(dimension, kept.to(value.device)).contiguous()
    optimizer.state[new] = state
