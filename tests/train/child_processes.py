"""What each process of a launch runs: the cases of ``test_processes.py``, one after another.

Started as ``torchrun … child_processes.py FOLDER PHANTOMS``; FOLDER holds ``cases.json``, a list
of {name, overrides, stop}: stop is the step of stage 1 at which the run is broken off and then
continued, or left if the case says ``leave``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from adalora_qat.checkpoint import RunFolder
from adalora_qat.corpus.records import Record
from adalora_qat.corpus.sources import read_source
from adalora_qat.recipe import load_config
from adalora_qat.train.processes import join
from adalora_qat.train.stages import Resources, Training


class StopError(Exception):
    """Breaks a run off, as a kill would."""


def run_case(
    folder: Path, records: list[Record], overrides: list[str], stop: int | None, leave: bool
) -> None:
    with join(cpu=True).main_process_first():
        run = RunFolder.create(folder, load_config("demo", overrides))

    def on_step(report: object) -> None:
        if report.stage == "stage1" and report.step == stop:  # type: ignore[attr-defined]
            raise StopError

    broken = Resources(cpu=True, on_step=on_step, checkpoint_seconds=0.0)
    try:
        Training(run, records[:10], records[10:], broken if stop else Resources(cpu=True)).stage1()
    except StopError:
        if leave:
            return
        Training(run, records[:10], records[10:], Resources(cpu=True)).stage1()
    training = Training(run, records[:10], records[10:], Resources(cpu=True))
    training.quantize()
    training.stage2()


def main() -> None:
    torch.set_num_threads(1)
    folder, phantoms = Path(sys.argv[1]), Path(sys.argv[2])
    records = sorted(read_source("phantom", phantoms).records, key=lambda record: record.id)
    for case in json.loads((folder / "cases.json").read_text()):
        run_case(folder / case["name"], records, case["overrides"], case["stop"], "leave" in case)
    join(cpu=True).destroy_process_group()


if __name__ == "__main__":
    main()
