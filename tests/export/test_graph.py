import numpy as np
import onnx
import pytest
import torch

from adalora_qat.export.graph import IR_VERSION, IR_VERSION_INT4, OPSET, OPSET_INT4, Graph
from adalora_qat.runtime.session import inference_session, session_options


def run(g: Graph, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    model = g.model({})
    onnx.checker.check_model(model, full_check=True)
    session = inference_session(model.SerializeToString(), session_options())
    return session.run(None, feeds)


def test_names_follow_the_scopes() -> None:
    g = Graph("names")
    x = g.input("x", (2, 3))
    with g.scope("encoder"), g.scope("layers.0"):
        y = g.relu(x)
        y = g.relu(g.add(y, g.constant("bias", torch.ones(3))))
    g.output(y, "y", (2, 3))
    graph = g.model({"key": "value"}).graph
    assert [node.name for node in graph.node] == [
        "/encoder/layers/0/Relu",
        "/encoder/layers/0/Add",
        "/encoder/layers/0/Relu_1",
        "/y",
    ]
    assert [one.name for one in graph.initializer] == ["encoder.layers.0.bias"]


def test_metadata_and_opset_are_written() -> None:
    g = Graph("meta")
    g.output(g.gelu(g.input("x", (1,))), "y", (1,))
    model = g.model({"key": "value"})
    assert {prop.key: prop.value for prop in model.metadata_props} == {"key": "value"}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert model.ir_version == IR_VERSION


def test_one_name_cannot_hold_two_values() -> None:
    g = Graph("constants")
    assert g.constant("a", 1.0) == g.constant("a", 1.0)
    with pytest.raises(ValueError, match="two different values"):
        g.constant("a", 2.0)


def test_every_operator_computes_what_numpy_does() -> None:
    g, rng = Graph("operators"), np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    value = g.input("x", ("B", 3, 4))
    norm = torch.nn.LayerNorm(4)
    torch.nn.init.normal_(norm.weight)
    index = np.array([[0, 2], [1, 1]])
    expected = {
        g.concat([value, value], axis=1): np.concatenate([x, x], axis=1),
        g.reshape(value, (-1, 12)): x.reshape(-1, 12),
        g.slice(value, 2, 0, 4, 2): x[..., ::2],
        g.transpose(value, (0, 2, 1)): x.transpose(0, 2, 1),
        g.relu(value): np.maximum(x, 0),
        g.multiply(value, g.constant("two", 2.0)): x * 2,
        g.matmul(value, g.constant("eye", 3 * torch.eye(4))): 3 * x,
        g.gather(value, index, axis=1): x[:, index],
        g.expand(g.constant("one", np.float32(1)), (2, 2)): np.ones((2, 2)),
        g.layer_norm(norm, value): norm(torch.from_numpy(x)).detach().numpy(),
        g.gelu(value): torch.nn.functional.gelu(torch.from_numpy(x)).numpy(),
    }
    for number, (name, array) in enumerate(expected.items()):
        g.output(name, f"y{number}", array.shape)
    for found, array in zip(run(g, {"x": x}), expected.values(), strict=True):
        np.testing.assert_allclose(found, array, rtol=1e-5, atol=1e-6)


def test_the_opset_is_that_of_the_operators() -> None:
    g = Graph("four bits")
    four = g.integers4("w_int4", torch.tensor([[-8, 7, 1]]))
    g.output(g.node("Cast", four, to=onnx.TensorProto.FLOAT), "y", (1, 3))
    model = g.model({})
    assert (model.opset_import[0].version, model.ir_version) == (OPSET_INT4, IR_VERSION_INT4)
    assert OPSET < OPSET_INT4
