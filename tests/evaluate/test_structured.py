"""Models that find structures without a box, in the evaluation."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError
from adalora_qat.evaluate.cases import evaluate_cases
from adalora_qat.evaluate.structured import default_targets, ratio_agreement
from adalora_qat.predictor import Prediction
from adalora_qat.study.measure import summarise_targets

NAMES = ("left_lung", "right_lung", "heart")
H, W = 60, 80
# Left of the patient is right of the picture.
SHAPES = {"left_lung": (45, 75), "right_lung": (5, 35), "heart": (30, 60)}


def mask(name: str, wider: int = 0) -> NDArray[np.bool_]:
    first, last = SHAPES[name]
    made = np.zeros((H, W), np.bool_)
    made[20:50, first - wider : last] = True
    return made


class Model:
    """Finds the structures where they are, the heart two pixels too wide; any box is a lung."""

    name = "knowing"
    structures: tuple[str, ...] = NAMES

    def predict(self, image: NDArray[np.generic], boxes: NDArray[np.generic]) -> Prediction:
        size = (len(boxes), *image.shape[:2])
        return answer(np.ones(size, np.bool_), boxes)

    def prompted(self, image: NDArray[np.generic]) -> "Encoded":
        return Encoded()


class Encoded:
    def structures(self) -> Prediction:
        masks = np.stack([mask("left_lung"), mask("right_lung"), mask("heart", 2)])
        return answer(masks, np.array([[0, 0, W, H]] * 3))


def answer(masks: NDArray[np.bool_], boxes: NDArray[np.generic]) -> Prediction:
    scores = np.linspace(0.5, 0.9, len(masks)).astype(np.float32)
    logits = np.zeros((len(masks), 8, 8), np.float32)
    return Prediction(masks, scores, logits, boxes.astype(np.float32))


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """One record with each structure, one with the union of its lungs."""
    image = np.random.default_rng(0).integers(0, 255, (H, W)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    drawn = {name: mask(name) for name in NAMES}
    drawn["lung"] = mask("left_lung") | mask("right_lung")
    for name, pixels in drawn.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    paths = {name: tmp_path / f"{name}.png" for name in NAMES}
    whole = Record("a/1", "a", tmp_path / "a.png", paths)
    return [whole, Record("b/1", "b", tmp_path / "a.png", {"lung": tmp_path / "lung.png"})]


def test_each_structure_has_its_mask_and_a_union_both(records: list[Record]) -> None:
    targets = default_targets(NAMES, records)
    assert targets == [*NAMES, "lung"]
    cases = evaluate_cases(Model(), records, targets, "automatic").set_index(["id", "target"])
    # What b does not draw has no row.
    assert list(cases.index) == [*(("a/1", t) for t in targets), ("b/1", "lung")]
    assert set(cases["box"]) == {"automatic"} and set(cases["boxes_in_call"]) == {3}
    dice = cases["dsc"].to_dict()
    assert dice.pop(("a/1", "heart")) == pytest.approx(2 * 30 / 62)
    assert set(dice.values()) == {1.0}
    assert cases["score"]["b/1", "lung"] == pytest.approx(0.6)


def test_the_error_of_the_ratio_stands_in_the_summary(records: list[Record]) -> None:
    cases = evaluate_cases(Model(), records, [*NAMES, "lung"], "automatic")
    row = summarise_targets("m", cases)
    ratio = row["cardiothoracic_ratio"]
    assert ratio["n"] == 1 and ratio["bias"] == pytest.approx(2 / 70)
    assert [each["name"] for each in row["targets"]] == [*NAMES, "lung"]
    assert [each["n"] for each in row["targets"]] == [1, 1, 1, 2]
    assert row["mean"]["dice_mean"] == pytest.approx((3 + 60 / 62) / 4)
    assert ratio_agreement(cases[cases["target"] == "lung"]) is None


def test_only_what_records_give_is_measured_and_only_what_the_model_finds(
    records: list[Record],
) -> None:
    assert default_targets(NAMES, records[1:]) == ["lung"]
    assert default_targets(("heart",), records) == ["heart"]

    class Hearts(Model):
        structures = ("heart",)

    with pytest.raises(DataError, match=r"finds heart without a box, no lung"):
        evaluate_cases(Hearts(), records, ["lung"], "automatic")
    boxed = evaluate_cases(Hearts(), records, ["lung"], "oracle")
    assert set(boxed["box"]) == {"oracle"}
