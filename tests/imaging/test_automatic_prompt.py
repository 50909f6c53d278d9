from typing import Any

import numpy as np

from adalora_qat.imaging.automatic_prompt import automatic_box, predict_automatically
from adalora_qat.predictor import Prediction, Prompted, prompted

WHOLE = [[0, 0, 64, 32]]


def prediction(mask: np.ndarray, boxes: Any, low: int = 16) -> Prediction:
    count = len(boxes)
    return Prediction(
        np.repeat(mask[None], count, axis=0),
        np.full(count, 0.5, np.float32),
        np.zeros((count, low, low), np.float32),
        np.asarray(boxes, np.float32),
    )


class Recorder:
    """Finds one mask whatever it is asked, and notes what it was asked."""

    name = "recorder"

    def __init__(self, mask: np.ndarray) -> None:
        self.mask, self.asked, self.encoded = mask, [], 0

    def predict(self, image: Any, boxes_xyxy_original: Any) -> Prediction:
        self.asked.append(boxes_xyxy_original.tolist())
        return prediction(self.mask, boxes_xyxy_original)


class EncodingRecorder(Recorder):
    def prompted(self, image: Any) -> Prompted:
        self.encoded += 1
        return lambda boxes: self.predict(image, boxes)


def two_lungs_and_a_speck() -> np.ndarray:
    mask = np.zeros((32, 64), bool)
    mask[8:24, 8:24] = mask[8:28, 36:52] = True
    mask[0:2, 60:64] = True
    return mask


def test_the_box_is_that_of_the_two_largest_components() -> None:
    # 16 low-resolution pixels span 64: the box is in steps of 4.
    box = automatic_box(prediction(two_lungs_and_a_speck(), WHOLE), (32, 64))
    assert box is not None and box.tolist() == [8, 8, 52, 28]


def test_a_margin_stays_inside_the_image() -> None:
    box = automatic_box(prediction(two_lungs_and_a_speck(), WHOLE), (32, 64), margin=3)
    assert box is not None and box.tolist() == [0, 0, 64, 32]


def test_the_second_answer_is_prompted_with_the_box_of_the_first() -> None:
    predictor = Recorder(two_lungs_and_a_speck())
    found = predict_automatically(predictor, np.zeros((32, 64)))
    assert predictor.asked == [WHOLE, [[8, 8, 52, 28]]]
    assert found.boxes_xyxy_original.tolist() == [[8, 8, 52, 28]]


def test_nothing_found_leaves_the_whole_image_as_the_box() -> None:
    predictor = Recorder(np.zeros((32, 64), bool))
    found = predict_automatically(predictor, np.zeros((32, 64)))
    assert predictor.asked == [WHOLE] and not found.masks.any()
    assert found.boxes_xyxy_original.tolist() == [[0, 0, 64, 32]]


def test_an_image_is_encoded_once_where_that_can_be() -> None:
    predictor = EncodingRecorder(two_lungs_and_a_speck())
    predict_automatically(predictor, np.zeros((32, 64)))
    assert predictor.encoded == 1 and len(predictor.asked) == 2
    plain = Recorder(two_lungs_and_a_speck())
    assert prompted(plain, np.zeros((32, 64)))(np.array(WHOLE)).masks.any()
