import numpy as np
import pytest
import torch
from torch import nn

from adalora_qat.errors import ConfigError, TrainingError
from adalora_qat.quantize.fake_quant import FakeQuantizer, fake_quantize, integers_of, quantize
from adalora_qat.quantize.numerics import Numerics

STEP = torch.tensor(0.5)


def test_straight_through_gradient_is_zero_where_clipped() -> None:
    values = torch.tensor([0.3, 63.7, 64.1, -70.0, 63.5], requires_grad=True)
    fake_quantize(values, STEP, 127).sum().backward()
    # 63.7 rounds to 127 and is inside; 64.1 rounds to 128 and is clipped.
    assert values.grad is not None
    assert values.grad.tolist() == [1, 1, 0, 0, 1]


def test_integers_carry_the_same_gradient_divided_by_the_scale() -> None:
    values = torch.tensor([0.3, 63.7, 64.1, -70.0], requires_grad=True)
    integers = quantize(values, STEP, 127)
    assert integers.tolist() == [1, 127, 127, -127]
    (integers * STEP).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1, 1, 0, 0]


def test_learned_step_gradient_is_that_of_the_paper() -> None:
    """LSQ, Eq. 3, by hand: round(v/s) − v/s inside, ±Q outside."""
    values = torch.tensor([0.3, -0.6, 64.1, -70.0])
    scale = STEP.clone().requires_grad_()
    fake_quantize(values, scale.expand(4), 127).sum().backward()
    ratio = np.array([0.6, -1.2])
    expected = float((np.rint(ratio) - ratio).sum()) + 127 - 127
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(expected, abs=1e-5)


def test_learning_scales_the_gradient_by_the_square_root_of_count_and_limit() -> None:
    quantizer = FakeQuantizer(Numerics())
    values = torch.tensor([0.3, -0.6, 1.27, 0.11])
    quantizer.observe()
    quantizer(values)
    quantizer.freeze("x")
    quantizer.learn()
    quantizer(values).sum().backward()
    step = values.abs().max().item() / 127
    ratio = values.numpy() / np.float32(step)
    plain = float((np.rint(ratio) - ratio).sum())
    assert quantizer.scale.grad is not None
    assert float(quantizer.scale.grad) == pytest.approx(plain / (4 * 127) ** 0.5, abs=1e-5)


def test_learned_scale_reduces_the_error_of_a_bad_one() -> None:
    quantizer = FakeQuantizer(Numerics(bits=4))
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    quantizer.observe()
    quantizer(values)
    quantizer.freeze("x")
    quantizer.learn()
    before = float((quantizer(values) - values).detach().square().mean())
    optimizer = torch.optim.Adam([quantizer.scale], lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        (quantizer(values) - values).square().mean().backward()
        optimizer.step()
    quantizer.freeze("x")
    assert float((quantizer(values) - values).detach().square().mean()) < 0.9 * before


def test_modes_are_explicit_and_the_state_dict_key_stays() -> None:
    quantizer = FakeQuantizer(Numerics())
    values = torch.linspace(-1, 1, 7)
    assert torch.equal(quantizer(values), values)
    with pytest.raises(ConfigError, match="freeze"):
        quantizer.observe()
        quantizer.learn()
    assert torch.equal(quantizer(values), values)
    quantizer.freeze("x")
    assert float(quantizer.scale) == np.float32(1) / np.float32(127)
    assert not list(quantizer.parameters())
    quantizer.learn()
    assert set(quantizer.state_dict()) == {"observed", "scale"}
    assert [name for name, _ in quantizer.named_parameters()] == ["scale"]
    quantizer.freeze("x")
    assert not list(quantizer.parameters())


def test_unseen_quantizer_stays_float() -> None:
    quantizer = FakeQuantizer(Numerics())
    quantizer.observe()
    quantizer.freeze("x")
    assert quantizer.mode == "float" and not quantizer.observed


def test_non_finite_activations_are_refused_by_name() -> None:
    quantizer = FakeQuantizer(Numerics())
    quantizer.observe()
    quantizer(torch.tensor([1.0, float("inf")]))
    with pytest.raises(TrainingError, match=r"decoder\.fc1"):
        quantizer.freeze("decoder.fc1")


def test_scale_stays_float32_when_the_model_is_cast() -> None:
    quantizer = FakeQuantizer(Numerics())
    quantizer.observe()
    quantizer(torch.tensor([0.3]))
    quantizer.freeze("x")
    expected = quantizer.scale.clone()
    nn.Sequential(quantizer).to(torch.bfloat16)
    assert quantizer.scale.dtype == torch.float32
    assert torch.equal(quantizer.scale, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_integers_of_half_precision_are_those_of_their_float32_values(dtype: torch.dtype) -> None:
    values = torch.randn(500, generator=torch.Generator().manual_seed(0)).to(dtype)
    scale = torch.tensor(0.013)
    integers = quantize(values, scale, 127)
    assert integers.dtype == dtype
    expected = np.clip(np.rint(values.float().numpy() / np.float32(0.013)), -127, 127)
    np.testing.assert_array_equal(integers.float().numpy(), expected)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_weight_scales_map_each_largest_value_to_the_limit(granularity: str) -> None:
    group = 4 if granularity == "group" else None
    numerics = Numerics(bits=4, granularity=granularity, group_size=group)
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    quantizer = FakeQuantizer(numerics, weight)
    quantizer.observe()
    quantizer.freeze("w", weight)
    integers = integers_of(weight, quantizer).numpy()
    rows = {"tensor": (1, -1), "channel": (5, -1), "group": (15, -1)}[granularity]
    assert (np.abs(integers).reshape(rows).max(1) == 7).all()
    assert quantizer.scale.numel() == rows[0]
