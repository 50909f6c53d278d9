"""The main job from end to end, on phantoms or on real radiographs.

Every phase reads what an earlier one wrote and leaves an artefact of its own, so that an
interrupted demo, started again, goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from adalora_qat.baselines.model_file import described
from adalora_qat.baselines.predict import open_baseline
from adalora_qat.checkpoint import MODEL_FILE, RunFolder, load_model, provenance
from adalora_qat.config import RunConfig
from adalora_qat.corpus.prepare import prepare
from adalora_qat.corpus.records import Record
from adalora_qat.corpus.sources import Source
from adalora_qat.corpus.splits import read_manifest, records_of
from adalora_qat.evaluate.cases import evaluate_cases
from adalora_qat.evaluate.mask_files import mask_path
from adalora_qat.export.run import export_stage
from adalora_qat.files import write_json
from adalora_qat.imaging.geometry import load_image, load_mask, to_grey_uint8
from adalora_qat.model.predict import TorchPredictor
from adalora_qat.model.weights import build
from adalora_qat.phantom.phantom import write_phantoms
from adalora_qat.predictor import Predictor
from adalora_qat.recipe import dump_config, load_config
from adalora_qat.report.figures import ranks_by_layer
from adalora_qat.report.page import Case, write_report
from adalora_qat.report.style import save_figure
from adalora_qat.runtime.onnx_predictor import OnnxPredictor
from adalora_qat.study.bench import compare_speed
from adalora_qat.study.run_report import rank_history, run_content
from adalora_qat.train.stages import Resources, Training
from adalora_qat.train.state import StepReport

TARGET = "lung"
# Few phantoms make small parts: a quarter for the test, so that its mean means something.
PHANTOM_FRACTIONS = (0.6, 0.15, 0.25)


class Watch(Protocol):
    """Who is told what is going on."""

    def phase(self, name: str) -> None:
        """Begin a phase."""

    def on_step(self, report: StepReport) -> None:
        """Report a training step."""

    def progress(self, done: int, total: int, what: str) -> None:
        """Report other work."""


@dataclass
class Clock:
    """Seconds by phase, kept on disk so that a resumed demo reports the whole of its time."""

    path: Path
    watch: Watch
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.is_file():
            self.seconds = json.loads(self.path.read_text("utf-8"))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase and tell the watcher."""
        self.watch.phase(name.replace("_", " "))
        started = time.perf_counter()
        yield
        spent = time.perf_counter() - started
        self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 2)
        write_json(self.path, self.seconds)


def run_demo(
    out: Path,
    *,
    sources: Mapping[str, Path | Source],
    count: int,
    seed: int,
    overrides: Sequence[str],
    cpu: bool,
    watch: Watch,
) -> dict[str, Any]:
    """Run the whole method and write ``summary.json``, ``report.html`` and the INT8 model.

    Parameters
    ----------
    sources : real data sets, as ``prepare`` takes them; none draws ``count`` phantoms.
    overrides : ``section.key=value`` over the recipe (``demo``, or ``litemedsam`` on real data).

    Returns
    -------
    The summary, as written.
    """
    recipe = "litemedsam" if sources else "demo"
    config = load_config(recipe, (f"seed={seed}", *overrides))
    # Decoder fine-tuning is the paper's baseline: the same recipe with the encoder frozen.
    frozen = ("stage1.encoder=frozen", "adapt.method=none", "quantize.policy=none")
    baseline = load_config(recipe, (f"seed={seed}", *overrides, *frozen, "stage2.epochs=0"))
    run = RunFolder.create(out, config)
    clock = Clock(out / "seconds.json", watch)
    with clock.phase("data"):
        manifest = _data(out, sources, count, config, watch)
    records = {split: records_of(manifest, split, TARGET) for split in ("train", "val", "test")}
    resources = Resources(cpu=cpu, on_step=watch.on_step, progress=watch.progress)
    shared = Resources(cpu, cache=out / "cache", on_step=watch.on_step, progress=watch.progress)
    with clock.phase("decoder_only"):
        decoder_only = RunFolder.create(out / "decoder_only", baseline)
        Training(decoder_only, records["train"], records["val"], shared).stage1()
    training = Training(run, records["train"], records["val"], resources)
    with clock.phase("stage1"):
        training.stage1()
        draw_ranks(run.path)
    with clock.phase("ptq"):
        training.quantize()
    with clock.phase("stage2"):
        training.stage2()
    with clock.phase("export"):
        fp32 = export_stage(run, "stage1", out / "fp32.onnx", records["val"], watch.progress)
        int8 = export_stage(run, "stage2", out / "int8.onnx", records["val"], watch.progress)
    with clock.phase("evaluation"):
        tables = _evaluate(out, _predictors(run, decoder_only), records["test"], watch)
    with clock.phase("speed"):
        speed = compare_speed(
            {"pytorch_fp32": run.stage("stage1") / MODEL_FILE, "onnx_fp32": out / "fp32.onnx",
             "int8": out / "int8.onnx"},
            [record.image for record in records["test"][:3]],
            progress=watch.progress,
        )  # fmt: skip
    rows = [summarise(name, table) for name, table in tables.items()]
    summary = {
        "rows": rows,
        "sizes_bytes": {
            "fp32": (out / "fp32.onnx").stat().st_size,
            "int8_onnx": (out / "int8.onnx").stat().st_size,
        },
        "ranks": ranks_of(run),
        "parity": int8.parity.figures(),
        "parity_fp32": fp32.parity.figures(),
        "kernels": dict(int8.kernels),
        "speed": speed,
        "seconds": clock.seconds,
        "seed": seed,
        "data": {"sources": sorted(sources) or ["phantom"],
                 **{split: len(part) for split, part in records.items()}},
        **provenance({}),
    }  # fmt: skip
    write_json(out / "summary.json", summary)
    _report(out, config, summary, records["test"], tables)
    return summary


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


def stage_predictor(path: Path, name: str | None = None, *, cpu: bool = True) -> Predictor:
    """Load a run folder's furthest stage, or one stage's model, as a predictor."""
    file = path
    if path.is_dir():
        run = RunFolder.open(path)
        done = [stage for stage in ("stage2", "ptq", "stage1") if run.finished(stage)]
        file = run.stage(done[0] if done else "stage1") / MODEL_FILE
    if described(file) is not None:
        return open_baseline(file, name, cpu=cpu)
    segmenter, description = load_model(file)
    if not cpu:
        import torch

        segmenter.to("cuda" if torch.cuda.is_available() else "cpu")
    return TorchPredictor(segmenter, name or description["stage"])


def _data(
    out: Path, sources: Mapping[str, Path | Source], count: int, config: RunConfig, watch: Watch
) -> pd.DataFrame:
    folder = out / "data"
    if not (folder / "manifest.parquet").is_file():
        if sources:
            prepare(sources, folder, config.seed, progress=watch.progress)
        else:
            write_phantoms(out / "phantoms", count, config.seed, 256, watch.progress)
            phantom = {"phantom": out / "phantoms"}
            prepare(phantom, folder, config.seed, PHANTOM_FRACTIONS, progress=watch.progress)
    return read_manifest(folder)


def _predictors(run: RunFolder, decoder_only: RunFolder) -> Iterator[Predictor]:
    """Yield the predictors one after another: one model in memory at a time."""
    pretrained, _ = build(run.config.model)
    yield TorchPredictor(pretrained, "zero_shot")
    yield stage_predictor(decoder_only.stage("stage1") / MODEL_FILE, "decoder_only")
    yield stage_predictor(run.stage("stage1") / MODEL_FILE, "stage1")
    yield stage_predictor(run.stage("ptq") / MODEL_FILE, "ptq")
    yield stage_predictor(run.stage("stage2") / MODEL_FILE, "qat")
    yield OnnxPredictor(run.path / "int8.onnx", name="int8_runtime")


def _evaluate(
    out: Path, predictors: Iterator[Predictor], records: Sequence[Record], watch: Watch
) -> dict[str, pd.DataFrame]:
    tables = {}
    for predictor in predictors:
        watch.phase(f"  {predictor.name}")
        tables[predictor.name] = evaluate_cases(
            predictor,
            records,
            [TARGET],
            "oracle",
            out / "evaluation" / predictor.name,
            progress=watch.progress,
            save_masks=True,
        )
    return tables


def ranks_of(run: RunFolder) -> dict[str, Any]:
    """Return the ranks by layer before the first and after the last pruning."""
    events = json.loads((run.stage("stage1") / "ranks.json").read_text("utf-8"))
    return {"before": events[0]["ranks_before"], "after": events[-1]["ranks"]} if events else {}


def draw_ranks(run: Path) -> list[Path]:
    """Draw ``stage1/ranks.png`` (and .svg, .pdf): ranks by layer and pruning.

    Returns
    -------
    The files; none where nothing was pruned (LoRA, a frozen encoder).
    """
    ranks = rank_history(run)
    return [] if ranks.empty else save_figure(ranks_by_layer(ranks), run / "stage1" / "ranks")


def _report(
    out: Path,
    config: RunConfig,
    summary: Mapping[str, Any],
    records: Sequence[Record],
    tables: Mapping[str, pd.DataFrame],
) -> None:
    content = run_content(
        "AdaLoRA-QAT, from pretrained weights to INT8",
        "Stage 1 adapts the encoder at low rank and trains the decoder; stage 2 fine-tunes the "
        "model as integers; what is shipped runs as INT8 in ONNX Runtime.",
        summary,
        out,
        [_case(out, record, tables) for record in records],
        {"configuration": dump_config(config)},
    )
    write_report(content, out / "report.html")


def _case(out: Path, record: Record, tables: Mapping[str, pd.DataFrame]) -> Case:
    image = to_grey_uint8(load_image(record.image))
    truth = None
    for part in record.mask_parts(TARGET):
        mask = load_mask(part)
        truth = mask if truth is None else truth | mask
    masks, metrics = {}, {}
    for label, name in (("FP32", "stage1"), ("INT8", "int8_runtime")):
        masks[label] = load_mask(mask_path(out / "evaluation" / name, record.id, TARGET))
        table = tables[name].set_index("id")
        metrics[label] = {
            key: float(table[key].to_numpy()[table.index.get_loc(record.id)])
            for key in ("dsc", "iou", "nsd_deepmind2d_2px")
        }
    facts = {"source": record.source, **({"class": record.label} if record.label else {})}
    return Case(record.id, image, truth, masks, metrics, facts)
