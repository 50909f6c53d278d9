"""Batches from processes: errors arrive, ends are noticed, and scripts need no guard."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adalora_qat.config import DataConfig
from adalora_qat.corpus.records import Record
from adalora_qat.corpus.sources import read_source
from adalora_qat.errors import DataError, TrainingError
from adalora_qat.imaging.geometry import Frame
from adalora_qat.phantom.phantom import write_phantoms
from adalora_qat.samples.dataset import SegmentationDataset
from adalora_qat.samples.makers import Makers

SCRIPT = """
import sys
import torch
from pathlib import Path
print("begun")
from adalora_qat.config import DataConfig
from adalora_qat.corpus.sources import read_source
from adalora_qat.imaging.geometry import Frame
from adalora_qat.samples.dataset import SegmentationDataset
from adalora_qat.samples.makers import Makers
records = read_source("phantom", Path(sys.argv[1])).records
tensors, ids = Makers(SegmentationDataset(records, DataConfig(), Frame(64)), 1, 2).batch(
    [1, 0], torch.Tensor.clone
)
print(*tensors["inputs"].shape, *ids)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, 3, seed=0, side=64)
    return folder


def records_in(folder: Path) -> list[Record]:
    return sorted(read_source("phantom", folder).records, key=lambda record: record.id)


def test_errors_arrive_and_a_lost_process_is_told(folder: Path, tmp_path: Path) -> None:
    records = records_in(folder)
    missing = replace(records[1], image=tmp_path / "gone.png")
    dataset = SegmentationDataset([records[0], missing, records[2]], DataConfig(), Frame(64))
    makers = Makers(dataset, 1, 2)
    with pytest.raises(DataError, match=r"gone\.png"):
        makers.batch([0, 1], torch.Tensor.clone)
    tensors, ids = makers.batch([2, 0], torch.Tensor.clone)
    assert ids == [records[2].id, records[0].id]
    assert torch.equal(tensors["masks"][1], dataset[0].masks)
    maker = makers._idle.get()
    os.kill(maker.process.pid, signal.SIGKILL)
    makers._idle.put(maker)
    with pytest.raises(TrainingError, match=r"makes samples ended \(exit code -9\)"):
        makers.batch([0], torch.Tensor.clone)


def test_a_script_needs_no_guard(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, script, folder], capture_output=True, text=True, timeout=200, check=True
    )
    begun, made = run.stdout.splitlines()
    assert begun == "begun"
    assert made.startswith("2 3 64 64 phantom/")
    assert not run.stderr
