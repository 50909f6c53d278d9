from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from adalora_qat.config import ExportConfig
from adalora_qat.errors import CheckpointError, DataError
from adalora_qat.export.onnx import export_split
from adalora_qat.export.parity import ParityCase
from adalora_qat.model.sam import Segmenter
from adalora_qat.predictor import Predictor
from adalora_qat.quantize.policy import POLICIES
from adalora_qat.recipe import packaged_names
from adalora_qat.runtime.interactive import InteractivePredictor

SIDE = 64
Files = tuple[Segmenter, Path, Path]


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory,
    converted: Callable[[str, str], Segmenter],
    some_cases: Callable[..., list[ParityCase]],
) -> Files:
    folder = tmp_path_factory.mktemp("split")
    segmenter = converted("tiny-test", "none")
    paths = folder / "encoder.onnx", folder / "decoder.onnx"
    encoder, decoder = export_split(
        segmenter, *paths, some_cases(2, boxes=2), policy="none", sources={"run": "a"},
        gate=ExportConfig(min_dice=1, min_pixel_agreement=1),
    )  # fmt: skip
    assert encoder.size_bytes == paths[0].stat().st_size
    assert decoder.size_bytes == paths[1].stat().st_size
    return segmenter, *paths


def image() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 255, (SIDE, SIDE), dtype=np.uint8)


def expected_logits(
    segmenter: Segmenter,
    embeddings: np.ndarray,
    points: list[list[float]] | None,
    labels: list[int] | None,
    box: list[float] | None,
    mask: np.ndarray | None,
) -> np.ndarray:
    """Run the prompt encoder and decoder of transformers on the same embeddings."""
    tensor = torch.tensor
    side = segmenter.variant.embedding_side
    with torch.inference_mode():
        sparse, dense = segmenter.prompt_encoder(
            input_points=None if points is None else tensor([[points]], dtype=torch.float32),
            input_labels=None if labels is None else tensor([[labels]]),
            input_boxes=None if box is None else tensor([[box]], dtype=torch.float32),
            input_masks=None if mask is None else torch.from_numpy(mask)[None, None],
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
    "box": (None, None, [5.0, 6.0, 40.0, 50.0], False),
    "points": ([[20.0, 30.0], [50.0, 10.0]], [1, 0], None, False),
    "point and box": ([[20.0, 30.0]], [1], [5.0, 6.0, 40.0, 50.0], False),
    "point and earlier mask": ([[20.0, 30.0]], [0], None, True),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_do_what_transformers_does(files: Files, name: str) -> None:
    segmenter, *paths = files
    points, labels, box, has_mask = PROMPTS[name]
    low = segmenter.variant.low_res_side
    mask = np.random.default_rng(1).standard_normal((low, low)).astype(np.float32)
    mask = mask if has_mask else None
    predictor = InteractivePredictor(*paths)
    encoded = predictor.encode(image())
    found = predictor.decode(
        encoded,
        box=None if box is None else np.array(box),
        points=None if points is None else np.array(points),
        labels=None if labels is None else np.array(labels),
        earlier=mask,
    )
    expected = expected_logits(segmenter, encoded.embeddings, points, labels, box, mask)
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
    segmenter, cases = converted(variant, policy), some_cases(1)
    paths = tmp_path / "m-encoder.onnx", tmp_path / "m-decoder.onnx"
    export_split(
        segmenter, *paths, cases, policy=policy, sources={}, golden=cases[0],
        gate=ExportConfig(min_dice=0, min_pixel_agreement=0),
    )  # fmt: skip
    predictor = InteractivePredictor(*paths, threads=1, low_memory=True)
    predictor.warm_up()
    encoded = predictor.encode(image())
    low = segmenter.variant.low_res_side
    for points, labels, box, has_mask in PROMPTS.values():
        mask = np.linspace(-1, 1, low * low, dtype=np.float32).reshape(low, low)
        mask = mask if has_mask else None
        prompt = {"box": box, "points": points, "labels": labels, "earlier": mask}
        found = predictor.decode(
            encoded, **{key: None if p is None else np.array(p) for key, p in prompt.items()}
        )
        expected = expected_logits(segmenter, encoded.embeddings, points, labels, box, mask)
        # A value on the other side of a rounding boundary moves a few logits a little.
        assert np.abs(found.logits[0] - expected).max() < 0.3 * expected.std() + 1e-4, prompt
    with np.load(tmp_path / "m-encoder.golden.npz") as golden:
        decoded = predictor.predict(cases[0].image.transpose(1, 2, 0), golden["boxes"][0])
        assert golden["logits"].shape == decoded.logits[None].shape


def test_it_is_a_predictor_and_scales_boxes(files: Files) -> None:
    _, *paths = files
    predictor = InteractivePredictor(*paths, threads=1, name="split")
    assert isinstance(predictor, Predictor)
    assert predictor.name == "split"
    wide = np.random.default_rng(0).integers(0, 255, (50, 100), dtype=np.uint8)
    boxes = np.array([[10, 5, 90, 45], [0, 0, 100, 50]])
    together = predictor.predict(wide, boxes)
    assert together.masks.shape == (2, 50, 100)
    alone = predictor.decode(predictor.encode(wide), box=boxes[0])
    np.testing.assert_allclose(alone.logits[0], together.logits[0], atol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "no prompt"),
        ({"box": [5, 5, 4, 9]}, "reversed"),
        ({"points": [[1, 1]], "labels": [2]}, "each must be 1"),
        ({"points": [[1, 1]], "labels": [1, 0]}, "give"),
        ({"points": [[65, 1]], "labels": [1]}, "outside the image of 64x64"),
        ({"box": [0, 0, 9, 9], "earlier": np.zeros((3, 3), np.float32)}, "earlier logits"),
    ],
)
def test_bad_prompts(files: Files, prompt: dict, message: str) -> None:
    predictor = InteractivePredictor(*files[1:])
    with pytest.raises(DataError, match=message):
        predictor.decode(
            predictor.encode(image()), **{key: np.asarray(value) for key, value in prompt.items()}
        )


def test_files_in_the_wrong_place_are_refused(files: Files) -> None:
    _, encoder, decoder = files
    with pytest.raises(CheckpointError, match="holds the decoder part"):
        InteractivePredictor(decoder, encoder)


def test_halves_of_two_models_are_refused(
    files: Files,
    tmp_path: Path,
    converted: Callable[[str, str], Segmenter],
    some_cases: Callable[..., list[ParityCase]],
) -> None:
    _, encoder, _ = files
    other = tmp_path / "decoder.onnx"
    export_split(
        converted("tiny-test", "decoder"), tmp_path / "encoder.onnx", other, some_cases(1),
        policy="decoder", sources={}, gate=ExportConfig(min_dice=0, min_pixel_agreement=0),
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="not halves of one model"):
        InteractivePredictor(encoder, other)
