import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from adalora_qat.adapt.inject import adapters, inject
from adalora_qat.config import AdaptConfig
from adalora_qat.errors import ConfigError
from adalora_qat.model.sam import Segmenter, random_segmenter
from adalora_qat.quantize.accounting import (
    bytes_by_part,
    lambda_movement,
    lambdas,
    policy_table,
    quantization_error,
)
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.quantize.convert import convert
from adalora_qat.quantize.pack import save_packed
from adalora_qat.quantize.policy import load_policy, parse_policy
from adalora_qat.quantize.prepare import freeze, observe, prepare

IMAGES = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[[5.0, 5, 50, 60]]])


def calibrated(model: Segmenter, policy: str) -> Segmenter:
    prepare(model, load_policy(policy))
    observe(model)
    with torch.no_grad():
        model(IMAGES, BOXES)
    freeze(model)
    return model


def totals(model: nn.Module) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in bytes_by_part(model):
        for precision, size in part.bytes.items():
            found[precision] = found.get(precision, 0) + size
    return found


def test_float_model_has_four_bytes_a_parameter() -> None:
    model = random_segmenter("tiny-vit-test", 0)
    parts = {part.part: part for part in bytes_by_part(model)}
    assert set(parts) == {"image_encoder", "prompt_encoder", "mask_decoder"}
    for name, part in parts.items():
        child = model.get_submodule(name)
        assert part.parameters == sum(p.numel() for p in child.parameters())
        assert part.total == sum(v.nbytes for v in child.state_dict().values())
    assert parts["mask_decoder"].float_bytes == parts["mask_decoder"].bytes["FP32"]


@pytest.mark.parametrize("policy", ["full", "w4a8", "int8-all", "weight-only", "decoder"])
def test_counts_equal_the_file(policy: str, tmp_path: Path) -> None:
    model = random_segmenter("tiny-vit-test", 0)
    inject(model.image_encoder, AdaptConfig(rank=2, schedule=()), 0)
    before = sum(part.parameters for part in bytes_by_part(model))
    calibrated(model, policy)
    promised = totals(model)
    convert(model)
    assert totals(model) == promised
    path = tmp_path / "model.safetensors"
    save_packed(model, path)
    # The file is its tensors, and a header of JSON in front.
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    # A scale that stays unseen, and its flag, are not stored.
    assert sum(promised.values()) == path.stat().st_size - header
    merged = sum(a.P.numel() + a.Q.numel() + a.lam.numel() for a in adapters(model).values())
    after = sum(part.parameters for part in bytes_by_part(model))
    whole = 2 * (2 * 32 + 2 * 96 + 2)
    assert after == before - (whole - merged)


def test_table_lists_every_layer_with_its_numerics() -> None:
    model = random_segmenter("tiny-vit-test", 0)
    lines = {line.name: line for line in policy_table(model, load_policy("full"))}
    qkv = lines["image_encoder.layers.0.attn.qkv"]
    assert str(qkv.numerics) == "float32" and qkv.shape == (96, 32)
    assert qkv.parameters == 96 * 32 + 96
    assert lines["image_encoder.pos_embed"].kind == "parameter"
    assert str(lines["image_encoder.pos_embed"].numerics) == "W INT8, A float32"


def test_errors_are_weight_minus_shipped() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30))
    weight = model[0].weight.detach().flatten().numpy()
    policy = parse_policy("name: x\nrows: [{match: '*', weight: {bits: 8}}]", "x")
    prepare(model, policy)
    with pytest.raises(ConfigError, match="no scale yet"):
        quantization_error(model)
    observe(model)
    freeze(model)
    (found,) = quantization_error(model)
    step = np.abs(weight).max() / 127
    np.testing.assert_allclose(found.weight, weight)
    np.testing.assert_allclose(found.shipped, np.rint(weight / step) * step, rtol=1e-5)
    statistics = found.statistics()
    # Uniform rounding: a standard deviation of step / √12, no bias.
    assert statistics["std"] == pytest.approx(step / 12**0.5, rel=0.05)
    assert abs(statistics["mean"]) < 3 * step / 12**0.5 / 1200**0.5
    assert statistics["largest"] <= step / 2 * 1.001
    assert statistics["snr_db"] == pytest.approx(
        10 * np.log10(np.square(weight).mean() / statistics["std"] ** 2), abs=0.2
    )
    assert statistics["correlation"] > 0.999
    (sampled,) = quantization_error(model, sample=100)
    assert sampled.weight.size == 100 and sampled.weight[1] == weight[12]


def test_errors_of_constant_and_zero_weights_are_finite_or_said() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    nn.init.zeros_(model[0].weight)
    prepare(model, parse_policy("name: x\nrows: [{match: '*', weight: {bits: 8}}]", "x"))
    observe(model)
    freeze(model)
    statistics = quantization_error(model)[0].statistics()
    assert statistics["largest"] == 0 and statistics["snr_db"] == float("inf")


def test_errors_include_parameters_and_effective_weights() -> None:
    model = random_segmenter("tiny-vit-test", 0)
    inject(model.image_encoder, AdaptConfig(rank=2, schedule=()), 0)
    name, adapter = next(iter(adapters(model.image_encoder).items()))
    adapter.lam.data.fill_(0.5)
    calibrated(model, "int8-all")
    errors = {error.name: error for error in quantization_error(model)}
    expected = (adapter.weight + adapter.delta_weight()).detach().flatten().numpy()
    np.testing.assert_array_equal(errors[f"image_encoder.{name}"].weight, expected)
    assert "image_encoder.pos_embed" in errors


def test_lambda_movement_by_hand() -> None:
    before = {"a": torch.tensor([3.0, 4.0]), "zero": torch.zeros(2), "none": torch.zeros(0)}
    after = {"a": torch.tensor([3.0, 4.5]), "zero": torch.zeros(2), "none": torch.zeros(0)}
    moved = {movement.name: movement for movement in lambda_movement(before, after)}
    assert moved["a"].largest == 0.5 and moved["a"].mean == 0.25
    assert moved["a"].relative == pytest.approx(0.1)
    assert moved["zero"].relative == 0 and moved["none"].rank == 0
    with pytest.raises(ConfigError, match="different adapters"):
        lambda_movement(before, {"a": before["a"]})


def test_lambdas_have_the_same_names_before_and_after_prepare() -> None:
    model = random_segmenter("tiny-test", 0)
    fold_batch_norms(model)
    inject(model.image_encoder, AdaptConfig(rank=2, schedule=()), 0)
    before = lambdas(model)
    prepared = calibrated(copy.deepcopy(model), "int8-all")
    assert lambdas(prepared).keys() == before.keys() and before
    next(iter(adapters(model.image_encoder).values())).lam.data.fill_(1)
    moved = lambda_movement(before, lambdas(model))
    assert sorted(movement.largest for movement in moved)[-1] == 1
    assert sum(movement.largest > 0 for movement in moved) == 1
