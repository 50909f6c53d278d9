from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from adalora_qat.export.graph import Graph
from adalora_qat.export.onnx import encode
from adalora_qat.export.tiny_vit_graph import rows_seen
from adalora_qat.model.sam import Segmenter
from adalora_qat.model.tiny_vit import TinyViT, TinyViTConfig
from adalora_qat.quantize.convert import QuantizedLayer
from adalora_qat.runtime.session import inference_session, session_options

# A policy that quantizes the inputs of TinyViT's convolutional stage as well.
EVERYTHING = (
    "name: everything\nrows:\n  - match: '*'\n    weight: {bits: 8}\n    activation: {bits: 8}\n"
)


def embeddings(segmenter: Segmenter, image: np.ndarray) -> tuple[np.ndarray, list[str]]:
    side = segmenter.variant.frame.side
    g = Graph("encoder")
    out = encode(g, segmenter, g.input("image", (1, 3, side, side)))
    g.output(out, "embeddings", ("pixels", "width"))
    model = g.model({})
    onnx.checker.check_model(model, full_check=True)
    session = inference_session(model.SerializeToString(), session_options())
    # All but the last, which gives the output its name.
    last = model.graph.node[-1].name
    nodes = [node.name for node in model.graph.node if node.name != last]
    return session.run(None, {"image": image})[0], nodes


@pytest.mark.parametrize("variant", ["tiny-test", "tiny-vit-test"])
@pytest.mark.parametrize("policy", ["none", "full", "int8-all", "weight-only", EVERYTHING])
def test_the_graph_computes_the_encoder(
    variant: str,
    policy: str,
    converted: Callable[[str, str], Segmenter],
    some_cases: Callable[[int], list],
) -> None:
    segmenter = converted(variant, policy)
    image = some_cases(1)[0].image[None]
    with torch.inference_mode():
        expected = segmenter.encode(torch.from_numpy(image))[0].flatten(1).T.numpy()
    found, nodes = embeddings(segmenter, image)
    # A last bit of a layer norm may move a value over a rounding boundary, and later layers
    # then see one integer step: a few values may differ by a little.
    exact = policy in ("none", "weight-only")
    close = np.abs(found - expected) < 1e-4 * np.abs(expected).max()
    assert close.all() if exact else close.mean() > 0.9
    assert np.abs(found - expected).max() < 0.3 * np.abs(expected).std() + 1e-4
    assert all(name.startswith("/image_encoder/") for name in nodes)


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_attention_by_rows_is_attention(
    rows: int,
    converted: Callable[[str, str], Segmenter],
    some_cases: Callable[[int], list],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("adalora_qat.export.vit_graph._MANY_TOKENS", 10)
    monkeypatch.setattr("adalora_qat.export.vit_graph._ROWS_AT_A_TIME", rows)
    segmenter = converted("tiny-vit-test", "none")
    assert segmenter.image_encoder.layers[1].window_size == 0  # over the whole map: 64 tokens
    image = some_cases(1)[0].image[None]
    with torch.inference_mode():
        expected = segmenter.encode(torch.from_numpy(image))[0].flatten(1).T.numpy()
    found, nodes = embeddings(segmenter, image)
    softmaxes = sum("layers/1/attn/Softmax" in node for node in nodes)
    assert softmaxes == 8 // rows * (
        segmenter.image_encoder.layers[1].attn.num_attention_heads // 2
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("policy", ["none", "int8-all", EVERYTHING])
@pytest.mark.parametrize(("strips", "parts"), [(2, 4), (8, 16)])
def test_parts_of_a_map_give_what_the_whole_gives(
    strips: int,
    parts: int,
    policy: str,
    converted: Callable[[str, str], Segmenter],
    some_cases: Callable[[int], list],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    segmenter, image = converted("tiny-test", policy), some_cases(1)[0].image[None]
    found = []
    for number, share in ((1, 1), (strips, parts)):
        monkeypatch.setattr("adalora_qat.export.tiny_vit_graph._STRIPS", number)
        monkeypatch.setattr("adalora_qat.export.maps._PARTS_OF_A_MAP", share)
        monkeypatch.setattr("adalora_qat.export.maps._LARGE", 10 if share > 1 else 2**21)
        values, nodes = embeddings(segmenter, image)
        assert sum("patch_embed/seq/2/c" in n for n in nodes) >= number
        found.append(values)
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("stride", [1, 4])
def test_a_strip_sees_the_rows_that_it_depends_on(stride: int) -> None:
    torch.manual_seed(0)
    encoder = TinyViT(TinyViTConfig(patch_stride=stride)).eval()
    convolutions = [m for m in encoder.patch_embed.modules() if isinstance(m, nn.Conv2d)]
    convolutions += [m for m in encoder.layers[0].modules() if isinstance(m, nn.Conv2d)]
    image = torch.rand(1, 3, 32 * stride, 32 * stride, requires_grad=True)
    encoder.stem(image)[:, :, 5:9].sum().backward()
    seen = image.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    assert (int(seen[0]), int(seen[-1]) + 1) == rows_seen(convolutions, 5, 9)


def test_every_integer_layer_is_in_the_graph(
    converted: Callable[[str, str], Segmenter], some_cases: Callable[[int], list]
) -> None:
    segmenter = converted("tiny-vit-test", "int8-all")
    _, nodes = embeddings(segmenter, some_cases(1)[0].image[None])
    for name, module in segmenter.image_encoder.named_modules():
        if isinstance(module, QuantizedLayer):
            path = "/image_encoder/" + name.replace(".", "/")
            assert any(node.startswith(path) and "Gemm" in node for node in nodes), name


def test_relative_positions_of_another_length_are_resized(
    converted: Callable[[str, str], Segmenter], some_cases: Callable[[int], list]
) -> None:
    import copy

    segmenter = copy.deepcopy(converted("tiny-vit-test", "none"))
    attention = segmenter.image_encoder.layers[0].attn
    attention.rel_pos_h = nn.Parameter(torch.randn(9, attention.rel_pos_h.shape[1]))
    image = some_cases(1)[0].image[None]
    with torch.inference_mode():
        expected = segmenter.encode(torch.from_numpy(image))[0].flatten(1).T.numpy()
    found, _ = embeddings(segmenter, image)
    np.testing.assert_allclose(found, expected, atol=1e-4)
