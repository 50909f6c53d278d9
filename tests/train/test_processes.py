"""One process or two (gloo): the same ranks, masks, losses and weights; and clear refusals."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from adalora_qat.checkpoint import MODEL_FILE, load_model
from adalora_qat.errors import ConfigError, UserError
from adalora_qat.phantom.phantom import write_phantoms
from adalora_qat.train.processes import accelerator_for

# A tiny SAM: the ViT with window and global attention. 10 samples in steps of 4 leave 2
# for the last step, of which each of two processes gets one. With accumulate=2 one is idle.
TINY = [
    "model.variant=tiny-vit-test",
    "model.init=random",
    "model.side=null",
    "data.prompt.jitter_px=3",
    "adapt.rank=6",
    "adapt.schedule_epochs=4",
    "adapt.schedule=[{epoch: 1, rank: 4}, {epoch: 2, rank: 2}]",
    "stage1.epochs=4",
    "stage1.batch_size=4",
    "stage1.lr_encoder=1e-2",
    "stage1.lr_decoder=1e-3",
    "stage1.ema=0.9",
    "stage1.clip_norm=1.0",
    "stage2.epochs=1",
    "stage2.batch_size=4",
    "stage2.lr_lambda=1e-3",
]
CASES = [
    {"name": "plain", "overrides": TINY, "stop": None},
    {"name": "accumulated", "overrides": [*TINY, "stage1.accumulate=2"], "stop": None},
    # Broken off after the first pruning and before the second; then after the compaction.
    {"name": "broken early", "overrides": TINY, "stop": 5},
    {"name": "broken late", "overrides": TINY, "stop": 9},
    {"name": "left", "overrides": TINY, "stop": 5, "leave": True},
    # So small a budget leaves a layer without any triplet.
    {
        "name": "rank 0",
        "overrides": [*TINY, "adapt.schedule=[{epoch: 1, rank: 1}, {epoch: 2, rank: 0}]"],
        "stop": None,
    },
]
CHILD = Path(__file__).with_name("child_processes.py")


def launch(processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc-per-node={processes}", *map(str, arguments)]  # fmt: skip
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, 13, seed=0, side=64)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Mapping[int, Path]:
    """Run every case on one process and on two."""
    folders = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"on_{processes}")
        (folder / "cases.json").write_text(json.dumps(CASES))
        result = launch(processes, CHILD, folder, phantoms)
        assert result.returncode == 0, result.stderr[-3000:]
        folders[processes] = folder
    return folders


def history(run: Path, stage: str = "stage1") -> list[dict[str, float]]:
    with (run / stage / "history.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def agree(
    first: list[dict[str, float]], second: list[dict[str, float]], rel: float, iou: float
) -> None:
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert a.pop("iou") == pytest.approx(b.pop("iou"), abs=iou)
        assert a == pytest.approx(b, rel=rel, abs=rel)


def masks(run: Path) -> list[tuple[dict[str, int], dict[str, int]]]:
    events = json.loads((run / "stage1" / "ranks.json").read_text())
    return [(event["ranks_before"], event["ranks"]) for event in events]


@pytest.mark.parametrize("name", ["plain", "accumulated", "rank 0"])
def test_two_processes_compute_what_one_does(runs: Mapping[int, Path], name: str) -> None:
    one, two = (runs[processes] / name for processes in (1, 2))
    assert masks(one) == masks(two)
    # Float64, 12 steps. A sample left out moves the loss by more than 1e-3.
    agree(history(one), history(two), rel=1e-10, iou=1e-10)
    first, second = (load_model(run / "stage1" / MODEL_FILE)[0].state_dict() for run in (one, two))
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)
    # Float32: last bits decide single roundings of weights and activations. In so small a model
    # one of them moves a percent of the pixels.
    agree(history(one, "stage2"), history(two, "stage2"), rel=2e-3, iou=1e-3)
    first, second = (load_model(run / "stage2" / MODEL_FILE)[0].state_dict() for run in (one, two))
    torch.testing.assert_close(first, second, rtol=1e-3, atol=2e-4)


def test_the_budget_is_shared_unevenly(runs: Mapping[int, Path]) -> None:
    # Or equal masks would say little.
    ranks = [after for _, after in masks(runs[2] / "plain")]
    assert any(len(set(layers.values())) > 1 for layers in ranks)
    assert [sum(layers.values()) for layers in ranks] == [8, 4]
    assert [sum(layers.values()) for _, layers in masks(runs[2] / "rank 0")] == [2, 0]


def test_accumulation_on_two_processes_is_the_plain_step(runs: Mapping[int, Path]) -> None:
    agree(history(runs[2] / "plain"), history(runs[2] / "accumulated"), rel=1e-10, iou=1e-10)


@pytest.mark.parametrize("name", ["broken early", "broken late"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_run_ends_like_an_unbroken_one(
    runs: Mapping[int, Path], processes: int, name: str
) -> None:
    whole, broken = runs[processes] / "plain", runs[processes] / name
    for stage in ("stage1", "ptq", "stage2"):
        assert (whole / stage / MODEL_FILE).read_bytes() == (
            broken / stage / MODEL_FILE
        ).read_bytes()
    assert (whole / "stage1" / "ranks.json").read_text() == (
        broken / "stage1" / "ranks.json"
    ).read_text()


def test_the_command_line_on_two_processes(
    tmp_path: Path, phantoms: Path, runs: Mapping[int, Path]
) -> None:
    from adalora_qat.corpus.prepare import prepare

    prepare({"phantom": phantoms}, tmp_path / "data", 0)
    train = ["-m", "adalora_qat.cli", "train", "demo", *TINY, "--cpu", "--data", tmp_path / "data"]
    done = launch(2, *train, "--stage", "1", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("finished") == 1
    assert {"ranks.csv", "ranks.png", MODEL_FILE} <= {
        path.name for path in (tmp_path / "run" / "stage1").iterdir()
    }
    # One process cannot go on where two have stopped.
    left = runs[2] / "left"
    alone = subprocess.run(
        [sys.executable, *map(str, train), "--out", str(left)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )
    assert alone.returncode == 2, alone.stderr
    assert "written by 2 processes" in alone.stderr
    assert "start 2 processes, or train anew in another folder" in alone.stderr
    assert "Traceback" not in alone.stderr
    assert not (left / "stage1" / MODEL_FILE).exists()


def test_half_precision_on_the_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="precision=fp16 needs a GPU"):
        accelerator_for("fp16", cpu=True)


def test_a_tracker_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from adalora_qat.train import processes

    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install mlflow"):
        accelerator_for("fp32", cpu=True, track=["mlflow"])
    with pytest.raises(UserError, match="unknown tracker 'wandb'"):
        accelerator_for("fp32", cpu=True, track=["wandb"])
