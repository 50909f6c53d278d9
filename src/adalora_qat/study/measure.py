"""Everything a report measures, each part kept in a folder beside the page.

A folder is named after what it measured (the model's hash, the cases, the settings), so a
model that was trained again gets a new one and nothing stale is ever shown; what a stopped
report had finished is read back by the next.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch
from torch import Tensor

from adalora_qat.checkpoint import provenance
from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError
from adalora_qat.evaluate.case_table import TABLE_FORMAT, read_cases
from adalora_qat.evaluate.cases import evaluate_cases
from adalora_qat.evaluate.journal import records_fingerprint
from adalora_qat.evaluate.robustness import (
    JITTERS_PX,
    alterations,
    evaluate_degradations,
    evaluate_prompts,
)
from adalora_qat.evaluate.structured import default_targets, ratio_agreement
from adalora_qat.files import write_json, write_text
from adalora_qat.model.predict import TorchPredictor
from adalora_qat.model.sam import Segmenter
from adalora_qat.predictor import FindsStructures
from adalora_qat.progress import Progress, Watch
from adalora_qat.report.page import anchor
from adalora_qat.study.facts import facts_of, read_facts, write_facts
from adalora_qat.study.models import Model
from adalora_qat.study.study import ModelFacts
from adalora_qat.study.timing import compare_speed

STUDY_FILE: Final = "study.json"
"""Names the evaluations that the last report compared: older ones stay beside them."""
SPEED_ROUNDS: Final = 3
LATENCY_NOTE: Final = (
    "CPU latency: median over {n} images and {rounds} rounds, models in turn, each round in a "
    "fresh process; simulated quantization has none, its integers run in ONNX Runtime."
)


@dataclass(frozen=True)
class Bench:
    """On what, and where, models are measured.

    Attributes
    ----------
    records : the cases.
    target : the mask that is segmented, and shown where there are several.
    folder : where results are kept.
    cpu, jobs : where models run, and threads for reading and measuring.
    targets : every mask that is segmented, ``target`` among them; empty for ``target`` alone.
    box : as for ``evaluate.boxes.parse_box``.
    """

    records: tuple[Record, ...]
    target: str
    folder: Path
    watch: Watch
    cpu: bool = False
    jobs: int = 2
    targets: tuple[str, ...] = ()
    box: str = "oracle"

    @property
    def measured(self) -> tuple[str, ...]:
        """Every mask that is segmented."""
        return self.targets or (self.target,)

    def place(self, part: str, model: Model, records: Sequence[Record]) -> Path:
        """Return the folder of a model's results: its name, and a hash of what decides them."""
        # Other threads or another device add up in another order: answers differ in their last
        # bits, and such results are not gone on with.
        machine = (torch.get_num_threads(), self.cpu or not torch.cuda.is_available())
        cases = records_fingerprint(records, self.measured)
        asked = () if self.box == "oracle" else (self.box,)
        stated = (model.sha256, model.name, cases, machine, *asked)
        tag = hashlib.sha256(repr(stated).encode()).hexdigest()[:10]
        return self.folder / part / f"{anchor(model.name)}-{tag}"


@dataclass(frozen=True)
class Measured:
    """One model's cases, facts and predicted masks (in ``folder/masks``)."""

    model: Model
    cases: pd.DataFrame
    facts: ModelFacts
    folder: Path

    def of(self, target: str) -> Measured:
        """Return what was measured of one target."""
        return replace(self, cases=self.cases[self.cases["target"] == target])


def measure(bench: Bench, models: Sequence[Model]) -> list[Measured]:
    """Evaluate every model on every case; one model in memory at a time."""
    found = []
    for number, model in enumerate(models, start=1):
        bench.watch.phase(f"{model.name} ({number} of {len(models)})")
        folder = bench.place("cases", model, bench.records)
        if (ready := _measured_before(bench, model, folder)) is not None:
            found.append(ready)
            continue
        found.append(
            evaluate_model(
                model,
                bench.records,
                bench.measured,
                folder,
                bench.box,
                cpu=bench.cpu,
                jobs=bench.jobs,
                progress=bench.watch.progress,
                save_masks=True,
            )
        )
    return found


def _measured_before(bench: Bench, model: Model, folder: Path) -> Measured | None:
    """Return a finished evaluation without loading its model: the folder's name vouches for it."""
    known, told = read_facts(folder), folder / "cases.json"
    if known is None or not told.is_file():
        return None
    made = _read(told).get("identity", {})
    if made.get("format") != TABLE_FORMAT or not made.get("masks_saved"):
        return None
    bench.watch.progress(len(bench.records), len(bench.records), "kept from before")
    return Measured(model, read_cases(folder), known[1], folder)


def evaluate_model(
    model: Model,
    records: Sequence[Record],
    targets: Sequence[str] | None,
    folder: Path,
    box: str | None = "oracle",
    *,
    cpu: bool = False,
    jobs: int = 2,
    progress: Progress | None = None,
    save_masks: bool = False,
) -> Measured:
    """Evaluate one model into a folder: its cases, and ``model.json`` beside them.

    Parameters
    ----------
    records, targets : the cases, and the masks that are segmented. None takes the structures that
        the model has learned prompts for, and their union; or else lungs.
    box : as for ``evaluate.boxes.parse_box``; None takes ``automatic`` for a model with
        structures, and ``oracle`` for others.
    cpu, jobs : where the model runs, and threads for reading and measuring.
    save_masks : also write the predicted masks.
    """
    predictor, _ = model.open(cpu=cpu)
    structures = predictor.structures if isinstance(predictor, FindsStructures) else ()
    box = box or ("automatic" if structures else "oracle")
    if targets is None:
        targets = default_targets(structures, records) if structures else ["lung"]
    cases = evaluate_cases(
        predictor, records, targets, box, folder, jobs, progress, save_masks=save_masks
    )
    known = read_facts(folder)
    facts = known[1] if known else facts_of(model)
    if known is None:
        write_facts(folder, model.name, facts, machine_of(model, cpu=cpu))
    return Measured(model, cases, facts, folder)


def summarise(name: str, cases: pd.DataFrame) -> dict[str, Any]:
    """Return a model's row: name, dice_mean, dice_std, iou_mean, n and dropped."""
    dice = cases["dsc"].dropna()
    return {
        "name": name,
        "dice_mean": float(dice.mean()),
        "dice_std": float(dice.std(ddof=1)) if len(dice) > 1 else 0.0,
        "iou_mean": float(cases["iou"].dropna().mean()),
        "n": len(dice),
        "dropped": len(cases) - len(dice),
    }


def summarise_targets(name: str, cases: pd.DataFrame) -> dict[str, Any]:
    """Return a model's row, and where it has several targets one for each beside it.

    Returns
    -------
    As ``summarise``, over all cases; ``targets``: such a row for each target; ``mean``: the mean
    over the targets' means; ``cardiothoracic_ratio``: the error of the ratio from predicted masks
    (n, dropped, bias, sd, mean_absolute, lower and upper limit of agreement), where hearts and
    both lungs are drawn.
    """
    row = summarise(name, cases)
    targets = list(dict.fromkeys(cases["target"]))
    if len(targets) > 1:
        rows = [summarise(target, cases[cases["target"] == target]) for target in targets]
        row["targets"] = rows
        row["mean"] = {
            key: float(sum(each[key] for each in rows) / len(rows))
            for key in ("dice_mean", "iou_mean")
        }
    found = ratio_agreement(cases)
    if found is not None:
        row["cardiothoracic_ratio"] = {
            "mean_absolute": float(abs(found.difference).mean()),
            **{
                key: getattr(found, key) for key in ("n", "dropped", "bias", "sd", "lower", "upper")
            },
        }
    return row


def machine_of(model: Model, *, cpu: bool) -> dict[str, Any]:
    """Return the machine, and which of its devices runs a model."""
    machine: dict[str, Any] = provenance({})["machine"]
    cuda = not cpu and model.kind != "onnx" and machine["gpu"] is not None
    return {**machine, "device": "cuda" if cuda else "cpu"}


def forecast(
    bench: Bench, found: Sequence[Measured], jitter_cases: int, robustness_cases: int
) -> str:
    """Say how long the sweeps will take, from the seconds a case that were just measured.

    Sweeps that are kept from before are not counted; "" if nothing is left to do.
    """
    seconds, parts = 0.0, []
    for count, part, settings, what in (
        (robustness_cases, "degraded", _degradations(), "alterations"),
        (jitter_cases, "boxes", JITTERS_PX, "boxes"),
    ):
        records = some(bench.records, count) if count else []
        todo = [
            m for m in found
            if records and not _sweep_file(bench, part, m.model, records, settings).is_file()
        ]  # fmt: skip
        if not todo:
            continue
        steps = len(settings) + 1
        for m in todo:
            # A PyTorch model encodes an image once for all of its boxes.
            once = part == "boxes" and m.model.kind != "onnx"
            case = float(m.cases["seconds"].median())
            seconds += 0.0 if math.isnan(case) else case * len(records) * (1 if once else steps)
        many = (counted(len(todo), "model"), counted(len(records), "case"))
        parts.append(f"{many[0]} × {many[1]} × {steps} {what}")
    return f"about {max(1, round(seconds / 60))} min: {' + '.join(parts)}" if parts else ""


def counted(n: int, what: str) -> str:
    """Return a number of things: "1 case", "2 cases"."""
    return f"{n} {what}{'s' * (n != 1)}"


def sweep_prompts(bench: Bench, models: Sequence[Model], count: int) -> pd.DataFrame:
    """Evaluate models with jittered boxes and without any, on ``count`` cases."""
    return _sweep(bench, models, count, "boxes", evaluate_prompts, JITTERS_PX)


def sweep_degradations(bench: Bench, models: Sequence[Model], count: int) -> pd.DataFrame:
    """Evaluate models on degraded images, on ``count`` cases."""
    return _sweep(bench, models, count, "degraded", evaluate_degradations, _degradations())


def _degradations() -> list[str]:
    """Return every strength of every kind; the image as read is measured beside them."""
    return [alteration.name for alteration in alterations()]


def _sweep_file(
    bench: Bench, part: str, model: Model, records: Sequence[Record], settings: Sequence[object]
) -> Path:
    tag = hashlib.sha256(repr((TABLE_FORMAT, list(settings))).encode()).hexdigest()[:10]
    return bench.place(part, model, records) / f"sweep-{tag}.csv"


def some(records: Sequence[Record], count: int) -> list[Record]:
    """Return ``count`` records spread evenly over sources and classes, the same each time."""
    ordered = sorted(records, key=lambda r: (r.source, str(r.label), r.id))
    if count >= len(ordered):
        return ordered
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]


def latencies(bench: Bench, models: Sequence[Model], count: int) -> tuple[Mapping[str, float], int]:
    """Time the models that run as they ship, in turn, on this machine's CPU.

    Returns
    -------
    Name → median ms an image, and the number of images. Simulated quantization is not timed:
    its integers run elsewhere. Nor are pretrained weights: their architecture is there already.
    """
    files = {
        m.name: m.file
        for m in models
        if m.file is not None and (m.kind == "onnx" or not m.quantized)
    }
    records = some(bench.records, count)
    if not files or not records:
        return {}, 0
    stated = sorted((m.name, m.sha256) for m in models if m.name in files)
    images = [record.image for record in records]
    tag = hashlib.sha256(repr((stated, images, SPEED_ROUNDS)).encode()).hexdigest()[:10]
    kept = bench.folder / "speed" / f"{tag}.json"
    if not kept.is_file():
        bench.watch.phase(f"CPU latency of {len(files)} models")
        write_json(kept, compare_speed(files, images, SPEED_ROUNDS, bench.watch.progress))
    rows = _read(kept)["models"]
    return {name: 1000 * float(row["median_s"]) for name, row in rows.items()}, len(images)


def _sweep(
    bench: Bench,
    models: Sequence[Model],
    count: int,
    part: str,
    evaluate: Callable[..., pd.DataFrame],
    settings: Sequence[object],
) -> pd.DataFrame:
    records = some(bench.records, count)
    tables = []
    for model in models:
        # Written last: a finished sweep needs neither its model nor its parts again.
        whole = _sweep_file(bench, part, model, records, settings)
        out = whole.parent
        if not whole.is_file():
            bench.watch.phase(f"{model.name}: {part}, {len(records)} cases")
            predictor, segmenter = model.open(cpu=bench.cpu)
            if segmenter is not None and evaluate is evaluate_prompts:
                # The images stay, only boxes move. One more is the evaluation's own probe.
                predictor = remembering(segmenter, model.name, len(records) + 1)
            steps = (len(settings) + 1) * len(records)
            told, jobs = _as_one(bench.watch.progress, steps), bench.jobs
            found = evaluate(predictor, records, [bench.target], out=out, progress=told, jobs=jobs)
            bench.watch.progress(steps, steps, part)
            write_text(whole, found.to_csv(index=False, lineterminator="\n"))
        tables.append(read_cases(whole))
    return pd.concat(tables, ignore_index=True)


class RememberingEncoder:
    """A segmenter's encoder that keeps the embeddings of the images it saw last.

    It takes nearly all of a model's time and does not see the box, of which a sweep tries many.

    Parameters
    ----------
    segmenter : in eval mode; answers are the same to the bit.
    most : embeddings kept (4 MB each for LiteMedSAM); the oldest goes first.
    """

    def __init__(self, segmenter: Segmenter, most: int) -> None:
        self.segmenter = segmenter
        self.most = most
        self.encoded = 0
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, images: Tensor) -> Tensor:
        """Map (B, 3, S, S) to embeddings (B, D, E, E)."""
        key = hashlib.sha256(images.cpu().numpy().tobytes()).hexdigest()
        if key not in self._kept:
            self._kept[key] = self.segmenter.encode(images)
            self.encoded += 1
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)
        return self._kept[key]


def remembering(segmenter: Segmenter, name: str, most: int) -> TorchPredictor:
    """Return a predictor that encodes each of ``most`` images once."""
    return TorchPredictor(segmenter, name, RememberingEncoder(segmenter, most))


def _as_one(progress: Progress, steps: int) -> Progress:
    """Return a progress callback that adds up the settings of a sweep, "name: case" each."""
    seen: dict[str, int] = {}

    def told(done: int, total: int, what: str) -> None:
        seen[what.partition(": ")[0]] = done
        # The last step is told when the sweep is over: what a resumed one read back is not seen.
        progress(min(sum(seen.values()), steps - 1), steps, what)

    return told


def _read(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is damaged; delete it, and it is measured again") from error
    return found
