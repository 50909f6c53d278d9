"""nnU-Net: the files it is given, the process it runs in, and, where it is installed, itself."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adalora_qat.baselines import nnunet
from adalora_qat.baselines.crops import BoxCropDataset
from adalora_qat.baselines.nnunet_data import DATASET, export_samples
from adalora_qat.baselines.nnunet_process import EVENT, Task
from adalora_qat.baselines.predict import open_baseline
from adalora_qat.baselines.training import BaselineTraining
from adalora_qat.checkpoint import MODEL_FILE, RunFolder
from adalora_qat.config import DataConfig
from adalora_qat.corpus.records import Record
from adalora_qat.errors import TrainingError, UserError
from adalora_qat.imaging.geometry import Frame
from adalora_qat.recipe import load_config
from adalora_qat.samples.dataset import SegmentationDataset
from adalora_qat.train.stages import Resources
from adalora_qat.train.state import StepReport

FRAME = Frame(64, "minmax")
PYTHON = sys.executable
HAS_NNUNET = importlib.util.find_spec("nnunetv2") is not None


def task(folder: Path) -> Task:
    return Task(str(folder), epochs=2, steps=3, seed=0, cpu=True, processes=1)


def test_the_split_is_ours(phantoms: list[Record], tmp_path: Path) -> None:
    train = SegmentationDataset(phantoms[:3], DataConfig(), FRAME)
    val = SegmentationDataset(phantoms[3:5], DataConfig(), FRAME, train=False)
    export_samples(tmp_path, train, val)
    raw = tmp_path / "raw" / DATASET
    splits = json.loads((tmp_path / "preprocessed" / DATASET / "splits_final.json").read_text())
    assert splits == [
        {"train": ["case_00000", "case_00001", "case_00002"], "val": ["case_00003", "case_00004"]}
    ]
    assert (tmp_path / "cases.csv").read_text().splitlines()[4] == (
        f"case_00003,val,{phantoms[3].id}"
    )
    told = json.loads((raw / "dataset.json").read_text())
    assert told["numTraining"] == 5
    assert told["labels"] == {"background": 0, "lung": 1}
    image = np.asarray(Image.open(raw / "imagesTr" / "case_00000_0000.png"))
    mask = np.asarray(Image.open(raw / "labelsTr" / "case_00000.png"))
    sample = train[0]
    assert (image.dtype, image.shape, image.min(), image.max()) == (np.uint8, (64, 64), 0, 255)
    assert np.abs(image / 255 - sample.image[0].numpy()).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(mask, sample.masks[0].numpy())


def test_crops_are_written_without_padding_and_once(phantoms: list[Record], tmp_path: Path) -> None:
    train = BoxCropDataset(phantoms[:2], DataConfig(), FRAME, 0.1)
    val = BoxCropDataset(phantoms[2:3], DataConfig(), FRAME, 0.1, train=False)
    export_samples(tmp_path, train, val)
    file = tmp_path / "raw" / DATASET / "imagesTr" / "case_00002_0000.png"
    assert Image.open(file).size[::-1] == val[0].valid
    written = file.stat().st_mtime_ns
    export_samples(tmp_path, train, val)
    assert file.stat().st_mtime_ns == written


def stand_in(folder: Path, *lines: str, code: int = 0) -> str:
    """Return an interpreter that says ``lines`` whatever it is asked."""
    file = folder / "stand-in"
    said = "\n".join(f"print({line!r}, flush=True)" for line in lines)
    file.write_text(f"#!{PYTHON}\n{said}\nraise SystemExit({code})\n")
    file.chmod(0o755)
    return str(file)


@pytest.mark.skipif(os.name != "posix", reason="stands in with a script")
def test_steps_are_passed_on_and_the_rest_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [
        EVENT + json.dumps({"what": "step", "epoch": 1, "step": 1, "loss": 0.5}),
        "nnU-Net says something",
        EVENT + json.dumps({"what": "epoch", "dice": 0.75}),
        EVENT + json.dumps({"what": "step", "epoch": 2, "step": 4, "loss": 0.25}),
    ]
    monkeypatch.setattr(nnunet.sys, "executable", stand_in(tmp_path, *events))
    reports: list[StepReport] = []
    nnunet._run_process(task(tmp_path), tmp_path / "log.txt", reports.append, None)
    assert [(r.step, r.loss, r.val_dice) for r in reports] == [(1, 0.5, None), (4, 0.25, 0.75)]
    assert (reports[0].steps, reports[0].epochs) == (6, 2)
    assert (tmp_path / "log.txt").read_text() == "nnU-Net says something\n"


@pytest.mark.skipif(os.name != "posix", reason="stands in with a script")
def test_failures_name_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nnunet.sys, "executable", stand_in(tmp_path, "no such plan", code=1))
    with pytest.raises(UserError, match=r"no such plan\).*log\.txt"):
        nnunet._run_process(task(tmp_path), tmp_path / "log.txt", None, None)
    failed = EVENT + json.dumps({"what": "failed", "epoch": 2})
    monkeypatch.setattr(nnunet.sys, "executable", stand_in(tmp_path, failed))
    with pytest.raises(TrainingError, match="not finite in epoch 2"):
        nnunet._run_process(task(tmp_path), tmp_path / "log.txt", None, None)


def test_the_environment_of_this_process_stays(tmp_path: Path) -> None:
    before = dict(os.environ)
    told = nnunet.environment(task(tmp_path))
    assert told["nnUNet_raw"] == str(tmp_path / "raw")
    assert dict(os.environ) == before


@pytest.mark.skipif(HAS_NNUNET, reason="nnU-Net is installed")
def test_without_the_package_it_says_what_to_install(
    phantoms: list[Record], tmp_path: Path
) -> None:
    run = RunFolder.create(tmp_path / "run", load_config("nnunet"))
    with pytest.raises(UserError, match=r"adalora-qat\[nnunet\]"):
        BaselineTraining(run, phantoms[:8], phantoms[8:], Resources(cpu=True)).fit()


@pytest.mark.slow
@pytest.mark.skipif(not HAS_NNUNET, reason="nnunetv2 is not installed")
@pytest.mark.parametrize("seen", ["image", "crop"])
def test_the_real_package_trains_and_answers(
    phantoms: list[Record], tmp_path: Path, seen: str
) -> None:
    overrides = ("baselines.side=64", "stage1.epochs=2", "baselines.steps_per_epoch=2")
    config = load_config("nnunet", (*overrides, f"baselines.input={seen}"))
    run = RunFolder.create(tmp_path / "run", config)
    BaselineTraining(run, phantoms[:8], phantoms[8:], Resources(cpu=True, workers=1)).fit()
    assert len((run.stage("stage1") / "epochs.csv").read_text().splitlines()) == 3
    predictor = open_baseline(run.stage("stage1") / MODEL_FILE)
    image = np.random.default_rng(0).integers(0, 255, (90, 70), np.uint8)
    answer = predictor.predict(image, np.array([[10, 10, 60, 80]]))
    assert answer.masks.shape == (1, 90, 70)
    assert answer.logits.shape == (1, 64, 64)
