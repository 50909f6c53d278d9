"""The two stages of the paper, each from a written artefact to a written artefact.

Stage 1 adapts in full precision (Sec. 2.2.1). ``ptq`` quantizes what came out, which is
stage 2 with no epochs; stage 2 fine-tunes it as integers (Sec. 2.2.2).
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from adalora_qat.adapt.inject import inject, svd_adapters
from adalora_qat.adapt.rank_budget import history_csv
from adalora_qat.checkpoint import (
    MODEL_FILE,
    RunFolder,
    load_model,
    remove_checkpoints,
    save_model,
    write_provenance,
)
from adalora_qat.config import RunConfig
from adalora_qat.data.cache import PlaneCache
from adalora_qat.data.dataset import SegmentationDataset
from adalora_qat.data.records import Record
from adalora_qat.errors import DataError, TrainingError
from adalora_qat.files import write_json, write_text
from adalora_qat.model.sam import Segmenter
from adalora_qat.model.weights import build
from adalora_qat.quantize.accounting import lambda_movement, lambdas
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.quantize.policy import load_policy
from adalora_qat.quantize.prepare import freeze, learn, observe, prepare, quantized_layers, refresh
from adalora_qat.train.features import Features, Progress, bytes_needed, entry_for
from adalora_qat.train.feed import Feed
from adalora_qat.train.loop import FitSettings, FitState, Loop, StepReport, resumed_ranks, trainable
from adalora_qat.train.objective import LossWeights, Objective
from adalora_qat.train.sampling import MicroBatch, plan_epoch

_MIXED = {"fp32": "no", "tf32": "no", "bf16": "bf16", "fp16": "fp16"}


@dataclass(frozen=True)
class Resources:
    """What a run may use; none of it decides what the run computes.

    Attributes
    ----------
    cpu : stay on the CPU even where there is a GPU.
    feature_bytes : memory that kept features of frozen prefixes may take.
    cache : where decoded images are kept; a folder of the run if None.
    workers : threads that decode images and make samples; more than four mostly wait for one
        another, and for the thread that feeds the device.
    checkpoint_seconds : time between checkpoints inside an epoch.
    on_step : told after each optimizer step.
    progress : told about other long work, as (done, total, what).
    """

    cpu: bool = False
    feature_bytes: int = 8 * 2**30
    cache: Path | None = None
    workers: int = field(default_factory=lambda: min(4, os.cpu_count() or 1))
    checkpoint_seconds: float = 60.0
    on_step: Callable[[StepReport], None] | None = None
    progress: Progress | None = None


class Training:
    """Runs the stages of one run folder on given training and validation records."""

    def __init__(
        self,
        run: RunFolder,
        train: Sequence[Record],
        val: Sequence[Record],
        resources: Resources | None = None,
    ) -> None:
        if not train or not val:
            raise DataError(
                f"training needs train and val records, got {len(train)} and {len(val)}; "
                "prepare a manifest with more images"
            )
        self.run, self.config = run, run.config
        self.records = {"train": train, "val": val}
        self.resources = resources or Resources()
        torch.backends.cuda.matmul.allow_tf32 = self.config.precision == "tf32"
        torch.backends.cudnn.allow_tf32 = self.config.precision == "tf32"
        self.accelerator = Accelerator(
            mixed_precision=_MIXED[self.config.precision], cpu=self.resources.cpu
        )

    def stage1(self) -> None:
        """Adapt in full precision, unless the stage has ended already."""
        if self.run.finished("stage1"):
            return
        config, folder = self.config, self.run.stage("stage1")
        checkpoints = folder / "checkpoints"
        segmenter, origin = build(config.model)
        if config.stage1.encoder == "adapters":
            ranks = resumed_ranks(checkpoints)
            inject(segmenter.image_encoder, config.adapt, config.seed, ranks)
        choose_trainable_stage1(segmenter, config)
        if self.accelerator.is_main_process:
            write_provenance(self.run, {"weights": vars(origin), "config": config.name})
        settings = FitSettings(
            stage="stage1",
            epochs=config.stage1.epochs,
            batch_size=config.stage1.batch_size,
            accumulate=config.stage1.accumulate,
            seed=config.seed,
            clip_norm=config.stage1.clip_norm,
            warmup_steps=config.stage1.warmup_steps,
            cosine=config.stage1.lr_decay == "cosine",
            patience=config.stage1.patience,
            ema=config.stage1.ema,
            pruning=config.adapt.pruning_at(config.stage1.epochs)
            if config.stage1.encoder == "adapters"
            else {},
            checkpoint_seconds=self.resources.checkpoint_seconds,
        )
        weights = LossWeights(config.stage1.lambda_ortho, config.stage1.lambda_iou)
        loop = self._loop(segmenter, settings, weights, parameter_groups(segmenter, config))
        loop.resume()
        state = loop.fit()
        self._finish("stage1", segmenter, loop, state)

    def quantize(self) -> None:
        """Quantize stage 1's model after training (PTQ), unless that is done already."""
        if self.run.finished("ptq"):
            return
        config = self.config
        segmenter, _ = load_model(self.run.stage("stage1") / MODEL_FILE)
        policy = load_policy(config.quantize.policy)
        if policy.rows:
            fold_batch_norms(segmenter)
            prepare(segmenter, policy, config.quantize)
            segmenter.to(self.accelerator.device)
            observe(segmenter)
            self._calibrate(segmenter)
            freeze(segmenter)
        if self.accelerator.is_main_process:
            save_model(segmenter, self.run.stage("ptq") / MODEL_FILE, config, "ptq")
        self.accelerator.wait_for_everyone()

    def stage2(self) -> None:
        """Fine-tune the quantized model, unless the stage has ended already."""
        if self.run.finished("stage2"):
            return
        config = self.config
        segmenter, _ = load_model(self.run.stage("ptq") / MODEL_FILE)
        before = lambdas(segmenter)
        choose_trainable_stage2(segmenter, config)
        settings = FitSettings(
            stage="stage2",
            epochs=config.stage2.epochs,
            batch_size=config.stage2.batch_size,
            accumulate=config.stage2.accumulate,
            # Another order than stage 1's.
            seed=config.seed + 1,
            clip_norm=config.stage2.clip_norm,
            patience=config.stage2.patience,
            checkpoint_seconds=self.resources.checkpoint_seconds,
        )
        loop = self._loop(
            segmenter, settings, LossWeights(), parameter_groups_stage2(segmenter, config)
        )
        loop.resume()
        state = loop.fit()
        if config.stage2.epochs and "scales" in config.stage2.train:
            freeze(segmenter)
        if self.accelerator.is_main_process:
            movement = lambda_movement(before, lambdas(segmenter))
            rows = [asdict(layer) for layer in movement]
            write_json(self.run.stage("stage2") / "lambda_movement.json", rows)
        self._finish("stage2", segmenter, loop, state)

    # -- parts -----------------------------------------------------------------------------

    def _loop(
        self,
        segmenter: Segmenter,
        settings: FitSettings,
        weights: LossWeights,
        groups: list[dict[str, Any]],
    ) -> Loop:
        device = self.accelerator.device
        segmenter.to(device)
        if device.type == "cuda":
            segmenter.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        train, val = self._dataset(segmenter, "train"), self._dataset(segmenter, "val")
        entry = entry_for(
            segmenter,
            augmented=self.config.data.augment.enabled,
            stem_moves=settings.stage == "stage2" and "scales" in self.config.stage2.train,
        )
        if bytes_needed(segmenter, entry, len(train) + len(val)) > self.resources.feature_bytes:
            entry = "image"
        objective = Objective(segmenter, weights, entry, settings.accumulate)
        if self.config.compile:
            objective.compile()
        return Loop(
            settings,
            objective,
            torch.optim.AdamW(groups),
            self.accelerator,
            Feed(train, self._features(objective, train), self.resources.workers),
            Feed(val, self._features(objective, val), self.resources.workers),
            self.run.stage(settings.stage) / "checkpoints",
            self.resources.on_step,
        )

    def _dataset(self, segmenter: Segmenter, split: str) -> SegmentationDataset:
        frame, records = segmenter.variant.frame, self.records[split]
        cache = PlaneCache(self.resources.cache or self.run.path / "cache", frame.side)
        with self.accelerator.main_process_first():
            cache.build(
                records,
                self.config.data.prompt.targets,
                self.resources.workers,
                self.resources.progress,
            )
        return SegmentationDataset(
            records,
            self.config.data,
            frame,
            seed=self.config.seed,
            train=split == "train",
            cache=cache,
        )

    def _features(self, objective: Objective, dataset: SegmentationDataset) -> Features | None:
        if objective.entry == "image":
            return None
        return Features.compute(
            objective.segmenter,
            dataset,
            objective.entry,
            self.accelerator.device,
            autocast=self.accelerator.autocast,
            progress=self.resources.progress,
        )

    @torch.no_grad()
    def _calibrate(self, segmenter: Segmenter) -> None:
        """Show the observers the first batches of the training set, as stage 2 will see them."""
        dataset = self._dataset(segmenter, "train")
        feed, size = Feed(dataset), self.config.stage2.batch_size
        steps = plan_epoch(len(dataset), size, seed=self.config.seed + 1, epoch=0)
        indices = [i for step in steps[: self.config.quantize.calibration_batches]
                   for i in step[0].indices]  # fmt: skip
        for first in range(0, len(indices), 4):
            chunk = tuple(indices[first : first + 4])
            micro = MicroBatch(chunk, (1.0,) * len(chunk))
            tensors, _ = feed.batch(micro, self.accelerator.device)
            with self.accelerator.autocast():
                segmenter(tensors["inputs"], tensors["boxes"])
            if self.resources.progress is not None:
                self.resources.progress(first + len(chunk), len(indices), "calibration")

    def _finish(self, stage: str, segmenter: Segmenter, loop: Loop, state: FitState) -> None:
        if self.accelerator.is_main_process:
            folder = self.run.stage(stage)
            write_history(folder, state)
            if loop.budget.history:
                write_text(folder / "ranks.csv", history_csv(loop.budget.history))
                write_json(folder / "ranks.json", loop.budget.history_json())
            # The model last: its presence is what says that the stage has ended.
            save_model(segmenter, folder / MODEL_FILE, self.config, stage)
            remove_checkpoints(loop.folder)
        self.accelerator.wait_for_everyone()


def choose_trainable_stage1(segmenter: Segmenter, config: RunConfig) -> None:
    """Set ``requires_grad`` as the recipe says; the prompt encoder never trains.

    Raises
    ------
    TrainingError
        If nothing is left to train.
    """
    segmenter.requires_grad_(False)
    if config.stage1.encoder == "full":
        segmenter.image_encoder.requires_grad_(True)
    elif config.stage1.encoder == "adapters":
        for name, parameter in segmenter.image_encoder.named_parameters():
            parameter.requires_grad_(name.rpartition(".")[2] in {"P", "lam", "Q", "A", "B"})
    if config.stage1.decoder == "full":
        segmenter.mask_decoder.requires_grad_(True)
    if not trainable(segmenter):
        raise TrainingError("nothing trains: stage1.encoder and stage1.decoder are both frozen")


def choose_trainable_stage2(segmenter: Segmenter, config: RunConfig) -> None:
    """Set ``requires_grad`` for stage 2: Λ, and what ``stage2.train`` adds.

    Raises
    ------
    TrainingError
        If nothing is left to train although there are epochs to train.
    """
    segmenter.requires_grad_(False)
    if "lambda" in config.stage2.train:
        for adapter in svd_adapters(segmenter.image_encoder).values():
            adapter.lam.requires_grad_(True)
    if "decoder" in config.stage2.train:
        segmenter.mask_decoder.requires_grad_(True)
    if quantized_layers(segmenter):
        refresh(segmenter)
    if "scales" in config.stage2.train:
        learn(segmenter)
    if config.stage2.epochs and not trainable(segmenter):
        raise TrainingError(
            "nothing trains in stage 2: there is no Λ without AdaLoRA adapters; "
            "set stage2.train=[decoder] or stage2.epochs=0"
        )


def parameter_groups(segmenter: Segmenter, config: RunConfig) -> list[dict[str, Any]]:
    """Return AdamW's groups of stage 1: encoder and decoder, with decay and without."""
    decay = config.stage1.weight_decay
    return [
        group
        for module, lr in (
            (segmenter.image_encoder, config.stage1.lr_encoder),
            (segmenter.mask_decoder, config.stage1.lr_decoder),
        )
        for group in _decayed(trainable(module), lr, decay)
    ]


def parameter_groups_stage2(segmenter: Segmenter, config: RunConfig) -> list[dict[str, Any]]:
    """Return AdamW's groups of stage 2: Λ and scales undecayed, the decoder as it is set."""
    kinds: dict[str, dict[str, nn.Parameter]] = {"lambda": {}, "scales": {}, "decoder": {}}
    for name, parameter in trainable(segmenter).items():
        leaf = name.rpartition(".")[2]
        kind = {"lam": "lambda", "scale": "scales"}.get(leaf, "decoder")
        kinds[kind][name] = parameter
    stage2 = config.stage2
    groups = [
        {"params": list(kinds["lambda"].values()), "lr": stage2.lr_lambda, "weight_decay": 0.0},
        {"params": list(kinds["scales"].values()), "lr": stage2.lr_scales, "weight_decay": 0.0},
        *_decayed(kinds["decoder"], stage2.lr_decoder, stage2.weight_decay),
    ]
    return [group for group in groups if group["params"]]


def write_history(folder: Path, state: FitState) -> None:
    """Write ``history.csv`` (a row a step) and ``epochs.csv`` (a row an epoch)."""
    write_text(folder / "history.csv", _csv(state.steps))
    write_text(folder / "epochs.csv", _csv(state.epochs))


def _decayed(
    parameters: Mapping[str, nn.Parameter], lr: float, decay: float
) -> list[dict[str, Any]]:
    # Decay pulls matrices towards zero; norms, biases and Λ are not to be pulled.
    matrices = [p for p in parameters.values() if p.ndim > 1]
    vectors = [p for p in parameters.values() if p.ndim <= 1]
    groups = [
        {"params": matrices, "lr": lr, "weight_decay": decay},
        {"params": vectors, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _csv(rows: Sequence[Mapping[str, float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
