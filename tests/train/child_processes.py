"""What each process of a launch runs: the cases of ``test_processes.py``, one after another.

Started as ``torchrun … child_processes.py FOLDER PHANTOMS``; FOLDER holds ``cases.json``, a list
of {name, overrides, stop}: stop is the step of stage 1 at which the run is broken off and then
continued, or left if the case says ``leave``.

Stage 1 is computed in float64. Kernels are chosen by processor and by batch size, and each sums
in an order of its own: in float32 the first step agrees to 1 ulp, and the learning rates here
make that up to 6e-5 of the loss in a dozen steps. In float64 the same rounding stays far below
what any sample left out or counted twice would do. Stage 2 is float32 by design (scales and
rounded weights), and starts from stage 1's weights rounded to it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

from adalora_qat.checkpoint import RunFolder
from adalora_qat.corpus.records import Record
from adalora_qat.corpus.sources import read_source
from adalora_qat.recipe import load_config
from adalora_qat.samples.dataset import Sample, SegmentationDataset
from adalora_qat.train import stages
from adalora_qat.train.processes import join
from adalora_qat.train.stages import Resources, Training


class StopError(Exception):
    """Breaks a run off, as a kill would."""


class InDouble(SegmentationDataset):
    """The samples in float64."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        image, boxes, masks = (t.double() for t in (sample.image, sample.boxes, sample.masks))
        return replace(sample, image=image, boxes=boxes, masks=masks)


@contextmanager
def in_double() -> Iterator[None]:
    """Build models and make samples in float64 inside the context."""
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(stages, "SegmentationDataset", InDouble):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def run_case(
    folder: Path, records: list[Record], overrides: list[str], stop: int | None, leave: bool
) -> None:
    with join(cpu=True).main_process_first():
        run = RunFolder.create(folder, load_config("demo", overrides))

    def on_step(report: object) -> None:
        if report.stage == "stage1" and report.step == stop:  # type: ignore[attr-defined]
            raise StopError

    broken = Resources(cpu=True, on_step=on_step, checkpoint_seconds=0.0)
    training = Training(run, records[:10], records[10:], Resources(cpu=True))
    with in_double():
        if stop:
            with suppress(StopError):
                Training(run, records[:10], records[10:], broken).stage1()
        if leave:
            return
        training.stage1()
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
