"""Everything a report measures, each part kept in a folder beside the page.

A folder is named after what it measured (the model's hash, the cases, the settings), so a
model that was trained again gets a new one and nothing stale is ever shown; what a stopped
report had finished is read back by the next.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import pandas as pd
import torch

from adalora_qat.checkpoint import provenance
from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError
from adalora_qat.evaluate.case_table import TABLE_FORMAT, read_cases
from adalora_qat.evaluate.cases import evaluate_cases
from adalora_qat.evaluate.fingerprint import records_fingerprint
from adalora_qat.evaluate.robustness import (
    JITTERS_PX,
    alterations,
    evaluate_degradations,
    evaluate_prompts,
)
from adalora_qat.files import write_json, write_text
from adalora_qat.progress import Progress
from adalora_qat.study.bench import compare_speed
from adalora_qat.study.embeddings import remembering
from adalora_qat.study.facts import facts_of, read_facts, write_facts
from adalora_qat.study.models import Model
from adalora_qat.study.study import ModelFacts

STUDY_FILE: Final = "study.json"
"""Names the evaluations that the last report compared: older ones stay beside them."""
SPEED_ROUNDS: Final = 3
LATENCY_NOTE: Final = (
    "CPU latency: median over {n} images and {rounds} rounds, models in turn, each round in a "
    "fresh process; simulated quantization has none, its integers run in ONNX Runtime."
)


class Watch(Protocol):
    """Who is told what is going on."""

    def phase(self, name: str) -> None:
        """Begin a phase."""

    def progress(self, done: int, total: int, what: str) -> None:
        """Report work: done of total."""


@dataclass(frozen=True)
class Bench:
    """On what, and where, models are measured.

    Attributes
    ----------
    records : the cases.
    target : the mask that is segmented.
    folder : where results are kept.
    cpu, jobs : where models run, and threads for reading and measuring.
    """

    records: tuple[Record, ...]
    target: str
    folder: Path
    watch: Watch
    cpu: bool = False
    jobs: int = 2

    def place(self, part: str, model: Model, records: Sequence[Record]) -> Path:
        """Return the folder of a model's results: its name, and a hash of what decides them."""
        # Other threads or another device add up in another order: answers differ in their last
        # bits, and such results are not gone on with.
        machine = (torch.get_num_threads(), self.cpu or not torch.cuda.is_available())
        cases = records_fingerprint(records, [self.target])
        stated = (model.sha256, model.name, cases, machine)
        tag = hashlib.sha256(repr(stated).encode()).hexdigest()[:10]
        return self.folder / part / f"{slug(model.name)}-{tag}"


@dataclass(frozen=True)
class Measured:
    """One model's cases, facts and predicted masks (in ``folder/masks``)."""

    model: Model
    cases: pd.DataFrame
    facts: ModelFacts
    folder: Path


def slug(text: str) -> str:
    """Return a name fit for files and anchors, ``[a-z0-9-]``."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "model"


def measure(bench: Bench, models: Sequence[Model]) -> list[Measured]:
    """Evaluate every model on every case with oracle boxes; one model in memory at a time."""
    found = []
    for number, model in enumerate(models, start=1):
        bench.watch.phase(f"{model.name} ({number} of {len(models)})")
        predictor, segmenter = model.open(cpu=bench.cpu)
        folder = bench.place("cases", model, bench.records)
        cases = evaluate_cases(
            predictor,
            bench.records,
            [bench.target],
            "oracle",
            folder,
            bench.jobs,
            bench.watch.progress,
            save_masks=True,
        )
        known = read_facts(folder)
        facts = known[1] if known else facts_of(model, predictor, segmenter)
        if known is None:
            write_facts(folder, model.name, facts, machine_of(model, cpu=bench.cpu))
        found.append(Measured(model, cases, facts, folder))
    return found


def machine_of(model: Model, *, cpu: bool) -> dict[str, Any]:
    """Return the machine, and which of its devices runs a model."""
    machine: dict[str, Any] = provenance({})["machine"]
    cuda = not cpu and model.kind != "onnx" and machine["gpu"] is not None
    return {**machine, "device": "cuda" if cuda else "cpu"}


def sweep_prompts(bench: Bench, models: Sequence[Model], count: int) -> pd.DataFrame:
    """Evaluate models with jittered boxes and without any, on ``count`` cases."""
    return _sweep(bench, models, count, "boxes", evaluate_prompts, JITTERS_PX)


def sweep_degradations(bench: Bench, models: Sequence[Model], count: int) -> pd.DataFrame:
    """Evaluate models on degraded images, on ``count`` cases."""
    # Every strength of every kind, beside the image as read.
    settings = [alteration.name for alteration in alterations()]
    return _sweep(bench, models, count, "degraded", evaluate_degradations, settings)


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
    tag = hashlib.sha256(repr((TABLE_FORMAT, list(settings))).encode()).hexdigest()[:10]
    tables = []
    for model in models:
        out = bench.place(part, model, records)
        # Written last: a finished sweep needs neither its model nor its parts again.
        whole = out / f"sweep-{tag}.csv"
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
