"""Parameters, bytes and words for Tables 2 and 3."""

from pathlib import Path
from typing import Any

import pytest

from adalora_qat.checkpoint import load_model
from adalora_qat.errors import DataError
from adalora_qat.model.sam import random_segmenter
from adalora_qat.recipe import load_config
from adalora_qat.study.facts import facts_of, published_counterpart, read_facts, write_facts
from adalora_qat.study.models import models_of
from adalora_qat.study.study import ModelFacts


@pytest.fixture(scope="module")
def facts(trained: Any) -> dict[str, ModelFacts]:
    models = models_of([str(trained.run)])
    return {model.name: facts_of(model, *model.open()) for model in models}


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


def test_only_what_the_paper_trained_answers_to_its_rows() -> None:
    lora = load_config("litemedsam", ("adapt.method=lora", "adapt.rank=8", "stage1.decoder=frozen"))
    assert published_counterpart(lora, "stage1") == "lora"
    wide = load_config("litemedsam", ("adapt.method=lora", "adapt.rank=16"))
    assert published_counterpart(wide, "stage1") is None
    four_bits = load_config("litemedsam", ("quantize.policy=w4a8",))
    assert published_counterpart(four_bits, "stage2") is None


def test_facts_are_read_back(tmp_path: Path) -> None:
    facts = ModelFacts(10, 5, 40, None, "frozen", "full", "decoder")
    write_facts(tmp_path, "mine", facts, {"device": "cpu"})
    assert read_facts(tmp_path) == ("mine", facts, {"device": "cpu"})
    assert read_facts(tmp_path / "elsewhere") is None
    (tmp_path / "model.json").write_text('{"name": "x"}')
    with pytest.raises(DataError, match="damaged"):
        read_facts(tmp_path)
