"""One run of the grid: a row with a seed, a split and a factor on its learning rates.

The stages are the package's own (``train.stages``); only the feed is replaced, and what a run of
seconds does not need is left out: validation between epochs, checkpoints.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from chest_data import Corpus, DeviceFeed, exact_boxes, unit, whole_boxes
from torch import Tensor

from adalora_qat.adapt.inject import svd_adapters
from adalora_qat.checkpoint import MODEL_FILE, RunFolder, load_model
from adalora_qat.config import RunConfig
from adalora_qat.model.sam import Segmenter
from adalora_qat.model.weights import build
from adalora_qat.recipe import load_config
from adalora_qat.samples.structures import SIDES
from adalora_qat.train.loop import Loop
from adalora_qat.train.objective import LossWeights, Objective
from adalora_qat.train.placement import place
from adalora_qat.train.sampling import MicroBatch, plan_epoch
from adalora_qat.train.stages import Resources, Training
from adalora_qat.train.state import FitSettings, FitState

PLAN = Path(__file__).with_name("chest.yaml")
RATES = {
    "stage1": ("lr_encoder", "lr_decoder"),
    "stage2": ("lr_lambda", "lr_adapters", "lr_encoder", "lr_decoder", "lr_scales"),
}
AT_ONCE = 27


@dataclass(frozen=True)
class Task:
    """A row of ``chest.yaml`` with a seed, a split and a factor on the rates of what it trains."""

    row: str
    seed: int
    split: int
    factor: float

    @property
    def name(self) -> str:
        """Return the name of its file of results."""
        return f"{self.row}-s{self.seed}-d{self.split}-x{self.factor:g}"


@dataclass(frozen=True)
class Plan:
    """``chest.yaml``, with overrides for a dry run."""

    values: dict[str, Any]
    extra: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path = PLAN, extra: Sequence[str] = (), steps: int | None = None) -> Plan:
        """Read the plan; ``steps`` replaces those of both stages."""
        values = yaml.safe_load(path.read_text("utf-8"))
        if steps is not None:
            for stage in ("stage1", "stage2"):
                values["budget"][stage]["steps"] = steps
        return cls(values, tuple(extra))

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows by name, in order."""
        return self.values["rows"]

    @property
    def budget(self) -> dict[str, Any]:
        """Steps, seeds, splits and factors."""
        return self.values["budget"]

    def config(self, task: Task) -> RunConfig:
        """Return the configuration of a task, its rates multiplied."""
        row, budget = self.rows[task.row], self.budget
        given = [*self.values["overrides"], *row.get("overrides", []), f"seed={task.seed}"]
        for stage in ("stage1", "stage2"):
            given += [
                f"{stage}.epochs={budget[stage]['epochs']}",
                f"{stage}.batch_size={budget['batch']}",
            ]
        if row.get("stage1"):
            given[:0] = self.rows[row["stage1"]].get("overrides", [])
        config = load_config(self.values["recipe"], [*given, *self.extra])
        stage = row.get("trains")
        if stage is None:
            return config
        section = getattr(config, stage)
        rates = {name: getattr(section, name) * task.factor for name in RATES[stage]}
        return config.model_copy(update={stage: section.model_copy(update=rates)})


class QuickLoop(Loop):
    """A loop that only trains: a run of seconds starts anew rather than resuming."""

    def validate(self) -> float:
        """Leave validation to the end of the run."""
        return math.nan

    def save(self) -> None:
        """Keep nothing."""
        self.saved_at = time.monotonic()


class GridTraining(Training):
    """The stages of a run on a corpus that lies on the device."""

    def __init__(
        self, run: RunFolder, corpus: Corpus, split: int, plan: Plan, accelerator: Accelerator
    ) -> None:
        self.run, self.config, self.accelerator = run, run.config, accelerator
        self.corpus, self.rows, self.plan = corpus, corpus.at(split, "train"), plan
        self.resources = Resources()
        self.told: dict[str, Any] = {}

    def feed(self, stage: str) -> DeviceFeed:
        """Return the samples of a stage: as many an epoch as its steps ask for."""
        budget = self.plan.budget
        steps = math.ceil(budget[stage]["steps"] / budget[stage]["epochs"])
        samples = steps * budget["batch"]
        return DeviceFeed(self.corpus, self.rows, self.config, samples, budget["repeat"])

    def _loop(
        self,
        segmenter: Segmenter,
        settings: FitSettings,
        weights: LossWeights,
        groups: list[dict[str, Any]],
    ) -> Loop:
        device = self.accelerator.device
        place(segmenter, self.config, device)
        objective = Objective(segmenter, weights, "image")
        optimizer = torch.optim.AdamW(groups, fused=device.type == "cuda")
        feed: Any = self.feed(settings.stage)
        trained = sum(p.numel() for group in groups for p in group["params"])
        self.told[settings.stage] = {"trained_parameters": trained, "started": time.perf_counter()}
        folder = self.run.stage(settings.stage) / "checkpoints"
        return QuickLoop(settings, objective, optimizer, self.accelerator, feed, feed, folder)

    @torch.no_grad()
    def _calibrate(self, segmenter: Segmenter) -> None:
        feed, size = self.feed("stage2"), self.config.stage2.batch_size
        steps = plan_epoch(len(feed), size, seed=self.config.seed + 1, epoch=0)
        for step in steps[: self.config.quantize.calibration_batches]:
            micro = MicroBatch(step[0].indices, step[0].weights)
            tensors, _ = feed.batch(micro, self.accelerator.device)
            with self.accelerator.autocast():
                segmenter(tensors["inputs"], tensors["boxes"], tensors["structures"])

    def _finish(self, stage: str, segmenter: Segmenter, loop: Loop, state: FitState) -> None:
        told = self.told[stage]
        told["seconds"] = time.perf_counter() - told.pop("started")
        told["steps"] = state.step
        told["steps_per_s"] = state.step / told["seconds"]
        last = state.steps[-max(1, len(state.steps) // 10) :]
        told["last_loss"] = sum(step["total"] for step in last) / len(last)
        found = svd_adapters(segmenter.image_encoder)
        told["ranks"] = {name: int(adapter.rank) for name, adapter in found.items()}
        super()._finish(stage, segmenter, loop, state)


def run_task(
    task: Task, plan: Plan, corpus: Corpus, runs: Path, accelerator: Accelerator
) -> dict[str, Any]:
    """Train and measure a task; return what goes into its file of results.

    Parameters
    ----------
    runs : where run folders are made; a first stage that others start from is kept there.
    """
    row, started = plan.rows[task.row], time.perf_counter()
    config = plan.config(task)
    folder = runs / task.name
    shutil.rmtree(folder, ignore_errors=True)
    run = RunFolder.create(folder, config)
    training = GridTraining(run, corpus, task.split, plan, accelerator)
    scores: dict[str, Any] = {}

    def measure(stage: str) -> None:
        segmenter = load_model(run.stage(stage) / MODEL_FILE)[0]
        scores[stage] = evaluate(segmenter.to(accelerator.device), corpus, task.split)

    if row.get("trains") is None:
        scores["stage1"] = evaluate(
            build(config.model)[0].to(accelerator.device), corpus, task.split
        )
    elif row["trains"] == "stage1":
        training.stage1()
        measure("stage1")
    else:
        run.stage("stage1").mkdir()
        shutil.copy(first_stage(runs, row["stage1"], task), run.stage("stage1") / MODEL_FILE)
        training.quantize()
        measure("ptq")
        training.stage2()
        measure("stage2")
    accelerator.free_memory()
    shared = {each.get("stage1") for each in plan.rows.values()}
    if task.row in shared:
        kept = first_stage(runs, task.row, task, factor=task.factor)
        shutil.move(run.stage("stage1") / MODEL_FILE, kept)
    shutil.rmtree(folder)
    return {
        **asdict(task),
        "title": row["title"],
        "stages": training.told,
        "scores": scores,
        "validation": validation_dice(scores),
        "seconds": time.perf_counter() - started,
    }


def first_stage(runs: Path, row: str, task: Task, factor: float | None = None) -> Path:
    """Return where the first stage of a row is kept, for the seed and split of a task.

    Without a factor, the one that its search chose: ``chest_grid`` links it there.
    """
    tag = "chosen" if factor is None else f"x{factor:g}"
    return runs / f"{row}-s{task.seed}-d{task.split}-{tag}.safetensors"


def validation_dice(scores: dict[str, Any]) -> float:
    """Return the mean over structures of the last stage's mean validation Dice, without a box."""
    cases = list(scores.values())[-1]["val"]["automatic"]
    means = []
    for name, values in cases.items():
        known = [v for v in values if v is not None]
        if name not in ("lung", "ctr", "ctr_truth") and known:
            means.append(sum(known) / len(known))
    return sum(means) / len(means)


@torch.inference_mode()
def evaluate(segmenter: Segmenter, corpus: Corpus, split: int) -> dict[str, Any]:
    """Measure a model, in float32 in the model frame, on validation and test images.

    Returns
    -------
    Side → prompt (``automatic``: the whole image and the structure's learned prompt; ``box``: the
    exact box of the structure as well) → structure → Dice by image, None where the data set does
    not draw it. ``lung`` is the union of both lungs; ``ctr`` and ``ctr_truth`` are cardiothoracic
    ratios as ``chest.measures`` defines them, where all three are drawn.
    """
    segmenter.eval()
    names = segmenter.structures
    result: dict[str, Any] = {}
    for side in ("val", "test"):
        rows = corpus.at(split, side)
        found: dict[str, dict[str, list[float | None]]] = {"automatic": {}, "box": {}}
        for start in range(0, len(rows), AT_ONCE):
            some = torch.tensor(rows[start : start + AT_ONCE], device=corpus.grey.device)
            for prompt, values in _measured(segmenter, corpus, some, names).items():
                for name, each in values.items():
                    found[prompt].setdefault(name, []).extend(each)
        result[side] = found
    return result


def _measured(
    segmenter: Segmenter, corpus: Corpus, rows: Tensor, names: Sequence[str]
) -> dict[str, dict[str, list[float | None]]]:
    grey, valid = unit(corpus, rows)
    embeddings = segmenter.encode(grey.expand(-1, 3, -1, -1))
    truth, union = corpus.masks[rows], corpus.union[rows]
    drawn, known = corpus.drawn[rows], corpus.known[rows] > 0
    named = torch.arange(len(names), device=rows.device).expand(len(rows), -1)
    whole = whole_boxes(corpus.extent[rows], len(names))
    exact = torch.where(known[:, :, None], exact_boxes(truth), whole)
    sides = [names.index(name) for name in SIDES]
    found = {}
    for prompt, boxes in (("automatic", whole), ("box", exact)):
        logits, _ = segmenter.decode(embeddings, boxes, named)
        masks = (_at_side(logits, truth.shape[-1]) > 0) & (valid > 0)
        dice = _dice(masks, truth)
        values = {
            name: _known(dice[:, i], drawn[:, i] & known[:, i]) for i, name in enumerate(names)
        }
        # With boxes, of images whose lungs are known apart alone.
        there = torch.ones_like(drawn[:, 0]) if prompt == "automatic" else known[:, sides].all(1)
        lungs = masks[:, sides].any(dim=1)
        values["lung"] = _known(_dice(lungs, union), there)
        heart = names.index("heart")
        for key, both, one in (
            ("ctr", lungs, masks[:, heart]),
            ("ctr_truth", union, truth[:, heart]),
        ):
            values[key] = _known(_reach(one) / _widest(both).clamp(min=1), drawn.all(dim=1))
        found[prompt] = values
    return found


def _at_side(logits: Tensor, side: int) -> Tensor:
    if logits.shape[-1] == side:
        return logits
    return torch.nn.functional.interpolate(logits, (side, side), mode="bilinear")


def _dice(masks: Tensor, truth: Tensor) -> Tensor:
    both = (masks & truth).sum(dim=(-2, -1)).double()
    total = masks.sum(dim=(-2, -1)) + truth.sum(dim=(-2, -1))
    return torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0)


def _reach(masks: Tensor) -> Tensor:
    """Return from the first to the last column of masks (B, S, S), over all rows."""
    return _span(masks.any(dim=-2))


def _widest(masks: Tensor) -> Tensor:
    """Return the widest row of masks (B, S, S), from its first to its last pixel."""
    return _span(masks).amax(dim=-1)


def _span(lines: Tensor) -> Tensor:
    filled = lines.float()
    last = filled.shape[-1] - filled.flip(-1).argmax(-1)
    return (last - filled.argmax(-1)) * lines.any(-1)


def _known(values: Tensor, known: Tensor) -> list[float | None]:
    return [
        round(v, 5) if k else None for v, k in zip(values.tolist(), known.tolist(), strict=True)
    ]
