"""The second pass of structures."""

import numpy as np
from numpy.typing import NDArray

from adalora_qat.imaging.structure_passes import structure_passes
from adalora_qat.predictor import Prediction

SIZE = (40, 60)


class Decoder:
    """Answers the whole image with a square each and a speck, and a box with itself."""

    def __init__(self, *, empty: bool = False) -> None:
        self.asked: list[tuple[list[list[float]], list[int]]] = []
        self.empty = empty

    def __call__(self, boxes: NDArray[np.float64], numbers: NDArray[np.int64]) -> Prediction:
        self.asked.append((boxes.tolist(), numbers.tolist()))
        masks = np.zeros((len(boxes), *SIZE), np.bool_)
        if len(self.asked) == 1 and not self.empty:
            masks[:, 10:20, 5:25] = True
            masks[:, 0, 0] = True
        elif len(self.asked) > 1:
            masks[:] = True
        scores = np.full(len(boxes), len(self.asked), np.float32)
        logits = np.zeros((len(boxes), 60, 60), np.float32)
        return Prediction(masks, scores, logits, boxes.astype(np.float32))


def test_only_what_is_refined_is_asked_again_with_its_box_and_name() -> None:
    ask = Decoder()
    found = structure_passes(ask, SIZE, ("left_lung", "right_lung", "heart"), ("heart",))
    whole = [0.0, 0.0, 60.0, 40.0]
    assert ask.asked == [([whole] * 3, [0, 1, 2]), ([[5.0, 10.0, 25.0, 20.0]], [2])]
    assert found.scores.tolist() == [1, 1, 2]
    assert found.masks[2].all() and not found.masks[1].all()
    assert found.boxes_xyxy_original.tolist() == [whole, whole, [5.0, 10.0, 25.0, 20.0]]


def test_an_empty_first_mask_stays() -> None:
    ask = Decoder(empty=True)
    found = structure_passes(ask, SIZE, ("left_lung", "heart"), ("heart",))
    assert len(ask.asked) == 1 and not found.masks.any()


def test_nothing_is_asked_twice_by_default() -> None:
    ask = Decoder()
    structure_passes(ask, SIZE, ("left_lung", "heart"))
    assert len(ask.asked) == 1
