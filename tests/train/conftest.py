"""A tiny model on a handful of phantoms: seconds, not minutes."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adalora_qat.config import RunConfig
from adalora_qat.corpus.records import Record
from adalora_qat.corpus.sources import read_source
from adalora_qat.phantom.phantom import write_phantoms
from adalora_qat.recipe import load_config

# What processes are started with is used by tests in this one too.
sys.path.insert(0, str(Path(__file__).parent))

TINY = (
    "model.variant=tiny-test",
    "model.init=random",
    "model.side=64",
    "adapt.rank=8",
    "adapt.schedule_epochs=4",
    "adapt.schedule=[{epoch: 1, rank: 6}, {epoch: 2, rank: 4}]",
    "stage1.epochs=3",
    "stage1.lr_encoder=1e-2",
    "stage1.lr_decoder=1e-3",
    "stage2.epochs=2",
    "stage2.lr_lambda=1e-3",
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, 10, seed=0, side=64)
    return sorted(read_source("phantom", folder).records, key=lambda record: record.id)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., RunConfig]:
    return lambda *overrides: load_config("demo", (*TINY, *overrides))


def folder_bytes(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()
