"""The whole making of a shipped model, tiny and untrained, on phantoms; and its use."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adalora_qat.checkpoint import RunFolder, save_model
from adalora_qat.cli import app
from adalora_qat.corpus.records import Record
from adalora_qat.corpus.sources import read_source
from adalora_qat.errors import CheckpointError, DataError, ExportError
from adalora_qat.files import sha256_file
from adalora_qat.imaging.automatic_prompt import predict_automatically
from adalora_qat.model.sam import random_segmenter
from adalora_qat.phantom.phantom import phantom, write_phantoms
from adalora_qat.recipe import load_config
from adalora_qat.release import ship as ship_module
from adalora_qat.release.assure import fit_assurance
from adalora_qat.release.ship import Shipped, ship
from adalora_qat.runtime.digest import verified_sha256
from adalora_qat.runtime.onnx_predictor import OnnxPredictor
from adalora_qat.runtime.packaged import (
    CARD,
    GOLDEN,
    MODEL,
    SUMS,
    check_golden,
    packaged_predictor,
    read_sums,
)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Record]]:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, 15, seed=0, side=64)
    found = sorted(read_source("phantom", folder).records, key=lambda record: record.id)
    return {"train": found[:9], "val": found[9:13], "test": found[13:]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    config = load_config("demo", ["model.variant=tiny-test", "model.init=random", "model.side=64"])
    folder = RunFolder.create(tmp_path_factory.mktemp("runs") / "run", config)
    model = folder.stage("stage1") / "model.safetensors"
    save_model(random_segmenter("tiny-test", 0), model, config, "stage1")
    return folder


@pytest.fixture(scope="module")
def made(
    run: RunFolder, records: dict[str, list[Record]], tmp_path_factory: pytest.TempPathFactory
) -> Shipped:
    return ship(run, "stage1", records, tmp_path_factory.mktemp("package") / "weights")


def test_the_folder_is_whole(made: Shipped) -> None:
    assert sorted(p.name for p in made.folder.iterdir()) == sorted([MODEL, GOLDEN, CARD, SUMS])
    assert not list(made.folder.parent.glob(".ship*"))
    for name, digest in read_sums(made.folder).items():
        assert sha256_file(made.folder / name) == digest
    assert (made.folder / MODEL).stat().st_size == made.size_bytes
    predictor = packaged_predictor(1, made.folder)
    assert check_golden(predictor, made.folder) == 1
    assert predictor.metadata.mask_threshold == made.threshold
    assert predictor.metadata.min_onnxruntime
    assert verified_sha256(made.folder / MODEL) == predictor.sha256


def test_the_card_holds_what_was_measured(made: Shipped) -> None:
    card = (made.folder / CARD).read_text("utf-8")
    assert made.rows[0]["source"] == "all" and made.rows[0]["n"] == 2
    for row in made.rows:
        assert f"{row['dice_mean']:.4f} ± {row['dice_std']:.4f}" in card
    assert sha256_file(made.folder / MODEL) in card
    assert "| phantom | 9 | 4 | 2 |" in card
    assert "{" not in card.replace("${", "")


def test_scores_are_calibrated_and_masks_those_of_the_automatic_prompt(made: Shipped) -> None:
    predictor = packaged_predictor(1, made.folder)
    calibration = predictor.assurance.confidence
    assert calibration is not None
    image = phantom(3, side=64).image
    found = predict_automatically(predictor, image)
    low, high = calibration.expected[0], calibration.expected[-1]
    assert low - 1e-6 <= found.scores[0] <= high + 1e-6
    # 4 images, each: two passes, two boxes, and a degraded view with two passes.
    assert calibration.cases == 4 * (2 + 2 + 2)
    with pytest.raises(DataError, match="is calibrated already"):
        fit_assurance(predictor, [], [], "lung")


def test_segment_uses_it_without_a_model_or_a_box(
    made: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("adalora_qat.runtime.packaged.weights_folder", lambda: made.folder)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    arguments = ["segment", str(tmp_path / "noise.png"), "--out", str(tmp_path / "out")]
    app(arguments, standalone_mode=False)
    told = json.loads((tmp_path / "out" / "noise.json").read_text("utf-8"))
    assert told["prompt"] == "automatic"
    assert told["model"]["sha256"] == sha256_file(made.folder / MODEL)
    assert 0 <= told["confidence"] <= 1 and "expected IoU" in told["confidence_means"]
    [first, *_] = told["warnings"]
    assert first["code"] in ("not_a_chest", "unlike_training_data", "rotated", "inverted")
    said = capsys.readouterr()
    assert said.err.count("noise.png: ") == 1 and first["message"] in said.err
    assert app([*arguments, "--strict"], standalone_mode=False) == 3


def test_a_package_without_or_with_another_model_says_so(made: Shipped, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no model.*--model"):
        packaged_predictor(1, tmp_path)
    for name in (MODEL, SUMS, GOLDEN):
        (tmp_path / name).write_bytes((made.folder / name).read_bytes())
    with (tmp_path / MODEL).open("ab") as file:
        file.write(b"\0" * 16)
    with pytest.raises(CheckpointError, match=r"is damaged: its bytes do not have the SHA-256"):
        packaged_predictor(1, tmp_path)
    (tmp_path / GOLDEN).write_bytes(b"other")
    with pytest.raises(CheckpointError, match="not the file that was packaged"):
        check_golden(OnnxPredictor(made.folder / MODEL, threads=1), tmp_path)


def test_too_large_a_model_replaces_nothing(
    run: RunFolder, records: dict[str, list[Record]], made: Shipped,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(ship_module, "MOST_BYTES", 1000)
    before = sha256_file(made.folder / MODEL)
    with pytest.raises(ExportError, match="allowed"):
        ship(run, "stage1", records, made.folder)
    assert sha256_file(made.folder / MODEL) == before
    assert not list(made.folder.parent.glob(".ship*"))
