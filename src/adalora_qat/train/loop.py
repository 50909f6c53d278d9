"""The training loop: setup → fit → validate, resumable to the step.

The order inside a step is fixed, and held by a test: backward → unscale → finite check →
importance → clip → optimizer → rank mask → zero grad.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from adalora_qat.adapt.inject import svd_adapters
from adalora_qat.adapt.rank_budget import RankBudget, after_step
from adalora_qat.adapt.schedule import RankSchedule
from adalora_qat.checkpoint import (
    latest_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from adalora_qat.errors import CheckpointError, TrainingError
from adalora_qat.train.average import Average
from adalora_qat.train.feed import Feed
from adalora_qat.train.memory import advising_on_memory
from adalora_qat.train.objective import Losses, Objective
from adalora_qat.train.sampling import MicroBatch, plan_epoch
from adalora_qat.train.selection import trainable
from adalora_qat.train.state import FitSettings, FitState, StepReport


class Loop:
    """Trains an objective on a feed and keeps its state on disk."""

    def __init__(
        self,
        settings: FitSettings,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        train: Feed,
        val: Feed,
        folder: Path,
        on_step: Callable[[StepReport], None] | None = None,
    ) -> None:
        self.settings, self.folder, self.on_step = settings, folder, on_step
        self.accelerator, self.train, self.val = accelerator, train, val
        self.plain = objective
        self.parameters = trainable(objective.segmenter)
        self.adapters = svd_adapters(objective.segmenter.image_encoder)
        self.steps_per_epoch = math.ceil(len(train) / settings.batch_size)
        self.schedule = RankSchedule(
            settings.adapt,
            epochs=settings.epochs,
            steps_per_epoch=self.steps_per_epoch,
            layers=len(self.adapters),
        )
        importance = "paper" if settings.adapt is None else settings.adapt.importance
        self.budget = RankBudget(self.adapters, importance)
        self.base_lr = [float(group["lr"]) for group in optimizer.param_groups]
        self.raw_optimizer = optimizer
        self.objective: nn.Module = accelerator.prepare_model(objective)
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self.average = Average(self.parameters, settings.ema) if settings.ema else None
        self.state = FitState()
        self.best: dict[str, Tensor] = {}
        self.saved_at = time.monotonic()

    def fit(self) -> FitState:
        """Run every epoch that is left; return the state at the end."""
        while self.state.epoch <= self.settings.epochs:
            steps = self._plan(self.state.epoch)[self.state.step_in_epoch :]
            self.train.begin(self.state.epoch, chain.from_iterable(steps), self.accelerator.device)
            for micros in steps:
                with self._memory_advice(micros):
                    losses = self.optimizer_step(micros)
                self._record(losses)
                self._prune_when_due()
                self._checkpoint_now_and_then()
            self._end_epoch()
            if self._patience_is_over():
                break
        self._take_best()
        return self.state

    def optimizer_step(self, micros: Sequence[MicroBatch]) -> dict[str, float]:
        """Do one optimizer step from its micro-batches; return the losses it saw, by name."""
        self._set_learning_rates()
        seen, ids = [], []
        for number, micro in enumerate(micros, start=1):
            tensors, names = self.train.batch(micro, self.accelerator.device)
            ids += names
            with self._sync(last=number == len(micros)):
                with self.accelerator.autocast():
                    losses = self.objective(tensors)
                self.accelerator.backward(losses.total)
            seen.append(torch.stack([term.detach() for term in losses]))
        summed = self.accelerator.reduce(torch.stack(seen).sum(dim=0), reduction="mean")
        self.accelerator.unscale_gradients(self.optimizer)
        values, norm = self._read(summed)
        finite = self._finite(values, norm, ids)
        if finite and self.state.step < self.schedule.last_step:
            self.budget.accumulate(self.adapters, checked=True)
        if finite and self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip_norm)
        # Where it is not finite, this lowers the loss scale and leaves the weights alone.
        self.optimizer.step()
        after_step(self.adapters, self.raw_optimizer)
        if finite and self.average is not None:
            self.average.update(self.parameters)
        self.optimizer.zero_grad(set_to_none=True)
        return dict(zip(Losses._fields, values, strict=True))

    @torch.no_grad()
    def validate(self) -> float:
        """Return the mean Dice on the validation samples, over all processes."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        total = torch.zeros(2, device=self.accelerator.device)
        chunks = [
            tuple(range(first, min(first + 8, len(self.val))))
            for first in range(rank * 8, len(self.val), world * 8)
        ]
        micros = [MicroBatch(indices, (1.0,) * len(indices)) for indices in chunks]
        self.val.begin(self.state.epoch, micros, self.accelerator.device)
        for micro in micros:
            tensors, _ = self.val.batch(micro, self.accelerator.device)
            with self.accelerator.autocast():
                dice = self.plain.dice(tensors)
            total += torch.stack([dice.sum(), torch.ones_like(dice).sum()])
        total = self.accelerator.reduce(total, reduction="sum")
        return float(total[0] / total[1].clamp(min=1))

    # -- inside an epoch -------------------------------------------------------------------

    def _plan(self, epoch: int) -> list[list[MicroBatch]]:
        return plan_epoch(
            len(self.train),
            self.settings.batch_size,
            seed=self.settings.seed,
            epoch=epoch,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            accumulate=self.settings.accumulate,
        )

    def _sync(self, *, last: bool) -> AbstractContextManager[Any]:
        # Gradients travel between processes once a step, with the last micro-batch.
        return nullcontext() if last else self.accelerator.no_sync(self.objective)

    def _set_learning_rates(self) -> None:
        factor = learning_rate_factor(
            self.state.step,
            self.settings.epochs * self.steps_per_epoch,
            self.settings.warmup_steps,
            cosine=self.settings.cosine,
        )
        for group, base in zip(self.raw_optimizer.param_groups, self.base_lr, strict=True):
            group["lr"] = base * factor

    def _read(self, losses: Tensor) -> tuple[list[float], float]:
        """Return the losses and the norm of all gradients: the only wait for the device."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients).to(losses)
        *values, length = torch.cat([losses, norm.reshape(1)]).tolist()
        return values, length

    def _finite(self, losses: Sequence[float], norm: float, ids: Sequence[str]) -> bool:
        """Stop before harm: True if all is finite, False if loss scaling skips the step."""
        fine = all(map(math.isfinite, losses))
        if fine and math.isfinite(norm):
            return True
        scaler = self.accelerator.scaler
        # Below a scale of 1 it was no overflow of the scaling: the gradient itself is broken.
        if scaler is not None and fine and scaler.get_scale() >= 1:
            self.state.skipped += 1
            return False
        what = "gradient" if fine else "loss"
        self.optimizer.zero_grad(set_to_none=True)
        raise TrainingError(
            f"{self.settings.stage}: the {what} is not finite at epoch {self.state.epoch}, step "
            f"{self.state.step + 1} (samples {', '.join(ids)}); no weight was changed. Look at "
            "these samples, or lower the learning rate"
        )

    def _record(self, losses: Mapping[str, float]) -> None:
        self.state.step += 1
        self.state.step_in_epoch += 1
        row = {**losses, "skipped": self.state.skipped}
        self.state.steps.append({"epoch": self.state.epoch, "step": self.state.step, **row})
        self._log(row)
        if self.on_step is not None:
            last = self.state.epochs[-1]["val_dice"] if self.state.epochs else None
            self.on_step(
                StepReport(
                    self.settings.stage,
                    self.state.epoch,
                    self.settings.epochs,
                    self.state.step,
                    self.settings.epochs * self.steps_per_epoch,
                    row["total"],
                    last,
                    self.state.skipped,
                )
            )

    def _log(self, values: Mapping[str, float]) -> None:
        # Without a tracker this does nothing; the main process alone writes.
        named = {f"{self.settings.stage}/{name}": value for name, value in values.items()}
        self.accelerator.log(named, step=self.state.step)

    def _prune_when_due(self) -> None:
        budget = self.schedule.budget_after(self.state.step)
        if budget is None:
            return
        self.budget.prune_to(self.adapters, budget, epoch=self.state.epoch, step=self.state.step)
        if self.state.step == self.schedule.last_step:
            self.budget.compact(self.adapters, self.raw_optimizer)
            self.parameters = trainable(self.plain.segmenter)
            # A DDP wrapper holds buckets of the old shapes.
            self.accelerator.free_memory()
            self.objective = self.accelerator.prepare_model(self.plain)
        if self.average is not None:
            self.average.restart(self.parameters)

    def _memory_advice(self, micros: Sequence[MicroBatch]) -> AbstractContextManager[None]:
        def attempt(count: int) -> None:
            self.optimizer.zero_grad(set_to_none=True)
            part = MicroBatch(micros[0].indices[:count], micros[0].weights[:count])
            tensors, _ = self.train.batch(part, self.accelerator.device)
            with self.accelerator.autocast():
                total = self.plain(tensors).total
            total.backward()
            self.optimizer.zero_grad(set_to_none=True)

        segmenter = self.plain.segmenter
        return advising_on_memory(
            self.settings.stage,
            images=max(len(micro.indices) for micro in micros),
            accumulate=self.settings.accumulate,
            attempt=attempt if self.accelerator.num_processes == 1 else None,
            options=""
            if getattr(segmenter.image_encoder, "recompute", True)
            else ", or gradient_checkpointing=true",
        )

    # -- between epochs --------------------------------------------------------------------

    def _end_epoch(self) -> None:
        epoch = self.state.epoch
        with self._averaged():
            dice = self.validate()
            self._keep_best(dice)
        self.state.epochs.append({"epoch": epoch, "step": self.state.step, "val_dice": dice})
        self._log({"val_dice": dice})
        self.state.epoch, self.state.step_in_epoch = epoch + 1, 0
        self.save()

    def _keep_best(self, dice: float) -> None:
        pruned = self.state.step >= self.schedule.last_step
        # Before the last pruning the model is not yet of its final size.
        if self.settings.patience is None or not pruned or dice <= self.state.best_dice:
            return
        self.state.best_dice, self.state.best_epoch = dice, self.state.epoch
        self.best = {name: p.detach().clone() for name, p in self.parameters.items()}

    def _patience_is_over(self) -> bool:
        if self.settings.patience is None or not self.best:
            return False
        return self.state.epoch - 1 - self.state.best_epoch >= self.settings.patience

    def _averaged(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.average is None else self.average.in_place_of(self.parameters)

    @torch.no_grad()
    def _take_best(self) -> None:
        average = {} if self.average is None else self.average.tensors
        for name, tensor in (self.best or average).items():
            self.parameters[name].copy_(tensor)

    # -- on disk ---------------------------------------------------------------------------

    def _checkpoint_now_and_then(self) -> None:
        if time.monotonic() - self.saved_at >= self.settings.checkpoint_seconds:
            self.save()

    def save(self) -> None:
        """Write a checkpoint from the main process; the others need not wait for it."""
        self.saved_at = time.monotonic()
        if self.accelerator.is_main_process:
            tensors: dict[str, Tensor] = {f"weight.{n}": p for n, p in self.parameters.items()}
            tensors |= {f"mask.{name}": a.mask for name, a in self.adapters.items()}
            tensors |= {f"budget.{k}": t for k, t in self.budget.state_dict().items()}
            tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
            if self.average is not None:
                self.state.averaged = self.average.steps
                tensors |= {f"average.{n}": tensor for n, tensor in self.average.tensors.items()}
            tensors |= optimizer_tensors(self.raw_optimizer, self.parameters)
            state = {
                **vars(self.state),
                "events": self.budget.history_json(),
                "ranks": {name: adapter.rank for name, adapter in self.adapters.items()},
                "processes": self.accelerator.num_processes,
                "accumulate": self.settings.accumulate,
                "best_dice": self.state.best_dice if self.best else None,
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            }
            save_checkpoint(self.folder, self.state.step, tensors, state)

    @torch.no_grad()
    def resume(self) -> bool:
        """Continue from the newest checkpoint, if there is one.

        The segmenter must have been built at the checkpoint's ranks (``resumed_ranks``).

        Raises
        ------
        CheckpointError
            If it was written by another number of processes, or is of another model.
        """
        found = latest_checkpoint(self.folder)
        if found is None:
            return False
        tensors, state = found
        _check_processes(state["processes"], self.accelerator.num_processes)
        _check_same_model(self.folder, self.parameters, _under("weight.", tensors))
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"weight.{name}"])
        for name, adapter in self.adapters.items():
            adapter.mask.copy_(tensors[f"mask.{name}"])
        self.budget.load_state_dict(_under("budget.", tensors))
        self.budget.load_history(state["events"])
        self.best = {
            name: tensor.to(self.accelerator.device)
            for name, tensor in _under("best.", tensors).items()
        }
        restore_optimizer(self.raw_optimizer, self.parameters, tensors)
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        own = {key: state[key] for key in vars(FitState())}
        own["best_dice"] = -math.inf if own["best_dice"] is None else own["best_dice"]
        self.state = FitState(**own)
        if self.average is not None:
            self.average.steps = self.state.averaged
            for name, tensor in self.average.tensors.items():
                tensor.copy_(tensors[f"average.{name}"])
        return True


def resumed_ranks(folder: Path) -> dict[str, int] | None:
    """Return the adapter ranks at the newest checkpoint, or None without one."""
    found = latest_checkpoint(folder)
    return None if found is None else {name: int(r) for name, r in found[1]["ranks"].items()}


def resumed_accumulate(folder: Path) -> int | None:
    """Return the micro-batches of a step at the newest checkpoint, or None if it does not say."""
    found = latest_checkpoint(folder)
    return None if found is None else found[1].get("accumulate")


def learning_rate_factor(step: int, steps: int, warmup: int, *, cosine: bool) -> float:
    """Return the factor on every learning rate: a function of the step alone, so it resumes."""
    if step < warmup:
        return (step + 1) / warmup
    if not cosine:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _check_processes(before: int, now: int) -> None:
    if before != now:
        raise CheckpointError(
            f"the checkpoint was written by {before} processes and cannot continue exactly on "
            f"{now}; start {before} processes, or train anew in another folder"
        )


def _check_same_model(
    folder: Path, parameters: Mapping[str, Tensor], stored: Mapping[str, Tensor]
) -> None:
    own = {(name, tuple(parameter.shape)) for name, parameter in parameters.items()}
    theirs = {(name, tuple(tensor.shape)) for name, tensor in stored.items()}
    if own != theirs:
        shown = ", ".join(f"{name} {shape}" for name, shape in sorted(own ^ theirs)[:4])
        raise CheckpointError(
            f"the checkpoint in {folder} is of another model or recipe (it differs in {shown}); "
            "give the recipe that it was trained with, or train anew in another folder"
        )
