"""The PΛQ layer: exact at the start, masked, FP32 where it must be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adalora_qat.adapt.svd_linear import SVDLinear, orthogonality_penalty
from adalora_qat.errors import ConfigError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(
    rank: int = 4, inside: int = 6, out: int = 8, scaling: float = 1.0, bias: bool = True
) -> SVDLinear:
    torch.manual_seed(1)
    linear = nn.Linear(inside, out, bias=bias)
    return SVDLinear.from_linear(linear, rank, scaling, generator())


@torch.no_grad()
def filled(**options: float) -> SVDLinear:
    adapter = layer(**options)  # type: ignore[arg-type]
    adapter.lam.copy_(torch.linspace(-1, 2, adapter.rank))
    return adapter


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", [0, 1, 6])
def test_starts_as_the_pretrained_layer_bit_for_bit(rank: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 8, bias=bias)
    adapter = SVDLinear.from_linear(linear, rank, 0.7, generator())
    x = torch.randn(3, 5, 6)
    assert torch.equal(adapter(x), linear(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(adapter(x), linear(x))
    assert torch.equal(adapter.merged()(x), linear(x))


def test_to_linear_gives_back_what_from_linear_took() -> None:
    linear = nn.Linear(6, 8)
    back = SVDLinear.from_linear(linear, 3, 1.0, generator()).to_linear()
    assert type(back) is nn.Linear
    assert torch.equal(back.weight, linear.weight)
    assert torch.equal(back.bias, linear.bias)
    assert (back.in_features, back.out_features) == (6, 8)


@settings(deadline=None, max_examples=25)
@given(rank=st.integers(0, 5), scaling=st.floats(0.1, 4), seed=st.integers(0, 99))
def test_forward_equals_the_formula(rank: int, scaling: float, seed: int) -> None:
    adapter = layer(rank, 5, 7, scaling)
    torch.manual_seed(seed)
    with torch.no_grad():
        adapter.lam.normal_()
        adapter.mask.copy_(torch.rand(rank) > 0.3)
    x = torch.randn(4, 5)
    P, Q = adapter.P.detach().double(), adapter.Q.detach().double()
    diagonal = torch.diag(adapter.lam.detach().double() * adapter.mask)
    delta = scaling * P @ diagonal @ Q
    wanted = x.double() @ (adapter.weight.double() + delta).T + adapter.bias.double()
    assert torch.allclose(adapter(x).double(), wanted, atol=1e-5)
    assert torch.allclose(adapter.delta_weight().double(), delta, atol=1e-5)
    assert torch.allclose(adapter.merged()(x).double(), wanted, atol=1e-5)


def test_bases_are_orthonormal_and_drawn_from_the_generator_alone() -> None:
    adapter = layer(rank=4)
    assert torch.allclose(adapter.P.T @ adapter.P, torch.eye(4), atol=1e-6)
    assert torch.allclose(adapter.Q @ adapter.Q.T, torch.eye(4), atol=1e-6)
    torch.manual_seed(12345)
    again = SVDLinear.from_linear(nn.Linear(6, 8), 4, 1.0, generator())
    assert torch.equal(adapter.P, again.P)
    assert torch.equal(adapter.Q, again.Q)
    other = SVDLinear.from_linear(nn.Linear(6, 8), 4, 1.0, generator(1))
    assert not torch.equal(adapter.P, other.P)


def test_only_the_adapter_trains() -> None:
    trainable = {name for name, p in layer().named_parameters() if p.requires_grad}
    assert trainable == {"P", "lam", "Q"}


def test_masked_triplets_pass_neither_value_nor_gradient() -> None:
    adapter = filled(rank=4)
    with torch.no_grad():
        adapter.mask[1] = False
        adapter.lam[1] = float("nan")
    loss = adapter(torch.randn(5, 6)).square().sum() + adapter.orthogonality()
    loss.backward()
    assert torch.isfinite(loss)
    assert adapter.lam.grad[1] == 0
    assert not adapter.P.grad[:, 1].any()
    assert not adapter.Q.grad[1].any()
    assert adapter.lam.grad[[0, 2, 3]].all()


def test_orthogonality_is_the_sum_of_squared_frobenius_norms() -> None:
    adapter = layer(rank=3)
    assert adapter.orthogonality() < 1e-10
    with torch.no_grad():
        adapter.P.copy_(torch.zeros(8, 3))
        adapter.Q.copy_(torch.eye(3, 6) * 2)
    # ‖0 − I‖² = 3 and ‖4I − I‖² = 27.
    assert adapter.orthogonality().item() == pytest.approx(30)
    with torch.no_grad():
        adapter.mask[0] = False
    assert adapter.orthogonality().item() == pytest.approx(20)


def test_orthogonality_does_not_involve_lambda() -> None:
    adapter = filled(rank=4)
    gradient = torch.autograd.grad(adapter.orthogonality(), adapter.lam, allow_unused=True)[0]
    assert gradient is None


def test_penalty_is_the_mean_over_adapters_in_fp32() -> None:
    a, b = layer(rank=3), layer(rank=0)
    with torch.no_grad():
        a.P.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        penalty = orthogonality_penalty({"a": a, "b": b})
    assert penalty.dtype == torch.float32
    assert penalty.item() == pytest.approx(1.5)
    assert orthogonality_penalty({}) == 0


def test_lambda_and_scaling_stay_fp32_when_the_model_is_cast() -> None:
    adapter = filled(rank=4, scaling=0.3)
    lam = adapter.lam.detach().clone() + 1e-6
    with torch.no_grad():
        adapter.lam.copy_(lam)
    adapter.bfloat16()
    assert adapter.P.dtype == torch.bfloat16
    assert torch.equal(adapter.lam, lam)
    assert adapter.scaling == torch.tensor(0.3)
    out = adapter(torch.randn(2, 6, dtype=torch.bfloat16))
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert adapter.lam.grad.dtype == torch.float32


def test_autocast_keeps_the_gradient_of_lambda_in_fp32() -> None:
    adapter = filled(rank=4)
    x = torch.randn(64, 6)
    with torch.autocast("cpu", torch.bfloat16):
        out = adapter(x)
        weight = adapter.delta_weight()
    out.float().square().mean().backward()
    assert out.dtype == torch.bfloat16
    assert weight.dtype == adapter.lam.grad.dtype == torch.float32
    # A gradient rounded to bf16 would survive the round trip.
    assert not torch.equal(adapter.lam.grad, adapter.lam.grad.bfloat16().float())


def test_compact_leaves_the_function() -> None:
    adapter = filled(rank=4)
    with torch.no_grad():
        adapter.mask[[0, 2]] = False
    x = torch.randn(5, 6)
    before = adapter(x)  # Keeps its graph alive, as a training loop's last loss does.
    kept = adapter.compact()
    assert kept.tolist() == [1, 3]
    assert adapter.P.shape == (8, 2)
    assert adapter.Q.shape == (2, 6)
    assert adapter.mask.tolist() == [True, True]
    assert torch.allclose(adapter(x), before, atol=1e-6)
    adapter(x).sum().backward()
    assert adapter.P.grad.shape == (8, 2)


def test_compact_to_rank_zero_still_runs_both_ways() -> None:
    adapter = filled(rank=2)
    adapter.mask.zero_()
    adapter.compact()
    x = torch.randn(3, 6, requires_grad=True)
    adapter(x).sum().backward()
    assert torch.equal(adapter(x), adapter.to_linear()(x))
    assert x.grad is not None
    assert adapter.lam.grad.shape == (0,)
    assert adapter.orthogonality() == 0


def test_state_dict_reloads_exactly() -> None:
    adapter = filled(rank=4)
    with torch.no_grad():
        adapter.mask[2] = False
    other = SVDLinear.from_linear(nn.Linear(6, 8), 4, 9.0, generator(7))
    other.load_state_dict(adapter.state_dict())
    x = torch.randn(3, 6)
    assert torch.equal(other(x), adapter(x))


@pytest.mark.parametrize("rank", [-1, 7])
def test_rank_beyond_the_layer_is_refused(rank: int) -> None:
    with pytest.raises(ConfigError, match="between 0 and 6"):
        layer(rank=rank)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_rebuilt_adapter_lies_in_memory_as_a_pruned_one(rank: int) -> None:
    # Matrix products round by layout: a run resumed after a pruning is to end the same.
    pruned = SVDLinear.from_linear(nn.Linear(8, 24), 6)
    pruned.mask[rank:] = False
    pruned.compact()
    rebuilt = SVDLinear.from_linear(nn.Linear(8, 24), rank)
    for leaf in ("P", "Q", "lam"):
        assert getattr(rebuilt, leaf).stride() == getattr(pruned, leaf).stride()
