"""What ``bench`` compares: the float32 forms of a run beside its quantized one, and the table.

A speed stands beside the accuracy it was had at, and a ratio has both sides from one run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from adalora_qat.checkpoint import MODEL_FILE, RunFolder
from adalora_qat.config import ExportConfig
from adalora_qat.corpus.records import Record
from adalora_qat.errors import CheckpointError, DataError, ExportError
from adalora_qat.evaluate.boxes import BoxPrompt
from adalora_qat.evaluate.mask_files import load_truth
from adalora_qat.evaluate.metrics import dice
from adalora_qat.export.run import export_stage
from adalora_qat.imaging.geometry import load_image
from adalora_qat.phantom.phantom import write_phantoms
from adalora_qat.progress import Progress
from adalora_qat.runtime.metadata import ModelMetadata
from adalora_qat.study.timing import BenchCase, Timing, time_models

PYTORCH, RUNTIME = "PyTorch FP32", "ONNX FP32"
TARGET = "lung"
# Phantoms that no demonstration trains on: it takes the first few hundred seeds.
_FIRST_PHANTOM = 1_000_000


@dataclass(frozen=True)
class BenchModel:
    """One model of the comparison.

    Attributes
    ----------
    file : a stage's ``model.safetensors``, run by PyTorch, or an ONNX file.
    policy : the quantization policy, ``none`` for float32.
    size_bytes : of the file that would be shipped.
    refusal : why ``export`` would not ship it, empty if it would.
    """

    name: str
    file: Path
    policy: str
    size_bytes: int
    refusal: str = ""

    @property
    def runtime(self) -> str:
        """Who runs it."""
        return "ONNX Runtime" if self.file.suffix == ".onnx" else "PyTorch"


def phantom_records(folder: Path, count: int) -> list[Record]:
    """Write phantoms into ``folder`` and return them as records."""
    write_phantoms(folder, count, _FIRST_PHANTOM)
    organs = ("left_lung", "right_lung")
    return [
        Record(
            f"phantom/{image.stem}",
            "phantom",
            image,
            {organ: folder / "masks" / organ / image.name for organ in organs},
        )
        for image in sorted((folder / "images").iterdir())
    ]


def cases_of(records: Sequence[Record], target: str = TARGET) -> list[BenchCase]:
    """Return the records with their true masks, and the exact boxes of these as prompts."""
    cases = []
    for record in records:
        truth, _ = load_truth(record, target, load_image(record.image).shape[:2])
        box = BoxPrompt().box(truth)
        corners = None if box is None else (box[0], box[1], box[2], box[3])
        cases.append(BenchCase(record.image, corners, truth))
    return cases


def bench_models(
    given: Sequence[Path], folder: Path, records: Sequence[Record], progress: Progress | None = None
) -> list[BenchModel]:
    """Return the models to compare, float32 first; runs are exported into ``folder``.

    Parameters
    ----------
    given : ONNX files, and run folders. A run stands for its stage 1 in PyTorch and in ONNX,
        and for its furthest quantized stage in ONNX.
    records : images with lung masks, for the parity gate of the exports.

    Raises
    ------
    CheckpointError
        If one is neither, or a run has no finished stage 1.
    ExportError
        If a run cannot be exported. An export that the parity gate would refuse is measured
        all the same, and said to be refused.
    """
    models: list[BenchModel] = []
    for index, path in enumerate(given):
        if path.is_dir():
            models += _of_run(path, folder / str(index), records, progress)
        elif path.suffix == ".onnx":
            models.append(_of_file(path))
        else:
            raise CheckpointError(f"{path} is neither a run folder nor an ONNX file; give these")
    if len({path.name for path in given}) < len(given) or sum(p.is_dir() for p in given) > 1:
        models = [_named(model, given, folder) for model in models]
    models.sort(key=lambda model: (model.policy != "none", model.runtime != "PyTorch"))
    names = [model.name for model in models]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise DataError(f"two models are called {', '.join(sorted(twice))}; give each once")
    return models


def bench(
    models: Sequence[BenchModel],
    cases: Sequence[BenchCase],
    rounds: int = 3,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure the models in turn and put them side by side.

    Returns
    -------
    ``rows``, one a model: name, policy, runtime, size_bytes, load_s, median_s, p10_s, p90_s,
    peak_mb, n, dice_mean (with the truth, over ``dice_n`` masks; None without truth),
    ``ratios`` (to each float32 model: smaller, faster, less_memory) and ``agreement`` with the
    ``reference`` (mean Dice of the masks, share of equal pixels); ``words``, what there is to
    say, slower models named.

    Raises
    ------
    DataError
        If there is no image to time.
    """
    timed = time_models({m.name: m.file for m in models}, cases, rounds, threads, progress)
    plain = [model.name for model in models if model.policy == "none"]
    reference = plain[0] if plain else models[0].name
    rows = [_row(model, timed[model.name], timed[reference], cases) for model in models]
    by_name = {row["name"]: row for row in rows}
    for row in rows:
        row["ratios"] = {
            name: {
                "smaller": by_name[name]["size_bytes"] / row["size_bytes"],
                "faster": by_name[name]["median_s"] / row["median_s"],
                "less_memory": by_name[name]["peak_mb"] / row["peak_mb"],
            }
            for name in plain
            if name != row["name"]
        }
    refused = [f"{m.name} would not be shipped: {m.refusal}" for m in models if m.refusal]
    return {"rows": rows, "reference": reference, "words": in_words(rows) + refused}


def in_words(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which quantized model is faster or slower than its float32 form, and by how much."""
    said = []
    plain = [row for row in rows if row["policy"] == "none"]
    for row in (row for row in rows if row["policy"] != "none"):
        for other in plain:
            factor = row["median_s"] / other["median_s"]
            overlap = row["p10_s"] <= other["p90_s"] and other["p10_s"] <= row["p90_s"]
            unsure = "; the timings overlap (10th to 90th percentile)" if overlap else ""
            if factor > 1:
                said.append(
                    f"{row['name']} is SLOWER than {other['name']} on this machine: {factor:.2f} "
                    f"times its median latency{unsure}. Take it for its size, not for speed"
                )
            else:
                said.append(
                    f"{row['name']} takes 1/{1 / factor:.2f} of the time of {other['name']}{unsure}"
                )
    if not plain:
        said.append("no float32 model was given, so nothing says what quantization costs or gains")
    return said


def _row(
    model: BenchModel, one: Timing, reference: Timing, cases: Sequence[BenchCase]
) -> dict[str, Any]:
    pairs = list(zip(one.masks, reference.masks, strict=True))
    pixels = sum(mask.size for mask in one.masks)
    truths = [
        (case.truth, mask)
        for case, mask in zip(cases, one.masks, strict=True)
        if case.truth is not None
    ]
    return {
        "name": model.name,
        "policy": model.policy,
        "runtime": model.runtime,
        "size_bytes": model.size_bytes,
        **one.figures(),
        "dice_mean": float(np.mean([dice(*pair) for pair in truths])) if truths else None,
        "dice_n": len(truths),
        "agreement": {
            "dice_mean": float(np.mean([dice(other, mask) for mask, other in pairs])),
            "equal_pixels": sum(int((mask == other).sum()) for mask, other in pairs) / pixels,
        },
    }


def _of_run(
    path: Path, folder: Path, records: Sequence[Record], progress: Progress | None
) -> list[BenchModel]:
    run = RunFolder.open(path)
    if not run.finished("stage1"):
        raise CheckpointError(f"{path} has no finished stage 1; run `adalora-qat train` to its end")
    trained = run.stage("stage1") / MODEL_FILE
    stages = ["stage1", *[stage for stage in ("stage2", "ptq") if run.finished(stage)][:1]]
    exported = [_exported(run, stage, folder, records, progress) for stage in stages]
    return [BenchModel(PYTORCH, trained, "none", trained.stat().st_size), *exported]


def _exported(
    run: RunFolder,
    stage: str,
    folder: Path,
    records: Sequence[Record],
    progress: Progress | None,
) -> BenchModel:
    """Export a stage anew: a file that lies in the run folder may be of another training."""
    gate = run.config.export
    measuring = run.config.model_copy(
        update={"export": ExportConfig(min_dice=0, min_pixel_agreement=0)}
    )
    made = export_stage(
        replace(run, config=measuring), stage, folder / f"{stage}.onnx", records, progress
    )
    refusal = ""
    try:
        made.parity.check(gate)
    except ExportError as error:
        refusal = str(error)
    policy = "none" if stage == "stage1" else run.config.quantize.policy
    name = RUNTIME if stage == "stage1" else f"ONNX {Path(policy).stem} ({stage})"
    return BenchModel(name, made.path, policy, made.size_bytes, refusal)


def _of_file(path: Path) -> BenchModel:
    policy = ModelMetadata.of(path.read_bytes(), str(path)).policy
    return BenchModel(path.name, path, policy, path.stat().st_size)


def _named(model: BenchModel, given: Sequence[Path], folder: Path) -> BenchModel:
    """Put the folder before a name that another model has too."""
    owner = model.file.parent.name
    if model.file.is_relative_to(folder):
        owner = given[int(model.file.parent.name)].name
    elif model.file.suffix != ".onnx":
        owner = model.file.parent.parent.name
    return replace(model, name=f"{owner}/{model.name}")
