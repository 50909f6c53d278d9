"""``size`` and ``bench`` from outside: answers, exit codes, nothing written by a refusal."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adalora_qat.checkpoint import RunFolder, save_model
from adalora_qat.cli import app
from adalora_qat.errors import UserError
from adalora_qat.export.onnx import export_onnx
from adalora_qat.export.parity import ParityCase
from adalora_qat.model.sam import random_segmenter
from adalora_qat.recipe import load_config


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command in this process (importing torch takes seconds); return what it prints."""

    def call(*arguments: object) -> str:
        app([*map(str, arguments)], standalone_mode=False)
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = load_config("demo", ["model.variant=tiny-test", "model.init=random", "model.side=64"])
    folder = RunFolder.create(tmp_path_factory.mktemp("runs") / "run", config)
    model = folder.stage("stage1") / "model.safetensors"
    save_model(random_segmenter("tiny-test", 0), model, config, "stage1")
    return folder.path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    image = np.random.default_rng(0).random((3, 64, 64), dtype=np.float32)
    case = ParityCase("noise", image, np.array([[5, 5, 50, 50]], np.float32), (64, 64))
    export_onnx(random_segmenter("tiny-test", 0), path, [case], policy="none", sources={})
    return path


def test_size_adds_up(run: Path, command: Callable[..., str]) -> None:
    answer = json.loads(command("size", run, "--policy", "int8-all", "--json"))
    assert answer["policy"] == "int8-all"
    assert sum(answer["bytes_by_precision"].values()) == answer["total_bytes"]
    assert answer["ratio"] == answer["fp32_bytes"] / answer["total_bytes"]
    table = command("size", run, "--policy", "int8-all")
    assert f"{answer['total_bytes']:,}" in table and "image_encoder" in table


def test_bench_compares_and_writes(run: Path, tmp_path: Path, command: Callable[..., str]) -> None:
    out = tmp_path / "bench.json"
    told = command("bench", run, "--images", 1, "--rounds", 1, "--threads", 1, "--out", out)
    answer = json.loads(out.read_text("utf-8"))
    assert [row["name"] for row in answer["rows"]] == ["PyTorch FP32", "ONNX FP32"]
    assert answer["data"] == "phantoms" and "on phantoms" in told
    assert answer["machine"]["cores"] and answer["threads"] == 1


def test_ship_names_the_folder_that_it_replaces(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        app(["ship", str(run), "--data", str(tmp_path)])
    assert ended.value.code == 2 and "Missing option '--out'" in capsys.readouterr().err
    app(["--help"], standalone_mode=False)
    users, _, maintainers = capsys.readouterr().out.partition("For maintainers")
    assert re.search(r"\bship\b +Make", maintainers)
    assert not re.search(r"\bship\b +Make", users)


def test_refusals_write_nothing(
    run: Path, model: Path, tmp_path: Path, command: Callable[..., str]
) -> None:
    def refused(says: str, *arguments: object) -> None:
        # What ``main`` turns into one line and exit code 2.
        with pytest.raises(UserError, match=re.escape(says)):
            command(*arguments)

    refused("does not exist", "size", tmp_path / "none.onnx")
    refused("did you mean w4a8?", "size", run, "--policy", "w4a")
    refused("has its policy", "size", model, "--policy", "full")
    out = tmp_path / "bench.json"
    refused("neither a run folder nor", "bench", run / "config.yaml", "--out", out)
    refused("is a folder", "bench", model, "--out", tmp_path)
    refused(str(tmp_path / "no"), "bench", model, "--data", tmp_path / "no", "--out", out)
    assert not list(tmp_path.iterdir())
