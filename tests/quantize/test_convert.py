"""The integer layers against the fake-quantized ones, and against ONNX Runtime's integers."""

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import nn

from adalora_qat.adapt.inject import inject, merge
from adalora_qat.config import AdaptConfig, QuantizeConfig
from adalora_qat.errors import ConfigError
from adalora_qat.model.sam import Segmenter, random_segmenter
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.quantize.convert import (
    QuantizedEmbedding,
    QuantizedLayer,
    convert,
    dequantize,
    integer_layers,
)
from adalora_qat.quantize.policy import POLICIES, load_policy, parse_policy
from adalora_qat.quantize.prepare import freeze, learn, observe, prepare
from adalora_qat.recipe import packaged_names

W8A8 = parse_policy(
    "name: x\nrows: [{match: '*', weight: {bits: 8}, activation: {bits: 8}}]", "w8a8"
)
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[[5.0, 5, 50, 60]], [[1, 2, 30, 40]]])


@pytest.fixture(scope="module", params=["tiny-test", "tiny-vit-test"])
def adapted(request: pytest.FixtureRequest) -> Segmenter:
    segmenter = random_segmenter(request.param, 0)
    config = AdaptConfig(rank=4, schedule=())
    for seed, adapter in enumerate(inject(segmenter.image_encoder, config, 0).values()):
        generator = torch.Generator().manual_seed(seed)
        adapter.lam.data = torch.randn(4, generator=generator) * 0.3
    fold_batch_norms(segmenter)
    return segmenter


def calibrated(model: nn.Module, policy: str, *, per_channel: bool = False) -> None:
    prepare(model, load_policy(policy), QuantizeConfig(per_channel=per_channel))
    observe(model)
    model(IMAGES, BOXES)
    freeze(model)


@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("policy", [name for name in packaged_names(POLICIES) if name != "none"])
@torch.no_grad()
def test_converted_model_is_bit_identical(
    adapted: Segmenter, policy: str, per_channel: bool
) -> None:
    prepared = copy.deepcopy(adapted)
    calibrated(prepared, policy, per_channel=per_channel)
    expected = prepared(IMAGES, BOXES)
    converted = convert(copy.deepcopy(prepared))
    for found, wanted in zip(converted(IMAGES, BOXES), expected, strict=True):
        assert torch.equal(found, wanted)
    # A copy was converted: the original must be unharmed.
    assert torch.equal(prepared(IMAGES, BOXES)[0], expected[0])
    limit = {"w4a8": 7}.get(policy, 127)
    for layer in integer_layers(converted).values():
        if isinstance(layer, QuantizedLayer) and layer.operator.kind == "linear":
            assert layer.weight_int8.dtype == torch.int8
            assert layer.weight_int8.abs().max() <= limit
            if layer.integer_sums and layer.float_bias() is not None:
                assert layer.bias_int32 is not None and layer.bias_int32.dtype == torch.int32


@torch.no_grad()
def test_no_float_weight_is_left_behind(adapted: Segmenter) -> None:
    model = copy.deepcopy(adapted)
    calibrated(model, "int8-all")
    convert(model)
    kept = ("weight_scale", "rel_pos", "attention_biases", "positional_embedding")
    matrices = [k for k, v in model.state_dict().items() if v.is_floating_point() and v.ndim > 1]
    assert not [key for key in matrices if not any(part in key for part in kept)]


@torch.no_grad()
def test_scales_that_were_learned_are_shipped_as_they_are(adapted: Segmenter) -> None:
    model = copy.deepcopy(adapted)
    calibrated(model, "full")
    for scale in learn(model).values():
        scale.mul_(1.07)
    freeze(model)
    expected = model(IMAGES, BOXES)[0]
    assert torch.equal(convert(model)(IMAGES, BOXES)[0], expected)


@torch.no_grad()
def test_adapters_beside_integers_merge_before_and_after(adapted: Segmenter) -> None:
    model = copy.deepcopy(adapted)
    calibrated(model, "full")
    expected = model(IMAGES, BOXES)[0]
    convert(model)
    merge(model)
    # Merging adds up in another order: equal but for a rounding that falls the other way.
    assert (model(IMAGES, BOXES)[0] - expected).abs().mean() < 0.05 * expected.abs().mean()


@torch.no_grad()
def test_dequantize_gives_the_float_model_of_the_integers(adapted: Segmenter) -> None:
    model = copy.deepcopy(adapted)
    calibrated(model, "weight-only")
    convert(model)
    expected = model(IMAGES, BOXES)[0]
    other = copy.deepcopy(model)
    merge(adapted_copy := copy.deepcopy(adapted))
    plain = dequantize(model)
    assert plain.state_dict().keys() == adapted_copy.state_dict().keys()
    assert not integer_layers(plain)
    assert torch.equal(plain(IMAGES, BOXES)[0], expected)
    assert torch.equal(other(IMAGES, BOXES)[0], expected)


def test_misuse_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ConfigError, match="prepare"):
        convert(model)
    prepare(model, W8A8)
    with pytest.raises(ConfigError, match="0 is in mode 'float': call freeze"):
        convert(model)


def test_a_bias_that_grew_beyond_int32_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    prepare(model, W8A8)
    observe(model)
    model(torch.randn(4, 3))
    freeze(model)
    with torch.no_grad():
        model[0].layer.bias[1] = 1e30
    with pytest.raises(ConfigError, match="0: the bias"):
        convert(model)


@torch.no_grad()
def test_embedding_keeps_its_weight_readable() -> None:
    model = nn.Sequential(nn.Embedding(5, 4))
    prepare(model, W8A8)
    observe(model)
    freeze(model)
    expected = model[0].weight.clone()
    convert(model)
    assert isinstance(model[0], QuantizedEmbedding)
    assert torch.equal(model[0].weight, expected)


def integer_graph(layer: QuantizedLayer, rank: int) -> onnxruntime.InferenceSession:
    """QuantizeLinear → MatMulInteger or ConvInteger → + INT32 bias → float · scale."""
    weight = layer.weight_int8.numpy()
    assert layer.input_scale is not None and layer.bias_int32 is not None
    scale = (layer.input_scale * layer.weight_scale).numpy()
    bias = layer.bias_int32.numpy()
    if isinstance(layer, QuantizedLayer) and layer.operator.kind == "linear":
        operator, attributes, weight = "MatMulInteger", {}, weight.T.copy()
    else:
        operator, attributes = "ConvInteger", {"pads": [1, 1, 1, 1]}
        bias, scale = bias.reshape(-1, 1, 1), scale.reshape(-1, 1, 1) if scale.ndim else scale
    constants = {
        "s": (TensorProto.FLOAT, layer.input_scale.numpy()),
        # ConvInteger takes unsigned inputs: the same integers, 128 higher.
        "z": (TensorProto.UINT8, np.array(128, np.uint8)),
        # And unsigned weights: x86 without VNNI adds products with signed ones in 16 bits.
        "w": (TensorProto.UINT8, (weight.astype(np.int16) + 128).astype(np.uint8)),
        "b": (TensorProto.INT32, bias),
        "o": (TensorProto.FLOAT, scale),
    }
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node(operator, ["q", "w", "z", "z"], ["acc"], **attributes),
            helper.make_node("Add", ["acc", "b"], ["sum"]),
            helper.make_node("Cast", ["sum"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["f", "o"], ["y"]),
        ],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * rank)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [
            helper.make_tensor(name, dtype, value.shape, value.tobytes(), raw=True)
            for name, (dtype, value) in constants.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # As written, node by node: fusion may reorder the float product at the end.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(["linear", "conv"]),
    per_channel=st.booleans(),
    outlier=st.sampled_from([1.0, 1e4, 1e20]),
)
@torch.no_grad()
def test_onnx_runtime_computes_the_same_bits(
    seed: int, kind: str, per_channel: bool, outlier: float
) -> None:
    torch.manual_seed(seed)
    layer, shape = (
        (nn.Linear(48, 7), (5, 48))
        if kind == "linear"
        else (nn.Conv2d(6, 5, 3, padding=1), (2, 6, 7, 7))
    )
    x = torch.randn(shape)
    x.view(-1)[0] *= outlier
    model = nn.Sequential(layer)
    prepare(model, W8A8, QuantizeConfig(per_channel=per_channel))
    observe(model)
    # Half the range: the rest saturates.
    model(x * 0.5)
    freeze(model)
    # QuantizeLinear has no −127: an input of −128 would be the runtime's own.
    x = x.clamp_min(float(model[0].input_quantizer.scale) * -127)
    convert(model)
    (found,) = integer_graph(model[0], len(shape)).run(None, {"x": x.numpy()})
    np.testing.assert_array_equal(found, model(x).numpy())
