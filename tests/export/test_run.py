from pathlib import Path

import numpy as np
import pytest
import torch

from adalora_qat.checkpoint import MODEL_FILE, RunFolder, save_model
from adalora_qat.config import ExportConfig, ModelConfig, RunConfig
from adalora_qat.corpus.records import Record
from adalora_qat.errors import ExportError
from adalora_qat.export.run import export_stage
from adalora_qat.files import sha256_file
from adalora_qat.model.sam import random_segmenter
from adalora_qat.runtime.interactive import InteractivePredictor
from adalora_qat.runtime.onnx_predictor import OnnxPredictor
from adalora_qat.study.bench import phantom_records


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    config = RunConfig(
        model=ModelConfig(variant="tiny-test", init="random"),
        export=ExportConfig(min_dice=0.999, min_pixel_agreement=0.999),
    )
    folder = RunFolder.create(tmp_path / "run", config)
    folder.stage("stage1").mkdir()
    save_model(random_segmenter("tiny-test", 1), folder.stage("stage1") / MODEL_FILE, config, "s")
    return folder


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return phantom_records(tmp_path / "phantoms", 2)


def test_a_stage_is_exported_with_its_source_and_a_golden_phantom(
    run: RunFolder, records: list[Record], tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    [made] = export_stage(run, "stage1", path, records, golden=True)
    predictor = OnnxPredictor(made.path)
    source = sha256_file(run.stage("stage1") / MODEL_FILE)
    assert predictor.metadata.sources == {f"stage1/{MODEL_FILE}": source}
    assert predictor.metadata.policy == "none"
    share = run.config.data.prompt.whole_image
    assert predictor.metadata.automatic_prompt is (share > 0)
    with np.load(tmp_path / "m.golden.npz") as golden:
        logits, _ = predictor.run(golden["image"], golden["boxes"])
        np.testing.assert_array_equal(logits, golden["logits"])


def test_halves_lie_side_by_side(run: RunFolder, records: list[Record], tmp_path: Path) -> None:
    encoder, decoder = export_stage(run, "stage1", tmp_path / "m.onnx", records, halves=True)
    assert [one.path.name for one in (encoder, decoder)] == ["m-encoder.onnx", "m-decoder.onnx"]
    assert encoder.parity.dice_min > 0.999
    InteractivePredictor(encoder.path, decoder.path).warm_up()
    assert not list(tmp_path.glob("*.npz"))


def test_halves_need_weights_for_points(
    run: RunFolder, records: list[Record], tmp_path: Path
) -> None:
    segmenter = random_segmenter("tiny-test", 1)
    torch.nn.init.zeros_(segmenter.prompt_encoder.not_a_point_embed.weight)
    save_model(segmenter, run.stage("stage1") / MODEL_FILE, run.config, "stage1")
    with pytest.raises(ExportError, match="no weights for points: export it whole"):
        export_stage(run, "stage1", tmp_path / "m.onnx", records, halves=True)
    assert not list(tmp_path.glob("*.onnx"))
    (made,) = export_stage(run, "stage1", tmp_path / "m.onnx", records)
    assert made.path.is_file()
