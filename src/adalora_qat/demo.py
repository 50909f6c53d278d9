"""The main job from end to end, on phantoms or on real radiographs.

Every phase reads what an earlier one wrote and leaves an artefact of its own, so that an
interrupted demo, started again, goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pandas as pd

from adalora_qat.checkpoint import MODEL_FILE, RunFolder, provenance
from adalora_qat.config import RunConfig
from adalora_qat.corpus.prepare import prepare
from adalora_qat.corpus.records import Record
from adalora_qat.corpus.sources import Source
from adalora_qat.corpus.splits import read_manifest, records_of
from adalora_qat.errors import UserError
from adalora_qat.export.run import export_stage
from adalora_qat.files import write_json
from adalora_qat.phantom.phantom import write_phantoms
from adalora_qat.progress import Clock, Watch
from adalora_qat.recipe import dump_config, load_config
from adalora_qat.report.page import Case, write_report
from adalora_qat.study.facts import write_run_facts
from adalora_qat.study.history import draw_ranks, ranks_of
from adalora_qat.study.measure import Measured, evaluate_model, summarise
from adalora_qat.study.models import Model, onnx_model, pretrained, stage_model
from adalora_qat.study.sections import load_case
from adalora_qat.study.study_report import run_content
from adalora_qat.study.timing import compare_speed
from adalora_qat.train.preflight import check_recipe
from adalora_qat.train.stages import Resources, Training
from adalora_qat.train.state import StepReport

TARGET: Final = "lung"
# A quarter for the test: of few phantoms, a tenth would be too few for a mean.
PHANTOM_FRACTIONS: Final = (0.6, 0.15, 0.25)
# Decoder fine-tuning is the paper's baseline: the same recipe with the encoder frozen.
FROZEN: Final = (
    "stage1.encoder=frozen", "adapt.method=none", "quantize.policy=none", "stage2.epochs=0",
)  # fmt: skip
SHOWN_METRICS: Final = ("dsc", "iou", "nsd_deepmind2d_2px")


def run_demo(
    out: Path,
    *,
    sources: Mapping[str, Path | Source],
    count: int,
    seed: int,
    overrides: Sequence[str],
    cpu: bool,
    watch: Watch,
    on_step: Callable[[StepReport], None] | None = None,
) -> dict[str, Any]:
    """Run the whole method and write ``summary.json``, ``report.html`` and the INT8 model.

    Parameters
    ----------
    sources : real data sets, as ``prepare`` takes them; none draws ``count`` phantoms.
    overrides : ``section.key=value`` over the recipe (``demo``, or ``litemedsam`` on real data).
    on_step : told after each optimizer step.

    Returns
    -------
    The summary, as written.
    """
    recipe, seeded = "litemedsam" if sources else "demo", (f"seed={seed}", *overrides)
    config = load_config(recipe, seeded)
    check_recipe(config)
    run = RunFolder.create(out, config)
    clock = Clock(out / "seconds.json", watch)
    with clock.phase("data"):
        manifest = _data(out, sources, count, run.config, watch)
    records = {split: records_of(manifest, split, TARGET) for split in ("train", "val", "test")}
    resources = Resources(cpu, cache=out / "cache", on_step=on_step, progress=watch.progress)
    with clock.phase("decoder_only"):
        decoder_only = RunFolder.create(
            out / "decoder_only", load_config(recipe, (*seeded, *FROZEN))
        )
        Training(decoder_only, records["train"], records["val"], resources).stage1()
        write_run_facts(decoder_only)
    training = Training(run, records["train"], records["val"], resources)
    with clock.phase("stage1"):
        training.stage1()
        write_run_facts(run)
        draw_ranks(out)
    with clock.phase("ptq"):
        training.quantize()
        write_run_facts(run)
    with clock.phase("stage2"):
        training.stage2()
        write_run_facts(run)
    with clock.phase("export"):
        fp32 = export_stage(run, "stage1", out / "fp32.onnx", records["val"], watch.progress)
        int8 = export_stage(run, "stage2", out / "int8.onnx", records["val"], watch.progress)
    with clock.phase("evaluation"):
        found = _evaluate(run, decoder_only, records["test"], watch)
    with clock.phase("speed"):
        speed = compare_speed(
            {"pytorch_fp32": run.stage("stage1") / MODEL_FILE, "onnx_fp32": fp32.path,
             "int8": int8.path},
            [record.image for record in records["test"][:3]],
            # Two turns of three images: a third would take the demonstration past five minutes.
            rounds=2,
            progress=watch.progress,
        )  # fmt: skip
    summary = {
        "rows": [summarise(name, each.cases) for name, each in found.items()],
        "sizes_bytes": {"fp32": fp32.size_bytes, "int8_onnx": int8.size_bytes},
        "ranks": ranks_of(out),
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
    content = run_content(
        "AdaLoRA-QAT, from pretrained weights to INT8",
        "Stage 1 adapts the encoder at low rank and trains the decoder; stage 2 fine-tunes the "
        "model as integers; what is shipped runs as INT8 in ONNX Runtime.",
        summary,
        out,
        shown_cases(records["test"], found),
        {"configuration": dump_config(run.config)},
    )
    write_report(content, out / "report.html")
    return summary


def shown_cases(records: Sequence[Record], found: Mapping[str, Measured]) -> list[Case]:
    """Return the test images with the masks of stage 1 and of the model that ships."""
    shown = {"FP32": found["stage1"], "INT8": found["int8_runtime"]}
    cases = (load_case(record, TARGET, shown, SHOWN_METRICS) for record in records)
    return [replace(case, box_xyxy=None) for case in cases if case is not None]


def _data(
    out: Path, sources: Mapping[str, Path | Source], count: int, config: RunConfig, watch: Watch
) -> pd.DataFrame:
    folder = out / "data"
    # The seed is part of the configuration, which the run folder holds against its own.
    paths = {n: s.path if isinstance(s, Source) else s for n, s in sorted(sources.items())}
    asked: dict[str, Any] = {name: str(path.resolve()) for name, path in paths.items()}
    _same_data(out / "demo_data.json", asked or {"phantoms": count}, out)
    if not (folder / "manifest.parquet").is_file():
        if sources:
            prepare(sources, folder, config.seed, progress=watch.progress)
        else:
            write_phantoms(out / "phantoms", count, config.seed, 256, watch.progress)
            phantom = {"phantom": out / "phantoms"}
            prepare(phantom, folder, config.seed, PHANTOM_FRACTIONS, progress=watch.progress)
    return read_manifest(folder)


def _same_data(told: Path, asked: Mapping[str, Any], out: Path) -> None:
    """Refuse to go on with a demo of other data, and note what this one is of."""
    if not told.is_file():
        write_json(told, asked)
        return
    try:
        earlier = json.loads(told.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{told} is damaged ({error}); remove {out} and start again") from error
    if earlier != asked:
        raise UserError(
            f"{out} holds a demo of {json.dumps(earlier)}, not of {json.dumps(asked)}: give the "
            "same data to go on with it, or another folder by --out"
        )


def _evaluate(
    run: RunFolder, decoder_only: RunFolder, records: Sequence[Record], watch: Watch
) -> dict[str, Measured]:
    """Evaluate one model after another: one in memory at a time."""
    models: dict[str, Model] = {
        "zero_shot": pretrained(run),
        "decoder_only": stage_model(decoder_only, "stage1"),
        "stage1": stage_model(run, "stage1"),
        "ptq": stage_model(run, "ptq"),
        "qat": stage_model(run, "stage2"),
        "int8_runtime": onnx_model(run.path / "int8.onnx", run),
    }
    found = {}
    for name, model in models.items():
        watch.phase(f"  {name}")
        found[name] = evaluate_model(
            replace(model, name=name),
            records,
            [TARGET],
            run.path / "evaluation" / name,
            cpu=True,
            progress=watch.progress,
            save_masks=True,
        )
    return found
