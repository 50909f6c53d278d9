"""The command line from outside: exit codes, one plain message, nothing written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "adalora_qat.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment},
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a tiny model with random weights."""
    import torch

    from adalora_qat.export.onnx import export_onnx
    from adalora_qat.export.parity import ParityCase
    from adalora_qat.model.sam import random_segmenter

    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)).numpy()
    case = ParityCase("noise", image, np.array([[5, 5, 50, 50]], np.float32), (64, 64))
    export_onnx(random_segmenter("tiny-test", 0), path, [case], policy="none", sources={})
    return path


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.png"
    pixels = np.random.default_rng(0).integers(0, 255, (90, 70), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def refused(result: subprocess.CompletedProcess[str], *words: object) -> None:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.strip().startswith("error:")
    assert len(result.stderr.strip().splitlines()) == 1
    for word in words:
        assert str(word) in result.stderr


def test_segment_writes_mask_overlay_and_json(model: Path, film: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("segment", film, "--model", model, "--box", "5,5,60,80", "--out", out, "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer[0]["box"] == [5, 5, 60, 80]
    assert answer[0]["model"]["variant"] == "tiny-test"
    assert Image.open(out / "film_mask.png").size == (70, 90)
    assert {p.name for p in out.iterdir()} == {"film_mask.png", "film_overlay.png", "film.json"}


@pytest.mark.parametrize(
    ("box", "word"),
    [("5,5,600,80", "outside"), ("60,5,5,80", "reversed"), ("5,5,5,80", "empty"), ("1,2", "four")],
)
def test_bad_boxes(model: Path, film: Path, tmp_path: Path, box: str, word: str) -> None:
    out = tmp_path / "out"
    refused(run("segment", film, "--model", model, "--box", box, "--out", out), word)
    assert not out.exists()


def test_bad_images(model: Path, film: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    missing = tmp_path / "missing.png"
    refused(run("segment", missing, "--model", model, "--out", out), missing)
    film.write_bytes(film.read_bytes()[:800])
    refused(run("segment", film, "--model", model, "--out", out), film)
    Image.fromarray(np.full((40, 40), 7, np.uint8)).save(film)
    refused(run("segment", film, "--model", model, "--out", out), film, "colour")
    assert not out.exists()


def test_a_file_that_is_no_model(film: Path, tmp_path: Path) -> None:
    refused(run("segment", film, "--model", film, "--out", tmp_path / "out"), film)


def test_unknown_keys_and_recipes_suggest_the_nearest(tmp_path: Path) -> None:
    out = tmp_path / "run"
    bad = run("train", "litemedsam", "stage1.epoch=2", "--data", tmp_path, "--out", out)
    refused(bad, "did you mean stage1.epochs?")
    refused(run("train", "litemedsm", "--out", out), "did you mean litemedsam?")
    assert not out.exists()


def test_missing_data_is_named(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    refused(run("train", "litemedsam", "--data", nowhere, "--out", tmp_path / "run"), nowhere)
    refused(run("prepare", f"jsrt={nowhere}", "--out", tmp_path / "data"), nowhere)
    refused(run("prepare", "jsrt", "--out", tmp_path / "data"), "NAME=PATH")
    twice = run("prepare", "a=pairs:x y", "a=pairs:z", "--out", tmp_path / "data")
    refused(twice, "a is given twice, x y and pairs:z")
    assert not list(tmp_path.iterdir())


def test_params_of_the_paper_recipe_are_its_numbers() -> None:
    result = run("params", "sam-vit-base", "--json")
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)
    parts = counts["parts"]
    assert parts["image_encoder"]["total"] == 89_670_912
    assert parts["mask_decoder"]["total"] == 4_058_340
    assert parts["prompt_encoder"]["total"] == 6_476
    # 12 layers of P (2304 × r), Q (r × 768) and Λ (r).
    assert parts["adapters"]["start"] == 12 * 48 * (2304 + 768 + 1)
    assert parts["adapters"]["pruned"] == 12 * 32 * (2304 + 768 + 1)


@pytest.mark.parametrize(
    "command", ["demo", "prepare", "train", "evaluate", "export", "segment", "params"]
)
def test_every_command_explains_itself(command: str) -> None:
    result = run(command, "--help")
    assert result.returncode == 0
    assert len(result.stdout) > 200


def test_segment_needs_no_torch(model: Path, film: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['pandas'] = None;"
        "from adalora_qat.cli import app; app(sys.argv[1:], standalone_mode=False);"
    )
    command = [sys.executable, "-c", code, "segment", str(film), "--model", str(model), "--out",
               str(tmp_path / "out")]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "film.json").is_file()
