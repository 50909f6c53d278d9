"""Every exported model of the tiny variants: valid to the full checker, named for its layers."""

import re
from collections.abc import Callable, Iterator

import onnx
import pytest
from onnx import AttributeProto

from adalora_qat.export.onnx import build_decoder, build_encoder, build_model, describe
from adalora_qat.model.sam import Segmenter
from adalora_qat.quantize.policy import policy_names

Converted = Callable[[str, str], Segmenter]
BUILDERS = {"whole": build_model, "encoder": build_encoder, "decoder": build_decoder}


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those inside its nodes (the body of a loop)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from graphs(attribute.g)


@pytest.mark.parametrize("part", BUILDERS)
@pytest.mark.parametrize("policy", policy_names())
@pytest.mark.parametrize("variant", ["tiny-test", "tiny-vit-test"])
def test_graphs_are_valid_and_their_names_sane(
    variant: str, policy: str, part: str, converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small enough for attention over the whole map to become a loop, as at 1024 pixels.
    monkeypatch.setattr("adalora_qat.export.encoders._MANY_TOKENS", 10)
    segmenter = converted(variant, policy)
    model = BUILDERS[part](segmenter, describe(segmenter, policy, {}))
    onnx.checker.check_model(model, full_check=True)

    nodes = [node for graph in graphs(model.graph) for node in graph.node]
    names = [node.name for node in nodes]
    assert len(set(names)) == len(names), "node names repeat"
    outputs = [value for node in nodes for value in node.output]
    stored = [one.name for one in model.graph.initializer]
    given = [value.name for value in model.graph.input]
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
    assert [value.name for value in model.graph.output] == (
        ["embeddings"] if part == "encoder" else ["logits", "iou"]
    )
