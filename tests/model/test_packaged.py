"""The packaged model as a model to train: the weights to the bit, the outputs to rounding."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from adalora_qat.config import ModelConfig
from adalora_qat.errors import CheckpointError
from adalora_qat.model.predict import TorchPredictor
from adalora_qat.model.weights import build
from adalora_qat.phantom.phantom import phantom
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.runtime.packaged import MODEL, packaged_predictor, weights_folder


def test_the_packaged_model_can_be_trained_from() -> None:
    segmenter, origin = build(ModelConfig(weights="packaged"))
    assert MODEL in origin.source
    assert origin.sha256
    drawn = phantom(3, 256)
    rows, columns = np.nonzero(drawn.masks["left_lung"] | drawn.masks["right_lung"])
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    boxes = np.array([box], dtype=np.float32)
    ours = TorchPredictor(segmenter, "packaged").predict(drawn.image, boxes)
    theirs = packaged_predictor(threads=1).predict(drawn.image, boxes)
    both = (ours.masks & theirs.masks).sum()
    # What the file itself is held to against the model it was exported from.
    assert 2 * both / (ours.masks.sum() + theirs.masks.sum()) > 0.995
    assert np.abs(ours.scores - theirs.scores).max() < 0.01

    # Folded again, every weight is an integer of the file times its scale, to the bit.
    fold_batch_norms(segmenter)
    stored = {
        each.name: numpy_helper.to_array(each)
        for each in onnx.load(weights_folder() / MODEL).graph.initializer
    }
    state, compared = segmenter.state_dict(), 0
    for name, values in state.items():
        integers, scale = stored.get(f"{name}_int8"), stored.get(f"{name}_scale")
        if integers is not None and scale is not None:
            wanted = np.sort((integers.astype(np.float32) * scale).ravel())
            np.testing.assert_array_equal(np.sort(values.numpy().ravel()), wanted)
            compared += 1
    assert compared > 50


def test_another_variant_is_refused() -> None:
    with pytest.raises(CheckpointError, match="is a litemedsam, not a mobilesam"):
        build(ModelConfig(variant="mobilesam", weights="packaged"))
