"""Every exported model of the tiny variants: valid to the full checker, named for its layers."""

import re
from collections.abc import Callable

import onnx
import pytest

from adalora_qat.export.kernels import all_graphs, all_nodes
from adalora_qat.export.onnx import build_decoder, build_encoder, build_model, describe
from adalora_qat.model.sam import Segmenter
from adalora_qat.quantize.policy import POLICIES
from adalora_qat.recipe import packaged_names

Converted = Callable[[str, str], Segmenter]
BUILDERS = {"whole": build_model, "encoder": build_encoder, "decoder": build_decoder}


@pytest.mark.parametrize("part", BUILDERS)
@pytest.mark.parametrize("policy", packaged_names(POLICIES))
@pytest.mark.parametrize("variant", ["tiny-test", "tiny-vit-test"])
def test_graphs_are_valid_and_their_names_sane(
    variant: str, policy: str, part: str, converted: Converted, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small enough for attention over the whole map to become a loop, as at 1024 pixels.
    monkeypatch.setattr("adalora_qat.export.vit_graph._MANY_TOKENS", 10)
    segmenter = converted(variant, policy)
    model = BUILDERS[part](segmenter, describe(segmenter, policy, {}))
    onnx.checker.check_model(model, full_check=True)

    nodes = all_nodes(model.graph)
    names = [node.name for node in nodes]
    assert len(set(names)) == len(names), "node names repeat"
    outputs = [value for node in nodes for value in node.output]
    stored = [one.name for graph in all_graphs(model.graph) for one in graph.initializer]
    # An input that may be left out is stored with its default.
    given = [value.name for value in model.graph.input if value.name not in stored]
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
    answers = {"whole": ["logits", "iou", "embeddings"], "encoder": ["embeddings"]}
    outputs_declared = [value.name for value in model.graph.output]
    assert outputs_declared == answers.get(part, ["logits", "iou"])
