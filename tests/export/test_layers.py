from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from adalora_qat.errors import ExportError
from adalora_qat.export import layers
from adalora_qat.export.graph import Graph
from adalora_qat.export.kernels import integer_products, kernel_counts
from adalora_qat.quantize.convert import QuantizedLayer, convert
from adalora_qat.quantize.policy import parse_policy
from adalora_qat.quantize.prepare import freeze, observe, prepare
from adalora_qat.runtime.session import inference_session, session_options

Write = Callable[[Graph, nn.Module, str], str]
INT8 = "weight: {bits: 8}\n    activation: {bits: 8}"
CHANNEL = "weight: {bits: 8, granularity: channel}\n    activation: {bits: 8}"
FOUR_BITS = "weight: {bits: 4, granularity: channel}\n    activation: {bits: 8}"
WEIGHT_ONLY = "weight: {bits: 8, granularity: channel}"
GROUPS = "weight: {bits: 4, granularity: group, group_size: 8}\n    activation: {bits: 8}"


def quantized(layer: nn.Module, numerics: str, x: torch.Tensor) -> QuantizedLayer:
    model = nn.Sequential(layer)
    prepare(model, parse_policy(f"name: t\nrows:\n  - match: '*'\n    {numerics}\n", "t"))
    observe(model)
    model(x)
    freeze(model)
    found = convert(model.eval())[0]  # type: ignore[index]
    assert isinstance(found, QuantizedLayer)
    return found


def run(layer: nn.Module, write: Write, x: np.ndarray, outputs: int) -> tuple[np.ndarray, bytes]:
    g = Graph("layer")
    with g.scope("layer"):
        y = write(g, layer, g.input("x", x.shape))
    g.output(y, "y", ("M", outputs))
    model = g.model({})
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    session = inference_session(data, session_options())
    return session.run(None, {"x": x})[0], data


def rows(planes: torch.Tensor) -> np.ndarray:
    return planes.permute(0, 2, 3, 1).flatten(0, 2).contiguous().numpy()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("numerics", [INT8, CHANNEL, FOUR_BITS])
def test_linear_is_the_same_integers_to_the_last_bit(numerics: str, bias: bool) -> None:
    torch.manual_seed(0)
    calibration, x = torch.randn(64, 24), 3 * torch.randn(500, 24)  # most of x saturates
    layer = quantized(nn.Linear(24, 16, bias=bias), numerics, calibration)
    found, model = run(layer, layers.linear, x.numpy(), 16)
    np.testing.assert_array_equal(found, layer(x).numpy())
    assert kernel_counts(model) == {"QGemm": 1}


def test_minus_128_is_kept_out_only_where_it_could_come() -> None:
    layer = quantized(nn.Linear(8, 4), INT8, torch.randn(64, 8))
    scale = float(layer.input_scale)  # type: ignore[arg-type]

    def nodes(floor: float | None) -> list[str]:
        g = Graph("floor")
        layers.linear(g, layer, g.input("x", (5, 8)), floor)
        return [node.op_type for node in g.model({}).graph.node]

    assert "Clip" in nodes(None)
    assert "Clip" in nodes(-127.6 * scale)
    assert "Clip" not in nodes(-127.4 * scale)


def test_relu_on_integers_is_relu() -> None:
    torch.manual_seed(1)
    x = torch.randn(200, 8)
    layer = quantized(nn.Linear(8, 4), INT8, x.relu())
    found, model = run(layer, lambda g, m, v: layers.linear(g, m, v, relu=True), x.numpy(), 4)
    np.testing.assert_array_equal(found, layer(x.relu()).numpy())
    assert kernel_counts(model) == {"QGemm": 1}


def test_relu_before_a_float_layer() -> None:
    layer, x = nn.Linear(8, 4), torch.randn(5, 8)
    found, _ = run(layer, lambda g, m, v: layers.linear(g, m, v, relu=True), x.numpy(), 4)
    np.testing.assert_allclose(found, layer(x.relu()).detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("numerics", [WEIGHT_ONLY, GROUPS, GROUPS.split("\n")[0]])
def test_layers_without_integer_sums_multiply_floats(numerics: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 20)  # 20 inputs: the last group of 8 is cut short
    layer = quantized(nn.Linear(20, 6), numerics, x)
    found, model = run(layer, layers.linear, x.numpy(), 6)
    np.testing.assert_allclose(found, layer(x).numpy(), rtol=1e-5, atol=1e-5)
    assert kernel_counts(model) == {"Gemm": 1}
    stored = {one.name: one.data_type for one in onnx.load_from_string(model).graph.initializer}
    assert onnx.TensorProto.FLOAT not in {
        kind for name, kind in stored.items() if name.endswith("weight")
    }


@pytest.mark.parametrize("numerics", [INT8, WEIGHT_ONLY])
def test_rows_of_a_product_are_picked(numerics: str) -> None:
    x = torch.randn(7, 8)
    layer = quantized(nn.Linear(8, 6), numerics, x)
    picked = torch.tensor([5, 0, 3])
    found, _ = run(
        layer,
        lambda g, m, v: layers.product(g, m, layers.quantize(g, m, v), picked, "part"),
        x.numpy(),
        3,
    )
    expected = layer(x).numpy()[:, picked]
    # Integers sum exactly. Of floats, either sum of nine terms, the bias among them, rounds by
    # 9·2⁻²⁴ of their sizes at most (Higham, "Accuracy and Stability", Sec. 3.1).
    sizes = (x.abs() @ layer.weight.abs().T + layer.float_bias().abs()).numpy()[:, picked]
    bound = 0 if numerics == INT8 else 2 * 9 * 2.0**-24 * sizes
    assert (np.abs(found - expected) <= bound).all()


CONVOLUTIONS = {
    "1x1": nn.Conv2d(6, 5, 1),
    "3x3": nn.Conv2d(6, 5, 3, padding=1, bias=False),
    "3x3 stride 2": nn.Conv2d(6, 5, 3, stride=2, padding=1),
    "patches": nn.Conv2d(6, 5, 4, stride=4),
    "5x5 valid": nn.Conv2d(6, 5, 5),
    "depthwise": nn.Conv2d(6, 6, 3, padding=1, groups=6),
    "dilated": nn.Conv2d(6, 5, 3, padding=2, dilation=2),
    "1x1 stride 2": nn.Conv2d(6, 5, 1, stride=2),
    "wide": nn.Conv2d(6, 5, (1, 3), padding=(0, 1)),
}
# These run in float32 over quantized values.
WITHOUT_INTEGER_KERNEL = {"depthwise", "dilated", "wide"}


@pytest.mark.parametrize("numerics", ["float", INT8, CHANNEL, FOUR_BITS, WEIGHT_ONLY])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, numerics: str) -> None:
    torch.manual_seed(2)
    x = torch.randn(1, 6, 8, 12)
    float_layer = CONVOLUTIONS[name]
    layer = float_layer if numerics == "float" else quantized(float_layer, numerics, x)
    with torch.no_grad():
        expected = rows(layer(2 * x))

    def write(g: Graph, m: nn.Module, v: str) -> str:
        if layers.is_integer_product(m):
            return layers.convolve(g, m, v, (8, 12))
        planes = g.transpose(g.reshape(v, (1, 8, 12, 6)), (0, 3, 1, 2))
        out = layers.convolve_planes(g, m, planes)
        return g.reshape(g.transpose(out, (0, 2, 3, 1)), (-1, expected.shape[1]))

    found, model = run(layer, write, rows(2 * x), expected.shape[1])
    integer = numerics in (INT8, CHANNEL, FOUR_BITS) and name not in WITHOUT_INTEGER_KERNEL
    tolerance = 0 if integer else 1e-5
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    assert ("QGemm" in kernel_counts(model)) == integer


@pytest.mark.parametrize("numerics", ["float", INT8, CHANNEL, WEIGHT_ONLY])
def test_transposed_convolution(numerics: str) -> None:
    torch.manual_seed(3)
    x, layer = torch.randn(1, 6, 4, 5), nn.ConvTranspose2d(6, 3, 2, stride=2)
    if numerics != "float":
        layer = quantized(layer, numerics, x)  # type: ignore[assignment]
    with torch.no_grad():
        expected = rows(layer(x))
    found, model = run(
        layer, lambda g, m, v: layers.convolve_transposed(g, m, v, (4, 5)), rows(x), 3
    )
    # Rows come as (row, column) of the upscaled map either way.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert ("QGemm" in kernel_counts(model)) == (numerics in (INT8, CHANNEL))


def test_other_transposed_convolutions_are_refused() -> None:
    g = Graph("refused")
    with pytest.raises(ExportError, match="kernel = stride"):
        layers.convolve_transposed(
            g, nn.ConvTranspose2d(4, 4, 3, stride=2), g.input("x", (4, 4)), (2, 2)
        )


def test_known_values_are_quantized_as_the_runtime_would() -> None:
    x = torch.linspace(-3, 3, 300).view(-1, 6)
    layer = quantized(nn.Linear(6, 2), INT8, x / 2)
    scale = float(layer.input_scale)  # type: ignore[arg-type]
    expected = np.clip(np.rint(x.numpy() / np.float32(scale)), -127, 127)
    np.testing.assert_array_equal(layers.quantized_constant(layer, x), expected)


def test_integer_products_are_found_by_how_they_are_written() -> None:
    layer = quantized(nn.Linear(8, 4), INT8, torch.randn(9, 8))
    _, model = run(layer, layers.linear, np.zeros((2, 8), np.float32), 4)
    assert integer_products(onnx.load_from_string(model)) == ["/layer/Gemm"]
    _, model = run(nn.Linear(8, 4), layers.linear, np.zeros((2, 8), np.float32), 4)
    assert integer_products(onnx.load_from_string(model)) == []


def test_four_bits_take_half_a_byte() -> None:
    x = torch.randn(9, 15)
    layer = quantized(nn.Linear(15, 7), FOUR_BITS, x)
    _, model = run(layer, layers.linear, x.numpy(), 7)
    [weight] = [
        one for one in onnx.load_from_string(model).graph.initializer if "weight_int4" in one.name
    ]
    assert weight.data_type == onnx.TensorProto.INT4
    assert len(weight.raw_data) == (7 * 15 + 1) // 2
    stored = onnx.numpy_helper.to_array(weight).astype(np.int8)
    np.testing.assert_array_equal(stored, layer.weight_int8.numpy())
