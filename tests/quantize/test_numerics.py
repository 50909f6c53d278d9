"""Expectations come from NumPy and ONNX Runtime, not from torch."""

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from pydantic import ValidationError

from adalora_qat.quantize.numerics import (
    MIN_SCALE,
    LayerNumerics,
    Numerics,
    as_rows,
    as_stored,
    broadcast_scale,
    scale_of,
    scale_shape,
    to_integers,
)
from adalora_qat.quantize.pack import pack_int4, unpack_int4

KINDS = ("normal", "zeros", "outlier", "denormal", "saturating", "ties", "constant", "huge")


def tensor(seed: int, kind: str, size: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(size).astype(np.float32)
    if kind == "zeros":
        return np.zeros(size, np.float32)
    if kind == "outlier":
        values[rng.integers(size)] = np.float32(rng.choice([-1, 1]) * 1e30)
    if kind == "denormal":
        return (values * np.float32(1e-41)).astype(np.float32)
    if kind == "ties":
        return (rng.integers(-130, 130, size) + np.float32(0.5)).astype(np.float32)
    if kind == "constant":
        return np.full(size, values[0])
    if kind == "huge":
        return (values / np.abs(values).max() * np.finfo(np.float32).max).astype(np.float32)
    return values


@pytest.fixture(scope="module")
def quantize_linear() -> onnxruntime.InferenceSession:
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])],
        "quantize",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info("q", TensorProto.INT8, ["n"])],
        [helper.make_tensor("z", TensorProto.INT8, [], [0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    size=st.integers(1, 300),
    bits=st.sampled_from([4, 8]),
)
def test_thousand_tensors_agree_with_numpy_onnx_runtime_and_packing(
    quantize_linear: onnxruntime.InferenceSession, seed: int, kind: str, size: int, bits: int
) -> None:
    values = tensor(seed, kind, size)
    limit = 127 if bits == 8 else 7
    # A saturating tensor meets a scale that was observed on something smaller.
    largest = np.abs(values).max() * (0.3 if kind == "saturating" else 1)
    scale = scale_of(torch.tensor(largest), limit)
    integers = to_integers(torch.from_numpy(values), scale, limit).numpy()

    step = np.float32(scale)
    assert np.isfinite(step) and step > 0
    expected = np.clip(np.rint(values / step), -limit, limit)
    np.testing.assert_array_equal(integers, expected)
    (from_runtime,) = quantize_linear.run(None, {"x": values, "s": np.asarray(step)})
    np.testing.assert_array_equal(integers, np.clip(from_runtime, -limit, limit))
    if bits == 4:
        packed = pack_int4(torch.from_numpy(integers).to(torch.int8))
        assert packed.numel() == (size + 1) // 2
        np.testing.assert_array_equal(unpack_int4(packed, (size,)).numpy(), expected)
    if kind != "saturating":
        # Half a step, and what float32 loses in the division and the product.
        error = np.abs(values.astype(np.float64) - integers * np.float64(step))
        bound = float(step) * 0.5 * (1 + 1e-4) if step != 1 or kind == "ties" else 1.0
        assert error.max() <= bound


@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-38, MIN_SCALE * 126])
def test_zero_and_denormal_ranges_get_scale_one(largest: float) -> None:
    assert scale_of(torch.tensor(largest), 127) == 1


def test_product_of_two_least_scales_is_a_normal_number() -> None:
    least = scale_of(torch.tensor(MIN_SCALE * 127), 127)
    assert least == MIN_SCALE
    assert float(least * least) >= np.finfo(np.float32).tiny


def test_rounds_half_to_even_and_saturates_symmetrically() -> None:
    values = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 200.0, -200.0, -128.0])
    expected = torch.tensor([0.0, 2, 2, -0.0, -2, 127, -127, -127])
    assert torch.equal(to_integers(values, torch.tensor(1.0), 127), expected)


def test_limits_of_bits() -> None:
    assert [Numerics(bits=bits).limit for bits in (2, 4, 8)] == [1, 7, 127]


@pytest.mark.parametrize(
    "wrong",
    [{"bits": 1}, {"bits": 9}, {"granularity": "group"}, {"group_size": 8}, {"percentile": 20}],
)
def test_numerics_that_do_not_hold_together_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Numerics.model_validate(wrong)


def test_layer_numerics_need_a_weight_and_one_activation_scale() -> None:
    with pytest.raises(ValidationError, match="give weight too"):
        LayerNumerics(activation=Numerics())
    with pytest.raises(ValidationError, match="granularity must be tensor"):
        LayerNumerics(weight=Numerics(), activation=Numerics(granularity="channel"))


@pytest.mark.parametrize(
    ("shape", "axis", "group", "expected"),
    [((6, 10), 0, 4, (6, 3)), ((6, 2, 3, 3), 0, 6, (6, 3)), ((2, 6, 3, 3), 1, 6, (6, 3))],
)
def test_group_scales_belong_to_runs_of_inputs(
    shape: tuple[int, ...], axis: int, group: int, expected: tuple[int, ...]
) -> None:
    weight = torch.arange(float(np.prod(shape))).reshape(shape) + 1
    numerics = Numerics(bits=4, granularity="group", group_size=group)
    assert scale_shape(weight, numerics, axis) == expected
    largest = as_rows(weight, numerics, axis).amax(-1)
    spread = broadcast_scale(largest, weight.shape, group, axis)
    rows, spread_rows = (np.moveaxis(t.numpy(), axis, 0).reshape(6, -1) for t in (weight, spread))
    for channel in range(6):
        for start in range(0, rows.shape[1], group):
            run = slice(start, start + group)
            assert (spread_rows[channel, run] == rows[channel, run].max()).all()


def test_half_precision_scales_are_for_groups() -> None:
    with pytest.raises(ValidationError, match="float16 goes with granularity=group"):
        Numerics(scale_dtype="float16")
    numerics = Numerics(granularity="group", group_size=4, scale_dtype="float16")
    scales = torch.tensor([1e-30, 1 / 3, 1.0, 1e30])
    stored = as_stored(scales, numerics)
    assert torch.equal(stored.half().float(), stored)
    assert bool((stored > 0).all()) and bool(torch.isfinite(stored).all())
    assert float(stored[1]) == pytest.approx(1 / 3, rel=2**-11)
    plain = Numerics(granularity="group", group_size=4)
    assert torch.equal(as_stored(scales, plain), scales)
