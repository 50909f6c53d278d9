import numpy as np
import pytest
import torch
from torch import nn

from adalora_qat.adapt.svd_linear import SVDLinear
from adalora_qat.errors import ConfigError
from adalora_qat.quantize.operators import integer_forward, kind_of, operator_of, sums_in_half

LAYERS = {
    "linear": (nn.Linear(5, 3), (2, 7, 5)),
    "conv": (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9, 8)),
    "same": (nn.Conv2d(4, 6, 3, padding="same", dilation=2), (2, 4, 9, 8)),
    "conv_transpose": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
        (2, 4, 5, 6),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_operator_is_the_layer(name: str) -> None:
    layer, shape = LAYERS[name]
    x = torch.randn(shape)
    operator = operator_of(name, layer)
    assert torch.equal(operator(x, layer.weight, layer.bias), layer(x))
    rebuilt = operator.empty_layer(tuple(layer.weight.shape))
    assert rebuilt.weight.shape == layer.weight.shape
    assert operator_of(name, rebuilt) == operator


def test_embedding_operator() -> None:
    layer, indices = nn.Embedding(4, 3), torch.tensor([[0, 3], [1, 1]])
    assert torch.equal(operator_of("e", layer)(indices, layer.weight), layer(indices))


def test_kinds() -> None:
    assert kind_of(SVDLinear.from_linear(nn.Linear(4, 4), 2)) == "linear"
    assert kind_of(nn.LayerNorm(4)) is None
    assert kind_of(nn.Conv1d(1, 1, 1)) is None


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(4, 4, 2, groups=2),
        nn.Embedding(4, 4, max_norm=1.0),
        nn.LayerNorm(3),
    ],
)
def test_layers_the_runtime_could_not_reproduce_are_refused(layer: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"block\.3"):
        operator_of("block.3", layer)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", ["linear", "conv", "conv_transpose"])
def test_integer_forward_is_exact_integer_arithmetic(name: str, per_channel: bool) -> None:
    """The sums are recomputed in float64, where they are exact whatever their order."""
    layer, shape = LAYERS[name]
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.integers(-127, 128, shape), dtype=torch.float32)
    weight = torch.tensor(rng.integers(-127, 128, layer.weight.shape), dtype=torch.float32)
    channels = layer.bias.numel()
    bias = torch.tensor(rng.integers(-9999, 9999, channels), dtype=torch.float32)
    weight_scale = torch.tensor(rng.random(channels if per_channel else ()), dtype=torch.float32)
    input_scale = torch.tensor(0.037)
    operator = operator_of(name, layer)
    result = integer_forward(operator, x, weight, bias, input_scale, weight_scale)
    sums = operator(x.double(), weight.double(), bias.double()).numpy().astype(np.int64)
    scale = (np.float32(0.037) * weight_scale.numpy()).astype(np.float32)
    if name != "linear":
        scale = scale.reshape(-1, 1, 1)
    np.testing.assert_array_equal(result.numpy(), sums.astype(np.float32) * scale)


def test_bfloat16_output_is_scaled_by_the_float32_scale() -> None:
    operator = operator_of("fc", nn.Linear(1, 1))
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    scale = torch.tensor(1.0 + 2.0**-8)  # bfloat16 would round it to 1
    result = integer_forward(operator, one * 64, one * 2, None, scale, scale)
    assert result.dtype == torch.bfloat16
    assert float(result) == 129.0


def test_float16_autocast_is_noticed() -> None:
    x = torch.ones(1)
    assert not sums_in_half(x)
    assert sums_in_half(x.half())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not sums_in_half(x)
    with torch.autocast("cpu", dtype=torch.float16):
        assert sums_in_half(x)
