"""A baseline trains, resumes and repeats as every other model of the house."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adalora_qat.baselines.loop import BaselineLoop
from adalora_qat.baselines.model_file import described, load_net
from adalora_qat.baselines.training import BaselineTraining
from adalora_qat.checkpoint import MODEL_FILE, RunFolder
from adalora_qat.config import RunConfig
from adalora_qat.corpus.records import Record
from adalora_qat.errors import ConfigError, DataError
from adalora_qat.recipe import load_config
from adalora_qat.train.stages import Resources
from adalora_qat.train.state import StepReport


def files(run: RunFolder) -> tuple[bytes, str]:
    stage = run.stage("stage1")
    return (stage / MODEL_FILE).read_bytes(), (stage / "epochs.csv").read_text()


@pytest.mark.parametrize("architecture", ["unet", "segformer"])
def test_a_run_folder_is_as_every_other(trained: Any, architecture: str) -> None:
    run = trained(architecture).run
    assert (run.path / "provenance.json").is_file()
    assert not (run.stage("stage1") / "checkpoints").exists()
    rows = list(csv.DictReader((run.stage("stage1") / "epochs.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    said = described(run.stage("stage1") / MODEL_FILE)
    assert said is not None
    assert (said.config.architecture, said.origin.source) == (architecture, "random")


def test_it_learns(trained: Any) -> None:
    run = trained("unet", "stage1.epochs=40", "data.augment.enabled=false").run
    rows = list(csv.DictReader((run.stage("stage1") / "epochs.csv").open()))
    assert max(float(row["val_dice"]) for row in rows) > 0.8


class KilledError(Exception):
    """Stands in for the kill signal."""


@pytest.mark.parametrize("architecture", ["unet", "segformer"])
def test_a_killed_training_ends_as_an_unbroken_one(
    trained: Any,
    tiny: Callable[..., RunConfig],
    phantoms: list[Record],
    tmp_path: Path,
    architecture: str,
) -> None:
    run = RunFolder.create(tmp_path / "run", tiny(architecture))

    def kill(report: StepReport) -> None:
        if report.step == 3:
            raise KilledError

    records = phantoms[:8], phantoms[8:10]
    with pytest.raises(KilledError):
        BaselineTraining(
            run, *records, Resources(cpu=True, on_step=kill, checkpoint_seconds=0)
        ).fit()
    assert not run.finished("stage1")
    BaselineTraining(run, *records, Resources(cpu=True)).fit()
    # Running statistics and dropout included.
    assert files(run) == files(trained(architecture).run)


def test_what_is_kept_is_the_best_epoch_with_its_statistics(
    trained: Any, phantoms: list[Record]
) -> None:
    run = trained("unet").run
    rows = list(csv.DictReader((run.stage("stage1") / "epochs.csv").open()))
    net, _ = load_net(run.stage("stage1") / MODEL_FILE)
    training = BaselineTraining(run, phantoms[:8], phantoms[8:10], Resources(cpu=True))
    assert not any(torch.equal(m.running_mean, torch.zeros_like(m.running_mean))
                   for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))  # fmt: skip
    loop = training._loop(net)
    best = max(float(row["val_dice"]) for row in rows)
    assert loop.validate() == pytest.approx(best, abs=1e-6)


def test_a_last_batch_of_one_has_a_companion_that_counts_for_nothing(
    tiny: Callable[..., RunConfig], phantoms: list[Record], tmp_path: Path
) -> None:
    run = RunFolder.create(tmp_path / "run", tiny("unet"))
    training = BaselineTraining(run, phantoms[:9], phantoms[9:10], Resources(cpu=True))
    net = load_net_of(training)
    loop: BaselineLoop = training._loop(net)
    last = loop._plan(1)[-1][0]
    assert len(last.indices) == 2
    assert last.weights == (1.0, 0.0)


def load_net_of(training: BaselineTraining) -> Any:
    from adalora_qat.baselines.networks import build_baseline

    return build_baseline(training.baseline, 0)[0]


def test_what_cannot_be_trained_is_told(
    tiny: Callable[..., RunConfig], phantoms: list[Record], tmp_path: Path
) -> None:
    run = RunFolder.create(tmp_path / "a", tiny("unet"))
    with pytest.raises(DataError, match="got 8 and 0"):
        BaselineTraining(run, phantoms[:8], [])
    sam = RunFolder.create(tmp_path / "b", load_config("demo"))
    with pytest.raises(ConfigError, match="no baseline"):
        BaselineTraining(sam, phantoms[:8], phantoms[8:])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.prompt.target=[left_lung, right_lung]", "segments one target"),
        ("stage1.encoder=frozen", "trains whole"),
        ("stage2.epochs=1", "trains whole"),
        ("quantize.policy=full", "trains whole"),
        ("baselines.side=100", "multiple of 32"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config("unet", (override,))
