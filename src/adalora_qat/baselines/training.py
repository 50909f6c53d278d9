"""Training a baseline: from a recipe to the same run folder that every other model leaves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

import torch

from adalora_qat.baselines.crops import SOURCE_FACTOR, BoxCropDataset
from adalora_qat.baselines.loop import BaselineLoop, BaselineObjective, parameter_groups
from adalora_qat.baselines.model_file import save_baseline
from adalora_qat.baselines.networks import RANDOM, BaselineNet, build_baseline, frame_of
from adalora_qat.baselines.nnunet import require_nnunet, run_nnunet
from adalora_qat.baselines.nnunet_data import export_samples
from adalora_qat.baselines.nnunet_process import WEIGHTS, Task
from adalora_qat.checkpoint import MODEL_FILE, RunFolder, remove_checkpoints, write_provenance
from adalora_qat.config import AugmentConfig
from adalora_qat.corpus.records import Record
from adalora_qat.errors import ConfigError, DataError
from adalora_qat.samples.cache import PlaneCache
from adalora_qat.samples.dataset import SegmentationDataset
from adalora_qat.train.feed import Feed
from adalora_qat.train.history import write_history
from adalora_qat.train.processes import accelerator_for
from adalora_qat.train.stages import Resources
from adalora_qat.train.state import FitSettings, FitState

STAGE = "stage1"


class BaselineTraining:
    """Trains the baseline of one run folder on given training and validation records.

    It leaves ``stage1/model.safetensors`` and its history, as stage 1 of a segmenter does.

    Raises
    ------
    DataError
        If there are no records to train on, or to validate with.
    ConfigError
        If the recipe is of no baseline, or several processes were started.
    """

    def __init__(
        self,
        run: RunFolder,
        train: Sequence[Record],
        val: Sequence[Record],
        resources: Resources | None = None,
    ) -> None:
        if run.config.baselines is None:
            raise ConfigError(f"{run.config.name} is no baseline: its recipe lacks baselines")
        if not train or not val:
            raise DataError(
                f"training needs train and val records, got {len(train)} and {len(val)}; "
                "prepare a manifest with more images"
            )
        self.run, self.config, self.baseline = run, run.config, run.config.baselines
        self.records = {"train": train, "val": val}
        self.resources = resources or Resources()

    def fit(self) -> None:
        """Train, or go on where a killed training was, unless it has ended already."""
        if self.run.finished(STAGE):
            return
        if self.baseline.architecture == "nnunet":
            self._fit_nnunet()
            return
        net, origin = build_baseline(self.baseline, self.config.seed)
        write_provenance(self.run, {"weights": vars(origin), "config": self.config.name})
        loop = self._loop(net)
        loop.resume()
        state = loop.fit()
        folder = self.run.stage(STAGE)
        write_history(folder, state)
        # The model last: its presence is what says that the stage has ended.
        save_baseline(folder / MODEL_FILE, net.state_dict(), self.config, origin)
        remove_checkpoints(loop.folder)

    def _fit_nnunet(self) -> None:
        """Let nnU-Net train itself on our split, and keep its weights as any other baseline's."""
        require_nnunet()
        write_provenance(self.run, {"weights": vars(RANDOM), "config": self.config.name})
        folder = self.run.stage(STAGE)
        own = folder / "nnunet"
        export_samples(own, self.dataset("train"), self.dataset("val"), self.resources.progress)
        task = Task(
            str(own),
            self.config.stage1.epochs,
            self.baseline.steps_per_epoch,
            self.config.seed,
            self.resources.cpu,
            # Its augmentation takes processes, not threads, and many: 12 where it has the choice.
            min(12, 3 * self.resources.workers, os.cpu_count() or 1),
        )
        tensors, more, epochs = run_nnunet(task, self.resources.on_step, self.resources.progress)
        write_history(folder, FitState(epochs=epochs))
        save_baseline(folder / MODEL_FILE, tensors, self.config, RANDOM, more)
        # Its log and its names for our records stay; copies of the images and weights do not.
        for copied in ("raw", "preprocessed", "results"):
            shutil.rmtree(own / copied, ignore_errors=True)
        (own / WEIGHTS).unlink(missing_ok=True)

    def _loop(self, net: BaselineNet) -> BaselineLoop:
        stage1, resources = self.config.stage1, self.resources
        accelerator = accelerator_for(self.config.precision, cpu=resources.cpu)
        if accelerator.num_processes > 1:
            raise ConfigError("a baseline trains in one process; start it without a launcher")
        net.to(accelerator.device)
        if accelerator.device.type == "cuda":
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        objective = BaselineObjective(net, stage1.accumulate)
        if self.config.compile:
            objective.compile()
        seconds = resources.checkpoint_seconds
        settings = FitSettings.of(STAGE, stage1, self.config.seed, seconds)
        return BaselineLoop(
            settings,
            objective,
            torch.optim.AdamW(parameter_groups(net, stage1)),
            accelerator,
            Feed(self.dataset("train"), workers=resources.workers),
            Feed(self.dataset("val"), workers=resources.workers),
            self.run.stage(STAGE) / "checkpoints",
            resources.on_step,
        )

    def dataset(self, split: str) -> SegmentationDataset:
        """Return the samples of a split: whole images, or crops to their boxes."""
        frame, crop = frame_of(self.baseline), self.baseline.input == "crop"
        side = SOURCE_FACTOR * frame.side if crop else frame.side
        cache = PlaneCache(self.resources.cache or self.run.path / "cache", side)
        records, data, train = self.records[split], self.config.data, split == "train"
        if self.baseline.architecture == "nnunet":
            # It augments by itself.
            data = data.model_copy(update={"augment": AugmentConfig(enabled=False)})
        cache.build(records, data.prompt.targets, self.resources.workers, self.resources.progress)
        if crop:
            margin, seed = self.baseline.margin, self.config.seed
            return BoxCropDataset(records, data, frame, margin, seed=seed, train=train, cache=cache)
        return SegmentationDataset(
            records, data, frame, seed=self.config.seed, train=train, cache=cache
        )
