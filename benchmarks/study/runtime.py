"""The study's quantized models as they ship: ONNX Runtime on the CPU, on the test split.

    python benchmarks/study/runtime.py ROOT DATA --jobs full-qat-s0 int8-all-s0 …

takes ``ROOT/runs/JOB/stage2/packed.safetensors`` (``run.py`` wrote it), exports each behind the
parity gate, evaluates the file with oracle boxes at the original size, and compares case by case
with the PyTorch stage 1 that it came from and with decoder fine-tuning, which ``ROOT/evaluations``
hold. Writes ``summary.json`` and one per-case table a job; those that are in ``--out`` already
stay. A model that the gate refuses is
reported as refused, and measured all the same, from a file that is not kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from collect import KEPT, _finite
from pack import PACKED, export
from plan import read_plan
from rich.progress import Progress

from adalora_qat.checkpoint import RunFolder
from adalora_qat.config import ExportConfig
from adalora_qat.corpus.splits import read_manifest, records_of
from adalora_qat.errors import ExportError
from adalora_qat.evaluate.cases import evaluate_cases
from adalora_qat.evaluate.compare import compare, verdict
from adalora_qat.files import sha256_file, write_json, write_text
from adalora_qat.runtime.onnx_predictor import OnnxPredictor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _machine import describe_machine

TARGET = "lung"


def exported(run: RunFolder, data: Path, every: int) -> tuple[Path, str | None]:
    """Export a run's packed stage 2; return the file, and what the gate said if it refused."""
    packed, file = run.stage("stage2") / PACKED, run.path / "runtime.onnx"
    try:
        export(packed, run, data, file, every)
        return file, None
    except ExportError as refused:
        export(packed, run, data, file, every, ExportConfig(min_dice=0, min_pixel_agreement=0))
        return file, str(refused)


def measured(job: str, root: Path, data: Path, out: Path, every: int) -> dict[str, Any]:
    """Export, evaluate and compare one job, a row with a seed."""
    row, _, seed = job.rpartition("-s")
    run = RunFolder.open(root / "runs" / job)
    file, refused = exported(run, data, every)
    records = records_of(read_manifest(data), "test", TARGET)
    predictor = OnnxPredictor(file, name=f"{row}, ONNX Runtime")
    with Progress() as bars:
        task = bars.add_task(job, total=len(records))
        cases = evaluate_cases(
            predictor, records, [TARGET], "oracle",
            progress=lambda done, _, what: bars.update(task, completed=done, description=what),
        )  # fmt: skip
    kept = cases[["id", "source", *KEPT]]
    write_text(out / f"{job}.csv", kept.to_csv(index=False, float_format="%.5g"))
    plan = read_plan()
    others = {"stage 1": plan[row].stage1 or row, "decoder fine-tuning": "decoder-only"}
    found = {
        name: _compared(cases, root / "evaluations" / f"{other}-s{seed}" / "stage1_test_oracle")
        for name, other in others.items()
    }
    parity = predictor.metadata.parity
    return {
        "row": row,
        "seed": int(seed),
        "dice_mean": float(cases["dsc"].mean()),
        "dice_sd": float(cases["dsc"].std(ddof=1)),
        "by_source": {str(s): float(p["dsc"].mean()) for s, p in cases.groupby("source")},
        "n": len(cases),
        "onnx_bytes": file.stat().st_size,
        "packed_sha256": sha256_file(run.stage("stage2") / PACKED),
        "parity": dict(parity),
        "gate": refused or "passed",
        "against": found,
        "command": f"python benchmarks/study/runtime.py ROOT DATA --jobs {job} --every {every}",
        "measured_on": describe_machine(),
    }


def _compared(cases: pd.DataFrame, folder: Path) -> dict[str, Any]:
    found = compare(cases, pd.read_parquet(folder / "cases.parquet"), "dsc")
    return {
        "mean_difference": found.mean_difference,
        "ci": [found.ci_low, found.ci_high],
        "tost_p": found.tost_p,
        "noninferiority_p": found.noninferiority_p,
        "verdict": verdict(found),
    }


def main() -> None:
    """Measure the rows, one after another; write the summary after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--jobs", nargs="+", default=["full-qat-s0", "int8-all-s0", "w4a8-s0"])
    parser.add_argument("--every", type=int, default=4, help="parity: every n-th validation image")
    parser.add_argument("--out", type=Path, default=Path("results/runtime"))
    given = parser.parse_args()
    file = given.out / "summary.json"
    before = json.loads(file.read_text("utf-8"))["rows"] if file.is_file() else []
    rows = {f"{row['row']}-s{row['seed']}": row for row in before}
    for job in given.jobs:
        rows[job] = measured(job, given.root, given.data, given.out, given.every)
        write_json(file, _finite({"rows": [rows[name] for name in sorted(rows)]}))


if __name__ == "__main__":
    main()
