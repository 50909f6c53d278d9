from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from adalora_qat.errors import ExportError
from adalora_qat.export.kernels import integer_products, kernel_counts, require_integer_kernels


def gemm_model(path: Path, *, fused: bool) -> onnx.ModelProto:
    """Quantized input and weight, int32 bias; joined with a Relu it becomes a float Gemm."""
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "s", "u"], ["xq"]),
        node("DequantizeLinear", ["xq", "s", "u"], ["xd"]),
        node("DequantizeLinear", ["w", "s", "i"], ["wd"]),
        node("DequantizeLinear", ["b", "s", "j"], ["bd"]),
        node("Gemm", ["xd", "wd", "bd"], ["g"], name="/product", transB=1),
        node("Relu" if fused else "Neg", ["g"], ["r"]),
        node("QuantizeLinear", ["r", "s", "u"], ["rq"]),
        node("DequantizeLinear", ["rq", "s", "u"], ["y"]),
    ]
    values = {
        "s": np.float32(0.1),
        "u": np.uint8(128),
        "i": np.int8(0),
        "j": np.int32(0),
        "w": np.ones((4, 8), np.int8),
        "b": np.ones(4, np.int32),
    }
    graph = helper.make_graph(
        nodes,
        "gemm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return model


def test_integer_products_that_run_as_such_pass(tmp_path: Path) -> None:
    path = tmp_path / "good.onnx"
    model = gemm_model(path, fused=False)
    assert integer_products(model) == ["/product"]
    assert require_integer_kernels(model, path) == {"QGemm": 1}
    assert kernel_counts(path) == {"QGemm": 1}


def test_a_product_that_fell_back_to_float_is_named(tmp_path: Path) -> None:
    path = tmp_path / "fallen.onnx"
    model = gemm_model(path, fused=True)
    with pytest.raises(ExportError, match="1 of 1 integer products would run in float32"):
        require_integer_kernels(model, path)
