"""Time `adalora-qat report` on ten phantoms and the four models of a LiteMedSAM run.

    python benchmarks/report_time.py --out results/report_time.json

The run is trained for a few steps from random weights, so its masks mean nothing; sizes, models
and the time of each call are those of a real run. ``--keep`` holds the run for another timing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _machine import describe_machine
from adalora_qat.checkpoint import RunFolder
from adalora_qat.corpus.prepare import prepare
from adalora_qat.corpus.splits import read_manifest, records_of
from adalora_qat.export.run import export_stage
from adalora_qat.files import write_json
from adalora_qat.phantom.phantom import write_phantoms
from adalora_qat.recipe import load_config
from adalora_qat.study.facts import write_run_facts
from adalora_qat.train.stages import Resources, Training

PHANTOMS = 20
FRACTIONS = (0.35, 0.15, 0.5)
SIDE = 512
SETTINGS = (
    "model.init=random", "stage1.epochs=1", "stage1.batch_size=2", "stage2.epochs=1",
    "stage2.batch_size=2", "adapt.schedule_epochs=1", "adapt.schedule=[{epoch: 1, rank: 32}]",
    "quantize.calibration_batches=1",
    # So few steps from nothing make a model that no gate need pass.
    "export.min_dice=0", "export.min_pixel_agreement=0",
)  # fmt: skip


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="a JSON file; it is printed in any case")
    parser.add_argument("--keep", type=Path, help="folder of the run and its data")
    parser.add_argument("--variant", default="litemedsam", help="tiny-test to try the script")
    parser.add_argument("options", nargs="*", help="further options of report, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.keep or Path(temporary)
        if not (root / "run" / "int8.onnx").is_file():
            build(root, arguments.variant)
        found = timed(root, Path(temporary), arguments.options)
    found |= {"variant": arguments.variant, "measured_on": describe_machine()}
    if arguments.out is not None:
        write_json(arguments.out, found)
    print(json.dumps(found, indent=1))


def build(root: Path, variant: str) -> None:
    """Make phantoms and a run with both stages, PTQ and an ONNX file."""
    write_phantoms(root / "phantoms", PHANTOMS, side=SIDE)
    prepare({"phantom": root / "phantoms"}, root / "data", 0, FRACTIONS)
    manifest = read_manifest(root / "data")
    train, val = (records_of(manifest, split, "lung") for split in ("train", "val"))
    run = RunFolder.create(
        root / "run", load_config("litemedsam", (f"model.variant={variant}", *SETTINGS))
    )
    training = Training(run, train, val, Resources(cpu=True))
    training.stage1()
    training.quantize()
    training.stage2()
    write_run_facts(run)
    export_stage(run, "stage2", run.path / "int8.onnx", val)


def timed(root: Path, out: Path, options: list[str]) -> dict[str, Any]:
    """Time the command from its start to its end, in a process of its own."""
    page = out / "report.html"
    command = [sys.executable, "-m", "adalora_qat.cli", "report", str(root / "run")]
    command += ["--data", str(root / "data"), "--out", str(page), "--cpu", "--json", *options]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - started
    models = json.loads(done.stdout)["models"]
    return {
        "seconds": round(seconds, 1),
        "options": options,
        "cases": models[0]["n"] + models[0]["dropped"],
        "models": [model["name"] for model in models],
        "page_mb": round(page.stat().st_size / 1e6, 1),
    }


if __name__ == "__main__":
    main()
