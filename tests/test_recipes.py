"""Every shipped recipe builds, and trains exactly what its name says."""

import time
from pathlib import Path

import pytest

from adalora_qat.errors import ConfigError
from adalora_qat.recipe import RECIPES, load_config, packaged_names
from adalora_qat.study.parameters import count_parameters

ABLATIONS = {
    "decoder-only",
    "lora-r8-encoder",
    "lora-r8",
    "lora-r16",
    "lora-r32",
    "adalora",
    "d-qat",
    "full-finetuning",
    "peft-schedule",
    "single-event",
}
# Counted by hand. Adapted widths (in + out) of the qkv layers: SAM ViT-B 12 × (768 + 2304);
# TinyViT, three stages: 2 × (128 + 384), 6 × (160 + 480), 2 × (320 + 960).
DECODER = 4_058_340
WIDTHS = {"sam-vit-base": (12, 12 * 3072), "litemedsam": (10, 2 * 512 + 6 * 640 + 2 * 1280)}
ENCODER = {"sam-vit-base": 89_670_912, "litemedsam": 5_726_740}


@pytest.mark.parametrize("base", WIDTHS)
def test_every_ablation_ships_for_both_models(base: str) -> None:
    assert {f"{base}-{name}" for name in ABLATIONS} | {base} <= set(packaged_names(RECIPES))


@pytest.mark.parametrize("base", WIDTHS)
@pytest.mark.parametrize("name", sorted(ABLATIONS))
def test_trainable_parameters(base: str, name: str) -> None:
    layers, widths = WIDTHS[base]

    def lora(rank: int) -> int:
        return rank * widths

    def svd(rank: int) -> int:
        return rank * (widths + layers)  # Λ too

    hybrid = (DECODER + svd(48), DECODER + svd(32))
    expected = {
        "decoder-only": (DECODER, DECODER),
        "lora-r8-encoder": (lora(8), lora(8)),
        "lora-r8": (DECODER + lora(8), DECODER + lora(8)),
        "lora-r16": (DECODER + lora(16), DECODER + lora(16)),
        "lora-r32": (DECODER + lora(32), DECODER + lora(32)),
        "adalora": hybrid,
        "d-qat": hybrid,
        "full-finetuning": (ENCODER[base] + DECODER,) * 2,
        "peft-schedule": hybrid,
        "single-event": hybrid,
    }[name]
    total = count_parameters(load_config(f"{base}-{name}"))["total"]
    assert (total["start"], total["pruned"]) == expected


@pytest.mark.parametrize("base", WIDTHS)
def test_ablations_differ_in_what_they_are_about(base: str) -> None:
    whole = load_config(base)
    for name in ABLATIONS:
        config = load_config(f"{base}-{name}")
        assert config.name == f"{base}-{name}"
        assert (config.seed, config.data, config.model) == (whole.seed, whole.data, whole.model)
        same = ("epochs", "batch_size", "lr_decoder", "lr_decay", "warmup_steps")
        assert all(getattr(config.stage1, k) == getattr(whole.stage1, k) for k in same)
        quantized = config.quantize.policy
        assert quantized == ("decoder" if name == "d-qat" else "none")
        assert (config.stage2.epochs > 0) == (name == "d-qat")
    assert whole.quantize.policy == "full"


def test_four_bits_start_from_the_same_first_stage() -> None:
    whole, deeper = load_config("litemedsam"), load_config("litemedsam-w4a8")
    for section in ("model", "data", "adapt", "stage1", "seed"):
        assert getattr(deeper, section) == getattr(whole, section)
    assert deeper.quantize.policy == "w4a8"


@pytest.mark.parametrize("base", WIDTHS)
def test_pruning_rules(base: str) -> None:
    adapt = {name: load_config(f"{base}-{name}").adapt for name in ABLATIONS}
    assert adapt["adalora"].pruning_at(15) == {3: 43, 7: 37, 12: 32}
    assert adapt["single-event"].pruning_at(15) == {12: 32}
    cubic = adapt["peft-schedule"]
    assert (cubic.importance, cubic.allocation, cubic.schedule[-1].rank) == ("peft", "cubic", 32)
    assert adapt["adalora"].importance == "paper"


def test_the_shipped_models_recipe_mixes_prompts() -> None:
    config = load_config("litemedsam-auto")
    prompt = config.data.prompt
    assert 0 < prompt.oracle + prompt.whole_image < 1 and prompt.jitter_px > 0
    assert config.data.augment.enabled and config.data.augment.flip == 0
    assert config.quantize.policy == "int8-all"
    assert config.stage1.ema is not None and config.stage1.lambda_iou > 0
    assert config.adapt.pruning_at(config.stage1.epochs) == {12: 43, 28: 37, 48: 32}
    total = count_parameters(config)["total"]
    assert total == count_parameters(load_config("litemedsam-adalora"))["total"]


def test_fine_tuning_starts_from_the_packaged_model_with_its_prompts() -> None:
    config, made = load_config("litemedsam-finetune"), load_config("litemedsam-auto")
    assert config.model.weights == "packaged"
    assert config.data.prompt == made.data.prompt
    assert config.quantize == made.quantize
    # Three prunings stay three in so few epochs.
    assert config.adapt.pruning_at(config.stage1.epochs) == {1: 43, 3: 37, 5: 32}


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: caf\xe9\n", "not UTF-8"),
        (b"name: " + b"[" * 5000 + b"]" * 5000, "nested more than 20"),
        (b"name: " + b"{a: " * 5000, "nested more than 20"),
        ((LAUGHS + "name: *i\n").encode(), "aliases"),
        (b"#" * 2**18, "a recipe has"),
        (b"stage1: {lr_encoder: .inf}", "finite"),
        (b"stage1: {lr_encoder: .nan}", "stage1.lr_encoder"),
        (b"seed: 12345678901234567890", "less than 4294967296"),
        (b"seed: " + b"x" * 10_000, "x…"),
    ],
)
def test_a_hostile_recipe_is_refused_at_once(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    started = time.process_time()
    with pytest.raises(ConfigError, match=message) as refused:
        load_config(file)
    assert time.process_time() - started < 1
    assert len(str(refused.value)) < 1000


def test_an_override_is_bounded_too() -> None:
    with pytest.raises(ConfigError, match="not YAML"):
        load_config("demo", ["name=" + "[" * 5000])
