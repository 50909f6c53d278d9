from pathlib import Path

import numpy as np
import pytest
import torch

from adalora_qat.checkpoint import MODEL_FILE, RunFolder, save_model
from adalora_qat.config import ExportConfig, ModelConfig, RunConfig
from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError
from adalora_qat.export.run import export_stage
from adalora_qat.files import sha256_file
from adalora_qat.model.sam import random_segmenter
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
    made = export_stage(run, "stage1", path, records, golden=True)
    predictor = OnnxPredictor(made.path)
    source = sha256_file(run.stage("stage1") / MODEL_FILE)
    assert predictor.metadata.sources == {f"stage1/{MODEL_FILE}": source}
    assert predictor.metadata.policy == "none"
    share = run.config.data.prompt.whole_image
    assert predictor.metadata.automatic_prompt is (share > 0)
    with np.load(tmp_path / "m.golden.npz") as golden:
        prompt = {"points": golden["points"], "labels": golden["labels"]}
        logits, _ = predictor.decode(predictor.encode(golden["image"]), prompt)
        np.testing.assert_array_equal(logits, golden["logits"])


def test_a_file_says_whether_its_weights_know_points(
    run: RunFolder, records: list[Record], tmp_path: Path
) -> None:
    assert OnnxPredictor(
        export_stage(run, "stage1", tmp_path / "a.onnx", records).path
    ).takes_points
    segmenter = random_segmenter("tiny-test", 1)
    torch.nn.init.zeros_(segmenter.prompt_encoder.not_a_point_embed.weight)
    save_model(segmenter, run.stage("stage1") / MODEL_FILE, run.config, "stage1")
    made = export_stage(run, "stage1", tmp_path / "b.onnx", records)
    predictor = OnnxPredictor(made.path)
    assert predictor.metadata.points is False and not predictor.takes_points
    with pytest.raises(DataError, match=r"b\.onnx takes boxes, no points"):
        predictor.prompted(np.eye(9)).point_at(np.ones((1, 2)), np.ones(1))
