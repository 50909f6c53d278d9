"""Integer sums are exact on every processor."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from adalora_qat.export.kernels import all_graphs
from adalora_qat.runtime import session
from adalora_qat.runtime.session import (
    PROBE,
    available_cpus,
    exact_sums,
    inference_session,
    runnable,
    session_options,
    unsigned,
)

SHIPPED = Path(session.__file__).parents[1] / "weights" / "lungs-int8.onnx"


def test_the_probe_is_what_it_says() -> None:
    weights = helper.make_tensor("b", TensorProto.INT8, [4, 4], bytes([127] * 16), raw=True)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "p",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [2, 4])],
        [weights],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 10)], ir_version=9, producer_name=""
    )
    assert model.SerializeToString() == PROBE


def largest_product() -> onnx.ModelProto:
    """Return u8 · s8 at both ends of the range, as ``export.layers`` names its tensors."""
    weight = np.full((64, 8), 127, np.int8)
    weight[::3] = -127
    constants = {
        "layer.weight_int8": weight,
        "layer.weight_zero_point": np.zeros((), np.int8),
        # Not a weight of an integer product: no zero point goes with it.
        "table_int8": np.arange(-4, 4, dtype=np.int8),
    }
    graph = helper.make_graph(
        [
            helper.make_node(
                "MatMulInteger",
                ["x", "layer.weight_int8", "", "layer.weight_zero_point"],
                ["sum"],
            ),
            helper.make_node("Cast", ["table_int8"], ["table"], to=TensorProto.INT32),
            helper.make_node("Add", ["sum", "table"], ["y"]),
        ],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [3, 64])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [3, 8])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("exact", [True, False])
def test_sums_are_exact(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if exact and not exact_sums():
        pytest.skip("this processor has no VNNI: signed weights saturate")
    monkeypatch.setattr(session, "exact_sums", lambda: exact)
    model = largest_product()
    x = np.full((3, 64), 255, np.uint8)
    found = inference_session(model.SerializeToString(), session_options(1)).run(None, {"x": x})[0]
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(np.int64)
    np.testing.assert_array_equal(found, x.astype(np.int64) @ weight + np.arange(-4, 4))


def test_only_weights_with_a_zero_point_change() -> None:
    before = largest_product()
    after = onnx.load_from_string(unsigned(before.SerializeToString(), weights=True))
    onnx.checker.check_model(after)
    kinds = {t.name: t.data_type for t in after.graph.initializer}
    assert kinds == {
        "layer.weight_int8": TensorProto.UINT8,
        "layer.weight_zero_point": TensorProto.UINT8,
        "table_int8": TensorProto.INT8,
    }
    weight, zero, table = map(onnx.numpy_helper.to_array, after.graph.initializer)
    assert zero == 128
    old = onnx.numpy_helper.to_array(before.graph.initializer[0])
    np.testing.assert_array_equal(weight.astype(int) - 128, old)
    np.testing.assert_array_equal(table, np.arange(-4, 4))


def test_weights_inside_branches_and_loops_change_too() -> None:
    changed = unsigned(SHIPPED.read_bytes(), weights=True)
    assert len(changed) == SHIPPED.stat().st_size
    seen = 0
    for graph in all_graphs(onnx.load_from_string(changed).graph):
        kinds = {t.name: t.data_type for t in graph.initializer}
        for name in kinds:
            if name.endswith("weight_zero_point"):
                integers = kinds.get(name.replace("_zero_point", "_int8"))
                assert kinds[name] == TensorProto.UINT8
                assert integers == TensorProto.UINT8
                seen += 1
    assert seen > 60


def test_what_is_no_model_stays_as_it_is() -> None:
    for broken in (b"", b"no model", PROBE[:50], b"\x3a\xff\xff\xff\xff\x0f" + bytes(8)):
        assert unsigned(broken, weights=True) is broken


def test_a_file_without_such_weights_is_left_to_the_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "exact_sums", lambda: False)
    file = tmp_path / "probe.onnx"
    file.write_bytes(PROBE)  # its weight has no zero point
    assert runnable(file) == str(file)
    assert runnable(PROBE) is PROBE


def test_activations_change_without_weights() -> None:
    before = largest_product()
    for name, value in (("layer.input_zero_point", 0), ("qkv.blank", -3)):
        before.graph.initializer.append(onnx.numpy_helper.from_array(np.int8([value]), name))
    after = onnx.load_from_string(unsigned(before.SerializeToString(), weights=False))
    found = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
    assert found["layer.input_zero_point"].tolist() == [128]
    assert found["qkv.blank"].tolist() == [125]
    assert found["layer.weight_int8"].dtype == np.int8


def test_other_processors_read_the_file_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.platform, "machine", lambda: "aarch64")
    assert runnable(SHIPPED) == str(SHIPPED)


def test_an_exact_processor_reads_the_file_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "exact_sums", lambda: True)
    assert runnable(SHIPPED) == str(SHIPPED)


@pytest.mark.parametrize(
    ("quota", "share"),
    [("max 100000\n", 8), ("150000 100000\n", 2), ("20000 100000\n", 1), ("rubbish", 8), ("", 8)],
)
def test_processors_are_counted_within_the_quota(
    quota: str, share: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cpu_count", "process_cpu_count"):
        monkeypatch.setattr(os, name, lambda: 8, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    (tmp_path / "cpu.max").write_text(quota)
    assert available_cpus(tmp_path / "cpu.max") == share
    assert available_cpus(tmp_path / "none") == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert available_cpus(tmp_path / "none") == 1


def test_threads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "available_cpus", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    asked = [session_options(threads).intra_op_num_threads for threads in (1, 2, 256, None)]
    assert asked == [1, 2, 2, 2]
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert session_options().intra_op_num_threads == 2
