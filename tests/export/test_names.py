"""Every exported model of the tiny variants: valid to the full checker, named for its layers."""

import re
from collections.abc import Callable

import onnx
import pytest

from adalora_qat.export.onnx import build_model, describe
from adalora_qat.model.sam import Segmenter
from adalora_qat.quantize.policy import POLICIES
from adalora_qat.recipe import packaged_names

# What OpenVINO, onnxruntime-web and TensorRT's parser know.
OPERATORS = {
    "Add", "Cast", "Clip", "Concat", "Conv", "Cos", "DequantizeLinear", "Div", "Equal", "Erf",
    "Expand", "Gather", "Gemm", "Identity", "LayerNormalization", "MatMul", "Max", "Mul",
    "QuantizeLinear", "Relu", "Reshape", "Shape", "Sin", "Slice", "Softmax", "Squeeze", "Sub",
    "Transpose", "Unsqueeze", "Where",
}  # fmt: skip
Converted = Callable[[str, str], Segmenter]


@pytest.mark.parametrize("policy", packaged_names(POLICIES))
@pytest.mark.parametrize("variant", ["tiny-test", "tiny-vit-test"])
def test_graphs_are_valid_and_their_names_sane(
    variant: str, policy: str, converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small enough for work in parts, as at 1024 pixels.
    monkeypatch.setattr("adalora_qat.export.vit_graph._MANY_TOKENS", 10)
    monkeypatch.setattr("adalora_qat.export.maps._LARGE", 10)
    segmenter = converted(variant, policy)
    model = build_model(segmenter, describe(segmenter, policy, {}))
    onnx.checker.check_model(model, full_check=True)

    nodes = model.graph.node
    names = [node.name for node in nodes]
    assert len(set(names)) == len(names), "node names repeat"
    outputs = [value for node in nodes for value in node.output]
    stored = [one.name for one in model.graph.initializer]
    given = [value.name for value in model.graph.input]
    # No input has an initializer, and no operator a graph of its own: browsers and OpenVINO.
    everything = outputs + stored + given
    assert len(set(everything)) == len(everything), "two values share a name"
    odd = [name for name in names if not re.fullmatch(r"(/[A-Za-z0-9_]+)+", name)]
    assert not odd, odd[:5]
    # Inspectors show a tree by slashes: its first two levels are modules of the model.
    children = {name for name, _ in segmenter.named_modules()}
    for name in names:
        first, *rest = name.strip("/").split("/")
        if first in {"image_encoder", "prompt_encoder", "mask_decoder"} and len(rest) > 1:
            assert f"{first}.{rest[0]}" in children, name
    # Nothing is stored that no node reads.
    read = {value for node in nodes for value in node.input}
    assert not [name for name in stored if name not in read]
    assert given == ["image", "points", "labels"]
    assert [value.name for value in model.graph.output] == ["embeddings", "logits", "iou"]
    assert {node.op_type for node in nodes} <= OPERATORS
    assert model.opset_import[0].version == (21 if "w4" in policy else 17)
