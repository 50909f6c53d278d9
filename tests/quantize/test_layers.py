import pytest
import torch
from torch import nn

from adalora_qat.adapt.svd_linear import SVDLinear
from adalora_qat.quantize.layers import (
    FakeQuantEmbedding,
    FakeQuantLayer,
    integer_bias,
    wrap,
)
from adalora_qat.quantize.numerics import LayerNumerics, Numerics

W8A8 = LayerNumerics(weight=Numerics(), activation=Numerics())
W8 = LayerNumerics(weight=Numerics(granularity="channel"))
W4A8 = LayerNumerics(
    weight=Numerics(bits=4, granularity="group", group_size=4), activation=Numerics()
)


def frozen(layer: nn.Module, numerics: LayerNumerics, x: torch.Tensor) -> FakeQuantLayer:
    wrapped = wrap("layer", layer, numerics)
    wrapped.weight_quantizer.observe()
    if wrapped.input_quantizer is not None:
        wrapped.input_quantizer.observe()
        wrapped(x)
    wrapped.freeze()
    return wrapped


@pytest.mark.parametrize(
    ("numerics", "bound"), [(W8A8, 0.03), (W8, 0.01), (W4A8, 0.2)], ids=["w8a8", "w8", "w4a8"]
)
def test_each_numerics_approximates_the_float_layer(numerics: LayerNumerics, bound: float) -> None:
    torch.manual_seed(0)
    for layer, shape in (
        (nn.Linear(16, 8), (4, 16)),
        (nn.Conv2d(8, 6, 3, padding=1), (2, 8, 9, 9)),
        (nn.ConvTranspose2d(8, 6, 2, stride=2), (2, 8, 5, 5)),
    ):
        x = torch.randn(shape)
        expected = layer(x)
        found = frozen(layer, numerics, x)(x)
        error = (found - expected).abs().max() / expected.abs().max()
        assert 0 < error < bound


def test_group_scales_follow_the_groups() -> None:
    """A group that is a thousand times smaller keeps its values; per tensor it would be zero."""
    layer = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[7.0, -3, 1, 2, 7e-3, -3e-3, 1e-3, 2e-3]]))
    kept = frozen(layer, W4A8, torch.ones(1, 8)).quantized_weight()
    torch.testing.assert_close(kept, layer.weight, rtol=1e-6, atol=0)


def test_embedding_shows_its_quantized_weight_and_trains_its_master() -> None:
    torch.manual_seed(0)
    layer = nn.Embedding(3, 4)
    wrapped = frozen(layer, W8A8, torch.tensor([0]))
    assert isinstance(wrapped, FakeQuantEmbedding) and wrapped.input_quantizer is None
    step = layer.weight.abs().max() / 127
    expected = (layer.weight / step).round() * step
    torch.testing.assert_close(wrapped.weight, expected)
    assert torch.equal(wrapped(torch.tensor([2])), wrapped.weight[2:])
    wrapped.weight.sum().backward()
    assert layer.weight.grad is not None and (layer.weight.grad == 1).all()


def test_bias_has_the_scale_of_the_sums() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    x = torch.randn(9, 4)
    wrapped = frozen(layer, W8A8, x)
    step = float(x.abs().max() / 127) * float(layer.weight.detach().abs().max() / 127)
    found = wrapped(torch.zeros(1, 4))[0].detach().double() / step
    assert (found - found.round()).abs().max() < 1e-3
    assert (wrapped(torch.zeros(1, 4))[0] - layer.bias).abs().max() <= step * 0.501


def test_bias_integers_saturate_below_two_to_the_31() -> None:
    integers = integer_bias(torch.tensor([1e20, -1e20, 2.5]), torch.tensor(1.0))
    assert integers.tolist() == [2147483520.0, -2147483520.0, 2.0]
    assert integers.to(torch.int32).tolist() == [2147483520, -2147483520, 2]


def test_adapter_gradients_equal_those_through_the_merged_weight() -> None:
    torch.manual_seed(0)
    adapter = SVDLinear.from_linear(nn.Linear(6, 5), 3)
    adapter.lam.data = torch.tensor([0.5, -0.3, 0.2])
    x = torch.randn(7, 6)
    wrapped = frozen(adapter, W8A8, x)
    wrapped(x).sum().backward()
    # By hand: ∂L/∂W_eff is the sum of quantized inputs, the same row for each output.
    step = x.abs().max() / 127
    row = ((x / step).round().clamp(-127, 127) * step).sum(0)
    expected = torch.einsum("or,i,ri->r", adapter.P, row, adapter.Q).detach()
    assert adapter.lam.grad is not None
    torch.testing.assert_close(adapter.lam.grad, expected, rtol=1e-4, atol=1e-4)
    assert adapter.weight.grad is None


def test_float_numerics_are_not_wrapped() -> None:
    with pytest.raises(ValueError, match="not wrapped"):
        wrap("fc", nn.Linear(2, 2), LayerNumerics())
