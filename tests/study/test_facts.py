"""Parameters, bytes and words for Tables 2 and 3."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from adalora_qat.checkpoint import RunFolder, load_model, save_model
from adalora_qat.errors import DataError
from adalora_qat.model.sam import random_segmenter
from adalora_qat.recipe import load_config
from adalora_qat.study import facts as facts_module
from adalora_qat.study.facts import (
    facts_of,
    read_facts,
    stage_facts,
    write_facts,
    write_run_facts,
)
from adalora_qat.study.models import models_of
from adalora_qat.study.study import ModelFacts

FROZEN = ("stage1.encoder=frozen", "adapt.method=none", "quantize.policy=none", "stage2.epochs=0")


@pytest.fixture
def run(trained: Any, tmp_path: Path) -> RunFolder:
    """Return a copy of the trained run, without ``facts.json``."""
    shutil.copytree(trained.run, tmp_path / "run")
    return RunFolder.open(tmp_path / "run")


@pytest.fixture(scope="module")
def facts(trained: Any) -> dict[str, ModelFacts]:
    models = models_of([str(trained.run)])
    return {model.name: facts_of(model) for model in models}


def test_parameters_are_counted_by_part(facts: dict[str, ModelFacts], trained: Any) -> None:
    plain = random_segmenter("tiny-test", 0, side=64)
    total = sum(p.numel() for p in plain.parameters())
    decoder = sum(p.numel() for p in plain.mask_decoder.parameters())
    assert facts["Random weights"].total == total
    assert facts["Random weights"].trainable == 0
    assert facts["Decoder fine-tuning"].trainable == decoder
    # The ranks that pruning left, each a P column, a Q row and a Λ.
    segmenter, told = load_model(trained.run / "stage1" / "model.safetensors")
    kept = 0
    for name, rank in told["ranks"].items():
        layer = segmenter.image_encoder.get_submodule(name)
        kept += rank * (layer.in_features + layer.out_features + 1)
    assert sum(told["ranks"].values()) == 4 * len(told["ranks"])
    assert facts["AdaLoRA"].trainable == decoder + kept
    assert facts["AdaLoRA"].total == total + kept


def test_bytes_are_of_what_ships(facts: dict[str, ModelFacts], trained: Any) -> None:
    onnx = trained.run / "int8.onnx"
    assert facts["Full QAT, ONNX"].bytes == onnx.stat().st_size
    sizes = {name: fact.bytes or 0 for name, fact in facts.items()}
    # Adapters are merged, so stage 1 is no larger than the model it started from.
    assert sizes["AdaLoRA"] == pytest.approx(sizes["Random weights"], rel=0.02)
    assert sizes["PTQ"] < 0.7 * sizes["AdaLoRA"]


def test_words_say_how_parts_were_trained(facts: dict[str, ModelFacts]) -> None:
    words = {name: (fact.encoder, fact.decoder, fact.paper) for name, fact in facts.items()}
    assert words["Random weights"] == ("frozen", "frozen", None)
    assert words["Decoder fine-tuning"] == ("frozen", "full", "decoder")
    assert words["AdaLoRA"] == ("AdaLoRA", "full", "adalora")
    assert words["PTQ"] == ("AdaLoRA, INT8", "full, INT8", None)
    assert words["Full QAT"] == ("AdaLoRA, INT8", "full, INT8", "fullqat")
    # What was exported is the trained model: same parameters, same words.
    assert words["Full QAT, ONNX"] == words["Full QAT"]
    assert facts["Full QAT, ONNX"].trainable == facts["Full QAT"].trainable


def test_facts_are_written_once_and_read_after(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_run_facts(run)
    assert list(written) == ["stage1", "ptq", "stage2"]
    assert written["stage1"].policy == "none"
    assert written["stage2"].policy == "full"
    # The plan of the conftest: 8 ranks at the start, 4 on average at the end.
    adapters = written["stage1"].parts["adapters"]
    assert adapters["start"] == 2 * adapters["pruned"]
    assert set(written["stage2"].ranks) == set(written["stage1"].ranks)
    model = next(m for m in models_of([str(run.path)]) if m.kind == "stage2")
    expected = facts_of(model)
    monkeypatch.setattr(facts_module, "_counted", pytest.fail)
    assert facts_of(model) == expected
    assert write_run_facts(run) == written
    # Trained again, a stage is counted again.
    monkeypatch.undo()
    shutil.copy(run.stage("ptq") / "model.safetensors", run.stage("stage2") / "model.safetensors")
    assert stage_facts(run, "stage2").sha256 == written["ptq"].sha256
    (run.path / "facts.json").write_text("[")
    with pytest.raises(DataError, match=r"facts\.json is damaged"):
        stage_facts(run, "stage1")


def test_a_run_without_facts_is_counted_the_same(run: RunFolder) -> None:
    counted = {stage: stage_facts(run, stage) for stage in ("stage1", "ptq", "stage2")}
    assert not (run.path / "facts.json").exists()
    assert write_run_facts(run) == counted


def test_a_stage_of_no_epochs_trains_nothing(tmp_path: Path) -> None:
    overrides = (*FROZEN, "stage1.epochs=0", "model.variant=tiny-test", "model.init=random")
    config = load_config("demo", overrides)
    run = RunFolder.create(tmp_path / "zero-shot", config)
    segmenter = random_segmenter("tiny-test", 0)
    save_model(segmenter, run.stage("stage1") / "model.safetensors", config, "stage1")
    facts = stage_facts(run, "stage1")
    assert (facts.trainable, facts.paper) == (0, None)
    assert (facts.encoder, facts.decoder) == ("frozen", "frozen")
    assert facts.total == sum(p.numel() for p in segmenter.parameters())


def test_facts_are_read_back(tmp_path: Path) -> None:
    facts = ModelFacts(10, 5, 40, None, "frozen", "full", "decoder")
    write_facts(tmp_path, "mine", facts, {"device": "cpu"})
    assert read_facts(tmp_path) == ("mine", facts, {"device": "cpu"})
    assert read_facts(tmp_path / "elsewhere") is None
    (tmp_path / "model.json").write_text('{"name": "x"}')
    with pytest.raises(DataError, match="damaged"):
        read_facts(tmp_path)
