"""Measure a trained run on the test split, every row in ONNX Runtime, and write the study.

    adalora-qat prepare jsrt=PATH shenzhen=PATH --out DATA
    adalora-qat train litemedsam --data DATA --out RUN
    adalora-qat train litemedsam-decoder-only --data DATA --out BASELINE
    python benchmarks/real_study.py RUN BASELINE DATA --out results/jsrt_shenzhen

Float models run as FP32 ONNX, whose masks equal PyTorch's (the parity gate of the export says
how nearly); quantized ones as the INT8 files that ship. Boxes are oracle boxes. Writes
``summary.json``, ``config.yaml``, the split and one per-case table a row; no images.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from rich.progress import Progress

from _machine import describe_machine
from adalora_qat.checkpoint import MODEL_FILE, RunFolder, load_model, provenance
from adalora_qat.data.records import Record
from adalora_qat.data.splits import read_manifest, records_of
from adalora_qat.demo import ranks_of, summarise
from adalora_qat.evaluate.cases import evaluate_cases
from adalora_qat.evaluate.statistics import compare, verdict
from adalora_qat.export.bench import compare_speed
from adalora_qat.export.onnx import export_onnx
from adalora_qat.export.run import deployable, export_stage, parity_cases
from adalora_qat.export.runtime import OnnxPredictor
from adalora_qat.files import write_json, write_text
from adalora_qat.model.sam import Segmenter
from adalora_qat.model.weights import build

TARGET = "lung"


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("baseline", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    run, baseline = RunFolder.open(arguments.run), RunFolder.open(arguments.baseline)
    manifest = read_manifest(arguments.data)
    with tempfile.TemporaryDirectory() as scratch, Progress() as bars:
        models, parity = _export(run, baseline, manifest, Path(scratch), bars)
        tables = _evaluate(models, records_of(manifest, "test", TARGET), arguments.out, bars)
        speed = compare_speed(
            {
                "pytorch_fp32": run.stage("stage1") / MODEL_FILE,
                "onnx_fp32": models["stage1"],
                "int8_runtime": models["int8_runtime"],
            },
            [record.image for record in records_of(manifest, "test", TARGET)[:6]],
        )
        sizes = {"fp32": models["stage1"], "int8_onnx": models["int8_runtime"]}
        summary = {
            "rows": [
                {**summarise(name, table), "by_source": _by_source(table)}
                for name, table in tables.items()
            ],
            "sizes_bytes": {name: path.stat().st_size for name, path in sizes.items()},
            "ranks": ranks_of(run),
            "parity": parity,
            "statistics": _statistics(tables),
            "speed": speed,
            "lambda_movement": json.loads(
                (run.stage("stage2") / "lambda_movement.json").read_text("utf-8")
            ),
            "training": json.loads((run.path / "provenance.json").read_text("utf-8")),
            "measured_on": describe_machine(),
            "data": {split: int(n) for split, n in manifest["split"].value_counts().items()},
            "box": "oracle",
            "seed": run.config.seed,
            **provenance({}),
        }
    write_json(arguments.out / "summary.json", summary)
    shutil.copy(run.path / "config.yaml", arguments.out / "config.yaml")
    write_text(
        arguments.out / "split.csv",
        manifest[["id", "group", "split"]].to_csv(index=False, lineterminator="\n"),
    )
    for stage in ("stage1", "stage2"):
        for name in ("epochs.csv", "ranks.csv"):
            file = run.stage(stage) / name
            if file.is_file():
                shutil.copy(file, arguments.out / f"{stage}_{name}")


def _export(
    run: RunFolder, baseline: RunFolder, manifest: pd.DataFrame, folder: Path, bars: Progress
) -> tuple[dict[str, Path], dict[str, Any]]:
    val, parity = records_of(manifest, "val", TARGET), {}
    models = {name: folder / f"{name}.onnx" for name in ("zero_shot", "decoder_only")}
    pretrained, _ = build(run.config.model)
    _save(pretrained, models["zero_shot"], run, val)
    tuned, _ = load_model(baseline.stage("stage1") / MODEL_FILE)
    _save(tuned, models["decoder_only"], run, val)
    for name, stage in (("stage1", "stage1"), ("ptq", "ptq"), ("int8_runtime", "stage2")):
        task = bars.add_task(f"export {name}", total=len(val))
        models[name] = folder / f"{name}.onnx"
        # The gate runs PyTorch, two seconds an image: more of them for the file that ships.
        images = val[::2] if name == "int8_runtime" else val[::20]
        exported = export_stage(
            run, stage, models[name], images,
            lambda done, total, _, t=task: bars.update(t, completed=done, total=total),
        )  # fmt: skip
        parity[name] = {**exported.parity.figures(), "kernels": dict(exported.kernels)}
    return models, parity


def _save(segmenter: Segmenter, path: Path, run: RunFolder, val: list[Record]) -> None:
    cases = parity_cases(val[:2], run.config.data, segmenter.variant.frame)
    export_onnx(deployable(segmenter), path, cases, policy="none", sources={})


def _evaluate(
    models: dict[str, Path], records: list[Record], out: Path, bars: Progress
) -> dict[str, pd.DataFrame]:
    tables = {}
    for name, path in models.items():
        task = bars.add_task(name, total=len(records))
        tables[name] = evaluate_cases(
            OnnxPredictor(path, name=name),
            records,
            [TARGET],
            "oracle",
            progress=lambda done, total, _, t=task: bars.update(t, completed=done, total=total),
        )
        rounded = tables[name].drop(columns=["seconds"], errors="ignore")
        write_text(out / f"cases_{name}.csv", rounded.to_csv(index=False, float_format="%.6g"))
    return tables


def _by_source(table: pd.DataFrame) -> dict[str, Any]:
    return {
        str(source): {"dice_mean": float(part["dsc"].mean()), "n": len(part)}
        for source, part in table.groupby("source")
    }


def _statistics(tables: dict[str, pd.DataFrame]) -> dict[str, str]:
    shipped = tables["int8_runtime"]
    return {
        other: verdict(compare(shipped, tables[other], "dsc"))
        for other in tables
        if other != "int8_runtime"
    }


if __name__ == "__main__":
    main()
