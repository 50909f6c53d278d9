"""Tiny networks on a handful of phantoms: seconds, not minutes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from adalora_qat.baselines.training import BaselineTraining
from adalora_qat.checkpoint import RunFolder
from adalora_qat.config import RunConfig
from adalora_qat.corpus.records import Record
from adalora_qat.corpus.sources import read_source
from adalora_qat.phantom.phantom import write_phantoms
from adalora_qat.recipe import load_config
from adalora_qat.train.stages import Resources

TINY = (
    "precision=fp32", "baselines.side=64", "stage1.epochs=3", "stage1.batch_size=4",
    "stage1.warmup_steps=2",
)  # fmt: skip
SIZE = {"unet": "w8", "segformer": "tiny"}


@dataclass(frozen=True)
class Trained:
    """A finished run, and the records it never saw."""

    run: RunFolder
    test: list[Record]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, 13, seed=0, side=96)
    return sorted(read_source("phantom", folder).records, key=lambda record: record.id)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., RunConfig]:
    def made(architecture: str, *overrides: str) -> RunConfig:
        size = f"baselines.size={SIZE[architecture]}"
        return load_config(architecture, (*TINY, size, *overrides))

    return made


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    phantoms: list[Record],
    tiny: Callable[..., RunConfig],
) -> Callable[..., Trained]:
    """Return a function that trains a recipe with overrides, each combination once."""
    done: dict[tuple[str, ...], Trained] = {}

    def train(architecture: str, *overrides: str) -> Trained:
        key = (architecture, *overrides)
        if key not in done:
            path = tmp_path_factory.mktemp("runs") / "run"
            run = RunFolder.create(path, tiny(architecture, *overrides))
            BaselineTraining(run, phantoms[:8], phantoms[8:10], Resources(cpu=True)).fit()
            done[key] = Trained(run, phantoms[10:])
        return done[key]

    return train


def model_bytes(path: Path) -> bytes:
    return (path / "stage1" / "model.safetensors").read_bytes()
