"""Points and boxes of one file do what transformers does with them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from adalora_qat.config import ExportConfig
from adalora_qat.errors import CheckpointError, DataError
from adalora_qat.export.onnx import export_onnx
from adalora_qat.export.parity import ParityCase
from adalora_qat.model.sam import Segmenter
from adalora_qat.predictor import Prediction
from adalora_qat.quantize.policy import POLICIES
from adalora_qat.recipe import packaged_names
from adalora_qat.runtime.graph_file import halves, names_of
from adalora_qat.runtime.onnx_predictor import EncodedImage, OnnxPredictor

SIDE = 64
Made = tuple[Segmenter, OnnxPredictor]


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    converted: Callable[[str, str], Segmenter],
    some_cases: Callable[..., list[ParityCase]],
) -> Made:
    path = tmp_path_factory.mktemp("file") / "model.onnx"
    segmenter = converted("tiny-test", "none")
    strict = ExportConfig(min_dice=1, min_pixel_agreement=1)
    export_onnx(
        segmenter, path, some_cases(2, boxes=2), policy="none", sources={}, gate=strict
    )  # fmt: skip
    return segmenter, OnnxPredictor(path, threads=1)


def image() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 255, (SIDE, SIDE), dtype=np.uint8)


def ask(
    encoded: EncodedImage,
    points: list[list[float]] | None,
    labels: list[int] | None,
    box: list[float] | None,
) -> Prediction:
    if points is None:
        return encoded(np.array([box]))
    return encoded.point_at(
        np.array(points), np.array(labels), None if box is None else np.array(box)
    )


def expected_logits(
    segmenter: Segmenter,
    embeddings: np.ndarray,
    points: list[list[float]] | None,
    labels: list[int] | None,
    box: list[float] | None,
) -> np.ndarray:
    """Run the prompt encoder and decoder of transformers on the same embeddings."""
    tensor = torch.tensor
    side = segmenter.variant.embedding_side
    with torch.inference_mode():
        sparse, dense = segmenter.prompt_encoder(
            input_points=None if points is None else tensor([[points]], dtype=torch.float32),
            input_labels=None if labels is None else tensor([[labels]]),
            input_boxes=None if box is None else tensor([[box]], dtype=torch.float32),
            input_masks=None,
        )
        logits, _ = segmenter.mask_decoder(
            image_embeddings=torch.from_numpy(embeddings).T.reshape(1, -1, side, side),
            image_positional_embeddings=segmenter.image_positions(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
    return logits[0, 0].numpy()


PROMPTS = {
    "box": (None, None, [5.0, 6.0, 40.0, 50.0]),
    "points": ([[20.0, 30.0], [50.0, 10.0]], [1, 0], None),
    "point and box": ([[20.0, 30.0]], [1], [5.0, 6.0, 40.0, 50.0]),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_do_what_transformers_does(made: Made, name: str) -> None:
    segmenter, predictor = made
    encoded = predictor.prompted(image())
    found = ask(encoded, *PROMPTS[name])
    expected = expected_logits(segmenter, encoded.embeddings, *PROMPTS[name])
    np.testing.assert_allclose(found.logits, expected, atol=1e-5 * np.abs(expected).max() + 1e-6)
    assert found.masks.shape == (1, SIDE, SIDE)


@pytest.mark.parametrize("variant", ["tiny-test", "tiny-vit-test"])
@pytest.mark.parametrize("policy", [name for name in packaged_names(POLICIES) if name != "none"])
def test_every_policy_takes_every_prompt(
    policy: str,
    variant: str,
    tmp_path: Path,
    converted: Callable[[str, str], Segmenter],
    some_cases: Callable[..., list[ParityCase]],
) -> None:
    segmenter, path = converted(variant, policy), tmp_path / "m.onnx"
    open_gate = ExportConfig(min_dice=0, min_pixel_agreement=0)
    export_onnx(segmenter, path, some_cases(1), policy=policy, sources={}, gate=open_gate)
    predictor = OnnxPredictor(path, threads=1, low_memory=True)
    predictor.warm_up()
    encoded = predictor.prompted(image())
    for prompt in PROMPTS.values():
        found = ask(encoded, *prompt)
        expected = expected_logits(segmenter, encoded.embeddings, *prompt)
        # A value on the other side of a rounding boundary moves a few logits a little.
        assert np.abs(found.logits[0] - expected).max() < 0.3 * expected.std() + 1e-4, prompt


def test_points_are_scaled_as_boxes_are(made: Made) -> None:
    _, predictor = made
    wide = np.random.default_rng(0).integers(0, 255, (50, 100), dtype=np.uint8)
    encoded = predictor.prompted(wide)
    box = np.array([10, 5, 90, 45])
    # A box is its corners, labelled 2 and 3; points before it are points of the same frame.
    alone, doubled = encoded(box[None]), encoded.point_at(box.reshape(2, 2), np.ones(2), box)
    assert alone.masks.shape == doubled.masks.shape == (1, 50, 100)
    assert not np.array_equal(alone.logits, doubled.logits)
    together = encoded(np.array([box, [0, 0, 100, 50]]))
    np.testing.assert_allclose(together.logits[0], alone.logits[0], atol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"points": [[1, 1]], "labels": [2]}, "each must be 1"),
        ({"points": [[1, 1]], "labels": [1, 0]}, "give"),
        ({"points": np.zeros((0, 2)), "labels": []}, "at least one"),
        ({"points": [[65, 1]], "labels": [1]}, "outside the image of 64x64"),
        ({"points": [[1, 1]], "labels": [1], "box": [5, 5, 4, 9]}, "reversed"),
    ],
)
def test_bad_prompts(made: Made, prompt: dict, message: str) -> None:
    encoded = made[1].prompted(image())
    with pytest.raises(DataError, match=message):
        encoded.point_at(**{key: np.asarray(value) for key, value in prompt.items()})


def test_a_file_is_cut_into_what_it_needs_for_each_half(made: Made) -> None:
    import onnx

    whole = made[1].path.read_bytes()
    encoder, decoder = halves(whole)
    assert names_of(encoder) == (("image",), ("embeddings",))
    assert set(names_of(decoder).inputs) == {"embeddings", "points", "labels"}
    assert names_of(decoder).outputs == ("logits", "iou")
    parts = [onnx.load_from_string(part) for part in (encoder, decoder)]
    model = onnx.load_from_string(whole)
    for part in parts:
        onnx.checker.check_model(part, full_check=True)
        assert part.metadata_props == model.metadata_props
    # Nothing twice but shapes and other small constants, and nothing lost.
    counts = [len(part.graph.node) for part in parts]
    assert sum(counts) == len(model.graph.node) and min(counts) > 100
    assert sum(map(len, (encoder, decoder))) < len(whole) + 20_000


def test_halves_of_earlier_versions_are_refused(tmp_path: Path) -> None:
    from onnx_toy import toy_metadata, write_new_toy

    path = write_new_toy(tmp_path / "encoder.onnx", toy_metadata(part="encoder"))
    with pytest.raises(CheckpointError, match=r"holds the encoder part.*export the model again"):
        OnnxPredictor(path)
