from collections.abc import Callable

import numpy as np
import pytest
import torch
from onnx import TensorProto

from adalora_qat.export.decoder import decode, embed_points, no_mask
from adalora_qat.export.graph import Graph
from adalora_qat.model.sam import Segmenter
from adalora_qat.runtime.networks import box_feeds
from adalora_qat.runtime.session import inference_session, session_options


@pytest.mark.parametrize("policy", ["none", "decoder", "weight-only"])
def test_the_graph_computes_the_decoder_for_any_number_of_boxes(
    policy: str, converted: Callable[[str, str], Segmenter]
) -> None:
    segmenter = converted("tiny-test", policy)
    variant, width = segmenter.variant, 32
    side, low = variant.embedding_side, variant.low_res_side
    g = Graph("decoder")
    pixels = g.input("pixels", (side * side, width))
    points = g.input("points", (1, "N", "T", 2))
    tokens = embed_points(g, segmenter, points, g.input("labels", (1, "N", "T"), TensorProto.INT64))
    logits, iou = decode(g, segmenter, g.add(pixels, no_mask(g, segmenter)), tokens)
    g.output(logits, "logits", (1, "N", low, low))
    g.output(iou, "iou", (1, "N"))
    session = inference_session(g.model({}).SerializeToString(), session_options())
    rng = np.random.default_rng(0)
    features = rng.standard_normal((side * side, width)).astype(np.float32)
    for count in (1, 3):
        boxes = rng.uniform(0, 64, (1, count, 4)).astype(np.float32)
        found, found_iou = session.run(None, {"pixels": features, **box_feeds(boxes[0])})
        with torch.inference_mode():
            planes = torch.from_numpy(features).T.reshape(1, width, side, side)
            expected, expected_iou = segmenter.decode(planes, torch.from_numpy(boxes))
        scale = float(expected.abs().max())
        assert found.shape == (1, count, low, low)
        close = np.abs(found - expected.numpy()) < 1e-4 * scale
        assert close.all() if policy != "decoder" else close.mean() > 0.9
        np.testing.assert_allclose(found_iou, expected_iou.numpy(), atol=0.02)
