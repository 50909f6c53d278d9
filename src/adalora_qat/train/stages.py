"""The two stages of the paper, each from a written artefact to a written artefact.

Stage 1 adapts in full precision (Sec. 2.2.1). ``ptq`` quantizes what came out, which is
stage 2 with no epochs; stage 2 fine-tunes it as integers (Sec. 2.2.2).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from adalora_qat.adapt.inject import inject
from adalora_qat.adapt.rank_budget import history_csv
from adalora_qat.checkpoint import (
    MODEL_FILE,
    RunFolder,
    load_model,
    remove_checkpoints,
    save_model,
    write_provenance,
)
from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError
from adalora_qat.files import write_json, write_text
from adalora_qat.model.sam import Segmenter
from adalora_qat.model.weights import build
from adalora_qat.progress import Progress
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.quantize.compensate import compensable, compensate, watching_inputs
from adalora_qat.quantize.movement import lambda_movement, lambdas
from adalora_qat.quantize.policy import load_policy
from adalora_qat.quantize.prepare import freeze, observe, prepare, spread
from adalora_qat.samples.cache import PlaneCache
from adalora_qat.samples.dataset import SegmentationDataset
from adalora_qat.samples.structures import wanted
from adalora_qat.train.features import Features, bytes_needed, entry_for
from adalora_qat.train.feed import Feed
from adalora_qat.train.history import tracked_values, write_history
from adalora_qat.train.loop import Loop, resumed_accumulate, resumed_ranks
from adalora_qat.train.memory import bytes_kept, free_memory, parts_that_fit, peak_bytes
from adalora_qat.train.objective import Entry, LossWeights, Objective
from adalora_qat.train.placement import compile_mode, place
from adalora_qat.train.processes import accelerator_for
from adalora_qat.train.sampling import MicroBatch, plan_epoch
from adalora_qat.train.selection import (
    choose_trainable_stage1,
    choose_trainable_stage2,
    parameter_groups,
    parameter_groups_stage2,
)
from adalora_qat.train.state import FitSettings, FitState, StepReport


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
    makers : processes that make augmented samples beside a GPU, for each process that trains;
        None takes up to 8, as there are processors, and 0 leaves it to the threads.
    checkpoint_seconds : time between checkpoints inside an epoch.
    track : trackers that are told the losses too: "tensorboard", "mlflow".
    on_step : told after each optimizer step.
    progress : told about other long work, as (done, total, what).
    tell : told, in a sentence, what was decided for want of memory.
    """

    cpu: bool = False
    feature_bytes: int = 8 * 2**30
    cache: Path | None = None
    workers: int = field(default_factory=lambda: min(4, os.cpu_count() or 1))
    makers: int | None = None
    checkpoint_seconds: float = 60.0
    track: tuple[str, ...] = ()
    on_step: Callable[[StepReport], None] | None = None
    progress: Progress | None = None
    tell: Callable[[str], None] | None = None


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
        self.accelerator = accelerator_for(
            self.config.precision,
            cpu=self.resources.cpu,
            track=self.resources.track,
            folder=run.path / "tracking" if self.resources.track else None,
        )
        if self.resources.track:
            self.accelerator.init_trackers("adalora-qat", tracked_values(self.config))

    def stage1(self) -> None:
        """Adapt in full precision, unless the stage has ended already."""
        if self._finished("stage1"):
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
        settings = FitSettings.of(
            "stage1",
            config.stage1,
            config.seed,
            self.resources.checkpoint_seconds,
            config.adapt if config.stage1.encoder == "adapters" else None,
        )
        weights = LossWeights(config.stage1.lambda_ortho, config.stage1.lambda_iou)
        loop = self._loop(segmenter, settings, weights, parameter_groups(segmenter, config))
        loop.resume()
        state = loop.fit()
        self._finish("stage1", segmenter, loop, state)

    def quantize(self) -> None:
        """Quantize stage 1's model after training (PTQ), unless that is done already."""
        if self._finished("ptq"):
            return
        config = self.config
        segmenter, _ = load_model(self.run.stage("stage1") / MODEL_FILE)
        policy = load_policy(config.quantize.policy)
        if policy.rows:
            fold_batch_norms(segmenter)
            prepare(segmenter, policy, config.quantize)
            segmenter.to(self.accelerator.device)
            observe(segmenter)
            self._calibrate_and_compensate(segmenter)
            freeze(segmenter)
            if config.model.weights == "packaged":
                spread(segmenter, config.seed)
        if self.accelerator.is_main_process:
            save_model(segmenter, self.run.stage("ptq") / MODEL_FILE, config, "ptq")
        self.accelerator.wait_for_everyone()

    def stage2(self) -> None:
        """Fine-tune the quantized model, unless the stage has ended already."""
        if self._finished("stage2"):
            return
        config = self.config
        segmenter, _ = load_model(self.run.stage("ptq") / MODEL_FILE)
        if not config.stage2.epochs:
            self._keep_ptq(segmenter)
            return
        before = lambdas(segmenter)
        choose_trainable_stage2(segmenter, config)
        # Another order than stage 1's.
        seed, seconds = config.seed + 1, self.resources.checkpoint_seconds
        settings = FitSettings.of("stage2", config.stage2, seed, seconds)
        weights = LossWeights(
            distill=config.stage2.distill, embeddings=config.stage2.distill_embeddings
        )
        loop = self._loop(segmenter, settings, weights, parameter_groups_stage2(segmenter, config))
        loop.resume()
        state = loop.fit()
        if "scales" in config.stage2.train:
            freeze(segmenter)
        if self.accelerator.is_main_process:
            movement = lambda_movement(before, lambdas(segmenter))
            rows = [asdict(layer) for layer in movement]
            write_json(self.run.stage("stage2") / "lambda_movement.json", rows)
        self._finish("stage2", segmenter, loop, state)

    def _keep_ptq(self, segmenter: Segmenter) -> None:
        # No epochs: what came before is the result, and there may be nothing to train at all.
        if self.accelerator.is_main_process:
            save_model(segmenter, self.run.stage("stage2") / MODEL_FILE, self.config, "stage2")
        self.accelerator.wait_for_everyone()

    def end(self) -> None:
        """Close the trackers and leave the other processes; call it once, after the stages."""
        self.accelerator.end_training()

    # -- parts -----------------------------------------------------------------------------

    def _finished(self, stage: str) -> bool:
        done = self.run.finished(stage)
        # Everyone has looked before anyone can end the stage.
        self.accelerator.wait_for_everyone()
        return done

    def _loop(
        self,
        segmenter: Segmenter,
        settings: FitSettings,
        weights: LossWeights,
        groups: list[dict[str, Any]],
    ) -> Loop:
        """Set a fit up: the model on its device, samples, loss and optimizer."""
        device = self.accelerator.device
        kernel = place(segmenter, self.config, device)
        train, val = self._dataset(segmenter, "train"), self._dataset(segmenter, "val")
        teacher = self._teacher() if weights.needs_teacher else None
        # A teacher computes its own features, from the images.
        entry = "image" if teacher else self._entry(segmenter, settings, len(train) + len(val))
        objective = Objective(segmenter, weights, entry, settings.accumulate, teacher)
        makers, workers = self._makers(), self.resources.workers
        train_feed = Feed(
            train, self._features(objective, train), makers or workers, processes=makers > 0
        )
        val_feed = Feed(val, self._features(objective, val), workers)
        settings = replace(settings, accumulate=self._in_memory(settings, objective, train_feed))
        objective.accumulate = settings.accumulate
        mode = None
        if self.config.compile:
            mode = compile_mode(objective, device, self.accelerator.num_processes)
            objective.compile(mode=mode)
        self._stamp(settings.stage, attention=kernel, compiled=mode, accumulate=settings.accumulate)
        return Loop(
            settings,
            objective,
            # One kernel for all parameters, where there is one.
            torch.optim.AdamW(groups, fused=device.type == "cuda"),
            self.accelerator,
            train_feed,
            val_feed,
            self.run.stage(settings.stage) / "checkpoints",
            self.resources.on_step,
        )

    def _makers(self) -> int:
        """Return how many processes make samples: none where threads suffice."""
        if self.accelerator.device.type != "cuda" or not self.config.data.augment.enabled:
            return 0
        if self.resources.makers is not None:
            return self.resources.makers
        share: int = (os.cpu_count() or 1) // self.accelerator.num_processes
        return max(1, min(8, share - 1))

    def _in_memory(self, settings: FitSettings, objective: Objective, train: Feed) -> int:
        """Return the micro-batches of a step: the recipe's, or as many as a CPU's memory needs.

        The step stays the same but for rounding. So what the recipe itself says is kept, and an
        interrupted run goes on with what it began with, whatever is free by then. On a GPU the
        allocator says when it is full, and the loop then says what would fit.
        """
        images, accumulate = settings.batch_size, settings.accumulate
        begun = resumed_accumulate(self.run.stage(settings.stage) / "checkpoints")
        free = free_memory()
        alone = self.accelerator.num_processes == 1
        if begun is not None:
            return begun
        if self.accelerator.device.type != "cpu" or not alone or free is None:
            return accumulate
        tensors, _ = train.batch(MicroBatch((0,), (1.0,)), self.accelerator.device)
        with self.accelerator.autocast():
            each = bytes_kept(objective, tensors)
        needed = parts_that_fit(images, accumulate, each, free)
        stated = "accumulate" in getattr(self.config, settings.stage).model_fields_set
        parts = accumulate if stated else needed
        told = (
            f"{settings.stage}: about {peak_bytes(images // parts, each) / 1e9:.1f} GB for "
            f"{images // parts} images at once, {free / 1e9:.1f} GB are free"
        )
        if parts > accumulate:
            told += f" ({images // accumulate} would take too much)"
        elif parts < needed:
            told += f"; set {settings.stage}.accumulate={needed} if it is too much"
        if self.resources.tell is not None:
            self.resources.tell(told)
        return parts

    def _entry(self, segmenter: Segmenter, settings: FitSettings, images: int) -> Entry:
        """Return where samples enter: behind the frozen prefix, if its features can be kept."""
        entry = entry_for(
            segmenter,
            augmented=self.config.data.augment.enabled,
            stem_moves=settings.stage == "stage2" and "scales" in self.config.stage2.train,
        )
        fits = bytes_needed(segmenter, entry, images) <= self.resources.feature_bytes
        return entry if fits else "image"

    def _teacher(self) -> Segmenter:
        """Return stage 1's model as it was, in full precision."""
        teacher, _ = load_model(self.run.stage("stage1") / MODEL_FILE)
        fold_batch_norms(teacher)
        teacher.to(self.accelerator.device)
        if self.accelerator.device.type == "cuda":
            teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return teacher

    def _stamp(self, stage: str, **how: str | int | None) -> None:
        """Add to the provenance how a stage computed what the recipe left open."""
        file = self.run.path / "provenance.json"
        if self.accelerator.is_main_process and file.is_file():
            known = json.loads(file.read_text(encoding="utf-8"))
            known.setdefault("computed", {})[stage] = how
            write_json(file, known)

    def _dataset(self, segmenter: Segmenter, split: str) -> SegmentationDataset:
        frame, records = segmenter.variant.frame, self.records[split]
        cache = PlaneCache(self.resources.cache or self.run.path / "cache", frame.side)
        with self.accelerator.main_process_first():
            for names, some in self._masks_to_read(records).items():
                cache.build(some, names, self.resources.workers, self.resources.progress)
        return SegmentationDataset(
            records,
            self.config.data,
            frame,
            seed=self.config.seed,
            train=split == "train",
            cache=cache,
            structures=self.config.model.structures,
        )

    def _masks_to_read(self, records: Sequence[Record]) -> dict[tuple[str, ...], list[Record]]:
        """Group records by the masks that are read of them: all targets, or what each has."""
        structures = self.config.model.structures
        if not structures:
            return {self.config.data.prompt.targets: list(records)}
        grouped: dict[tuple[str, ...], list[Record]] = {}
        for record in records:
            grouped.setdefault(wanted(record, structures), []).append(record)
        return grouped

    def _features(self, objective: Objective, dataset: SegmentationDataset) -> Features | None:
        if objective.entry == "image":
            return None
        return Features.compute(
            objective.segmenter,
            dataset,
            objective.entry,
            self.accelerator.device,
            autocast=self.accelerator.autocast,
            chunk=self._at_once(8),
            progress=self.resources.progress,
        )

    def _at_once(self, images: int) -> int:
        """Return how many images to compute at once: on a CPU few, which are no slower."""
        return 2 if self.accelerator.device.type == "cpu" else images

    def _calibrate_and_compensate(self, segmenter: Segmenter) -> None:
        """Calibrate; then give layers of few bits their branches, if the recipe asks for them."""
        config = self.config.quantize
        if config.compensate == "none":
            self._calibrate(segmenter)
            return
        with watching_inputs(compensable(segmenter, config)) as moments:
            self._calibrate(segmenter)
        rows = [asdict(layer) for layer in compensate(segmenter, config, moments)]
        if self.accelerator.is_main_process:
            write_json(self.run.stage("ptq") / "compensation.json", rows)

    @torch.no_grad()
    def _calibrate(self, segmenter: Segmenter) -> None:
        """Show the observers the first batches of the training set, as stage 2 will see them."""
        dataset = self._dataset(segmenter, "train")
        feed, size = Feed(dataset), self.config.stage2.batch_size
        steps = plan_epoch(len(dataset), size, seed=self.config.seed + 1, epoch=0)
        indices = [i for step in steps[: self.config.quantize.calibration_batches]
                   for i in step[0].indices]  # fmt: skip
        few = self._at_once(4)
        for first in range(0, len(indices), few):
            chunk = tuple(indices[first : first + few])
            micro = MicroBatch(chunk, (1.0,) * len(chunk))
            tensors, _ = feed.batch(micro, self.accelerator.device)
            with self.accelerator.autocast():
                segmenter(tensors["inputs"], tensors["boxes"], tensors.get("structures"))
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
