"""Fixed-rank LoRA: exact at the start, the formula, the round trip."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adalora_qat.adapt.lora import LoRALinear
from adalora_qat.errors import ConfigError


def layer(rank: int = 3, scaling: float = 2.0, bias: bool = True) -> LoRALinear:
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(0)
    return LoRALinear.from_linear(nn.Linear(6, 8, bias=bias), rank, scaling, generator)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", [0, 1, 9])
def test_starts_as_the_pretrained_layer_bit_for_bit(rank: int, bias: bool) -> None:
    adapter = layer(rank, bias=bias)
    linear = adapter.to_linear()
    x = torch.randn(3, 5, 6)
    assert torch.equal(adapter(x), linear(x))
    assert torch.equal(adapter.merged().weight, linear.weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(adapter(x), linear(x))


@settings(deadline=None, max_examples=25)
@given(rank=st.integers(0, 5), scaling=st.floats(0.1, 4), seed=st.integers(0, 99))
def test_forward_equals_the_formula(rank: int, scaling: float, seed: int) -> None:
    adapter = layer(rank, scaling)
    torch.manual_seed(seed)
    with torch.no_grad():
        adapter.B.normal_()
    x = torch.randn(4, 6)
    delta = scaling * adapter.B.detach().double() @ adapter.A.detach().double()
    wanted = x.double() @ (adapter.weight.double() + delta).T + adapter.bias.double()
    assert torch.allclose(adapter(x).double(), wanted, atol=1e-5)
    assert torch.allclose(adapter.delta_weight().double(), delta, atol=1e-5)
    assert torch.allclose(adapter.merged()(x).double(), wanted, atol=1e-5)


def test_a_is_kaiming_uniform_from_the_generator_alone() -> None:
    adapter = LoRALinear.from_linear(nn.Linear(400, 8), 50, 1.0, torch.Generator().manual_seed(0))
    bound = 1 / math.sqrt(400)
    assert adapter.A.abs().max() <= bound
    assert adapter.A.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    torch.manual_seed(99)
    again = LoRALinear.from_linear(nn.Linear(400, 8), 50, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(adapter.A, again.A)


def test_only_the_adapter_trains_and_gradients_flow() -> None:
    adapter = layer()
    assert {n for n, p in adapter.named_parameters() if p.requires_grad} == {"A", "B"}
    adapter(torch.randn(4, 6)).sum().backward()
    assert adapter.B.grad.any()


def test_scaling_is_stored_and_stays_fp32() -> None:
    adapter = layer(scaling=1 / 3)
    assert adapter.state_dict()["scaling"] == torch.tensor(1 / 3)
    adapter.bfloat16()
    assert adapter.scaling == torch.tensor(1 / 3)
    assert adapter(torch.randn(2, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_negative_rank_is_refused() -> None:
    with pytest.raises(ConfigError, match="negative"):
        layer(rank=-1)
