"""What the arguments of a command hold."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from adalora_qat.baselines.model_file import save_baseline
from adalora_qat.baselines.networks import build_baseline
from adalora_qat.checkpoint import RunFolder
from adalora_qat.errors import CheckpointError, DataError
from adalora_qat.predictor import Predictor, uses_boxes
from adalora_qat.recipe import load_config
from adalora_qat.study.facts import facts_of
from adalora_qat.study.models import model_at, models_of, named, stage_name


def test_a_run_folder_holds_every_stage_in_order(trained: Any) -> None:
    models = models_of([str(trained.run)])
    assert [(m.name, m.kind, m.quantized) for m in models] == [
        ("Random weights", "pretrained", False),
        ("Decoder fine-tuning", "stage1", False),
        ("AdaLoRA", "stage1", False),
        ("PTQ", "ptq", True),
        ("Full QAT", "stage2", True),
        ("Full QAT, ONNX", "onnx", True),
    ]
    assert models[-1].stage == "stage2"
    assert models_of([str(trained.run)], zero_shot=False)[0].kind == "stage1"


def test_an_onnx_of_an_older_training_does_not_speak_for_the_run(
    trained: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    # What stage 2 trained is now something else than what was exported.
    shutil.copy(run / "ptq" / "model.safetensors", run / "stage2" / "model.safetensors")
    last = models_of([str(run)])[-1]
    assert (last.name, last.stage, last.run) == ("int8, ONNX", None, None)


def test_files_are_models_too_and_may_be_named(trained: Any) -> None:
    stage = trained.run / "stage1" / "model.safetensors"
    found = models_of([f"mine={stage}", str(trained.run / "int8.onnx")])
    assert [m.name for m in found] == ["mine", "Full QAT, ONNX"]
    assert found[0].run is not None
    for model in found:
        predictor, segmenter = model.open()
        assert isinstance(predictor, Predictor)
        assert predictor.name == model.name
        assert (segmenter is None) == (model.kind == "onnx")


def test_two_runs_are_told_apart_by_their_folders(trained: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained.run, other)
    models = models_of([str(trained.run), str(other)])
    names = [m.name for m in models]
    assert names.count("Random weights") == 1  # both start from the same weights
    assert "AdaLoRA · run" in names
    assert "AdaLoRA · other" in names
    assert "Decoder fine-tuning · other" in names
    with pytest.raises(DataError, match="two models would be called"):
        models_of([str(other), str(other)])


def test_evaluate_takes_the_furthest_stage_of_the_run_itself(trained: Any) -> None:
    assert model_at(trained.run).kind == "stage2"
    assert model_at(trained.run / "decoder_only").name == "Decoder fine-tuning"
    assert model_at(trained.run / "int8.onnx").kind == "onnx"


def test_what_is_no_model_is_told(tmp_path: Path, trained: Any) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        models_of([str(tmp_path / "nowhere")])
    with pytest.raises(CheckpointError, match="not a run folder"):
        models_of([str(tmp_path)])
    (tmp_path / "config.yaml").write_text((trained.run / "config.yaml").read_text())
    with pytest.raises(DataError, match="no finished stage 1"):
        models_of([str(tmp_path)])


def test_a_path_that_exists_is_never_split(tmp_path: Path) -> None:
    odd = tmp_path / "lr=1"
    odd.mkdir()
    assert named(str(odd)) == (None, odd)
    assert named(f"a={odd}") == ("a", odd)


@pytest.mark.parametrize(
    ("overrides", "stage", "name"),
    [
        ((), "stage1", "AdaLoRA"),
        (("adapt.method=lora", "adapt.rank=8", "stage1.decoder=frozen"), "stage1",
         "LoRA r=8, encoder only"),
        (("stage1.encoder=full",), "stage1", "Full fine-tuning"),
        (("quantize.policy=decoder",), "stage2", "D-QAT"),
        (("quantize.policy=w4a8",), "ptq", "PTQ (w4a8)"),
    ],
)  # fmt: skip
def test_stages_have_the_papers_names(overrides: tuple[str, ...], stage: str, name: str) -> None:
    assert stage_name(load_config("litemedsam", overrides), stage) == name  # type: ignore[arg-type]


def test_a_baseline_is_one_row_and_opens_as_a_predictor(tmp_path: Path) -> None:
    config = load_config("segformer", ("baselines.size=tiny", "baselines.side=64"))
    run = RunFolder.create(tmp_path / "run", config)
    net, origin = build_baseline(config.baselines, 0)  # type: ignore[arg-type]
    file = run.stage("stage1") / "model.safetensors"
    save_baseline(file, net.state_dict(), config, origin)
    (row,) = models_of([str(run.path)])
    assert row.name == "SegFormer-TINY, random init"
    assert model_at(run.path).sha256 == row.sha256
    assert models_of([str(file)])[0].name == row.name
    predictor, segmenter = row.open()
    assert segmenter is None
    assert not uses_boxes(predictor)
    facts = facts_of(row)
    assert facts.total == facts.trainable == sum(p.numel() for p in net.parameters())
    assert (facts.encoder, facts.paper) == ("full, random init", "segformer")
