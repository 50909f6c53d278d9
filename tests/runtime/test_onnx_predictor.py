import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_toy import LOW, SIDE, toy_metadata, write_toy

from adalora_qat.errors import CheckpointError, ConfigError, DataError
from adalora_qat.imaging.geometry import whole_box
from adalora_qat.predictor import Predictor
from adalora_qat.runtime.onnx_predictor import BOXES_A_RUN, MAX_BOXES, OnnxPredictor


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy") / "toy.onnx")


def left_half_bright(height: int, width: int) -> np.ndarray:
    image = np.zeros((height, width), dtype=np.uint8)
    image[:, : width // 2] = 200
    return image


def whole(height: int, width: int) -> np.ndarray:
    return whole_box(height, width)[None]


def test_base_install_needs_no_training_package() -> None:
    code = (
        "import sys, adalora_qat.runtime.segment, adalora_qat.cli.segment\n"
        "found = {'torch', 'pandas', 'scipy', 'cv2', 'onnx'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(found)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_masks_come_back_at_the_original_size(toy: Path) -> None:
    predictor = OnnxPredictor(toy)
    assert isinstance(predictor, Predictor)
    image = left_half_bright(64, 128)
    boxes = np.array([[0, 0, 128, 64], [20, 10, 60, 50]])
    found = predictor.predict(image, boxes)
    assert found.masks.shape == (2, 64, 128)
    # The toy's mask is where the image is bright; one low-resolution pixel is 8 original ones.
    assert found.masks[0][:, :56].all()
    assert not found.masks[0][:, 72:].any()
    assert found.logits.shape == (2, LOW, LOW)
    # x0 of the boxes in the model frame is 0 and 20·32/128 = 5; the toy's iou is x0 / 100.
    np.testing.assert_allclose(found.scores, [0.0, 0.05], atol=1e-6)
    np.testing.assert_array_equal(found.boxes_xyxy_original, boxes)


def test_a_predictor_finds_no_box_itself(toy: Path) -> None:
    with pytest.raises(DataError, match="box None"):
        OnnxPredictor(toy).predict(left_half_bright(10, 30), None)  # type: ignore[arg-type]


def test_the_threshold_of_the_file_is_used(tmp_path: Path) -> None:
    strict = write_toy(tmp_path / "strict.onnx", toy_metadata(mask_threshold=0.6))
    # Logits are at most 0.5, so nothing exceeds 0.6.
    assert not OnnxPredictor(strict).predict(left_half_bright(32, 32), whole(32, 32)).masks.any()


def test_scores_stay_in_the_unit_interval(toy: Path) -> None:
    image = left_half_bright(SIDE, SIDE)
    predictor = OnnxPredictor(toy)
    predictor.decode = lambda embeddings, prompt: (  # type: ignore[method-assign]
        np.zeros((1, 1, LOW, LOW), np.float32),
        np.array([[1.03]], np.float32),
    )
    assert predictor.predict(image, whole(*image.shape)).scores.tolist() == [1.0]


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[0, 0, 40, 20]], "outside"),
        ([[20, 0, 10, 20]], "reversed"),
        ([[5, 5, 5, 20]], "empty"),
        (np.zeros((0, 4)), "no box given"),
        ([[0, 0, np.nan, 20]], "finite"),
    ],
)
def test_boxes_that_do_not_fit_are_refused(toy: Path, boxes: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        OnnxPredictor(toy).predict(left_half_bright(32, 32), np.asarray(boxes))


def test_image_of_one_colour_is_refused(toy: Path) -> None:
    with pytest.raises(DataError, match="one colour"):
        OnnxPredictor(toy).predict(np.full((32, 32), 7, np.uint8), whole(32, 32))


def test_threads_share_a_predictor(toy: Path) -> None:
    predictor = OnnxPredictor(toy, threads=1)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (40, 30 + i), dtype=np.uint8) for i in range(12)]
    boxes = [whole(*image.shape) for image in images]
    alone = [found.logits for found in map(predictor.predict, images, boxes)]
    with ThreadPoolExecutor(4) as pool:
        shared = [found.logits for found in pool.map(predictor.predict, images, boxes)]
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(one, other)


def test_bad_files_are_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.onnx does not exist"):
        OnnxPredictor(tmp_path / "none.onnx")
    text = tmp_path / "text.onnx"
    text.write_text("not a model")
    with pytest.raises(CheckpointError, match="not an ONNX model"):
        OnnxPredictor(text)
    empty = tmp_path / "empty.onnx"
    empty.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"empty\.onnx"):
        OnnxPredictor(empty)
    foreign = write_toy(tmp_path / "foreign.onnx")
    model = onnx.load(foreign)
    del model.metadata_props[:]
    onnx.save(model, foreign)
    with pytest.raises(CheckpointError, match="metadata is missing"):
        OnnxPredictor(foreign)
    encoder = write_toy(tmp_path / "encoder.onnx", toy_metadata(part="encoder"))
    with pytest.raises(CheckpointError, match="holds the encoder part"):
        OnnxPredictor(encoder)


def test_a_truncated_file_is_refused(toy: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(toy.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"cut\.onnx"):
        OnnxPredictor(cut)


def test_thread_count_must_be_positive(toy: Path) -> None:
    with pytest.raises(ConfigError, match="threads=0"):
        OnnxPredictor(toy, threads=0)


def test_warm_up_changes_nothing(toy: Path) -> None:
    predictor = OnnxPredictor(toy, name="given", low_memory=True)
    before = predictor.predict(left_half_bright(32, 32), whole(32, 32))
    predictor.warm_up()
    np.testing.assert_array_equal(
        before.logits, predictor.predict(left_half_bright(32, 32), whole(32, 32)).logits
    )
    assert predictor.name == "given"
    assert len(predictor.sha256) == 64


def test_many_boxes_are_taken_a_few_at_a_time(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, image = OnnxPredictor(toy), left_half_bright(64, 128)
    boxes = np.array([[x, 0, 128, 64] for x in range(2 * BOXES_A_RUN + 1)])
    sizes: list[int] = []
    decode = OnnxPredictor.decode

    def noted(self: OnnxPredictor, embeddings: np.ndarray, prompt: dict) -> object:
        sizes.append(prompt["labels"].shape[1])
        return decode(self, embeddings, prompt)

    monkeypatch.setattr(OnnxPredictor, "decode", noted)
    found = predictor.predict(image, boxes)
    assert sizes == [BOXES_A_RUN, BOXES_A_RUN, 1]
    for box, logits, score, mask in zip(
        boxes, found.logits, found.scores, found.masks, strict=True
    ):
        alone = predictor.predict(image, box[None])
        np.testing.assert_array_equal(alone.logits[0], logits)
        np.testing.assert_array_equal(alone.masks[0], mask)
        assert alone.scores[0] == score


def test_more_boxes_than_memory_holds_are_refused(toy: Path) -> None:
    predictor = OnnxPredictor(toy)
    boxes = np.tile([[0, 0, 10, 10]], (MAX_BOXES + 1, 1))
    with pytest.raises(
        DataError, match=rf"{MAX_BOXES + 1} boxes for .*at most {MAX_BOXES} at once"
    ):
        predictor.predict(left_half_bright(16, 32), boxes)
    large = left_half_bright(1500, 2000)
    with pytest.raises(DataError, match=r"1400 boxes for one image of 2000x1500 .*at most 1332 "):
        predictor.predict(large, boxes[:1400])
