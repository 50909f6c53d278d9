"""One encoding an image, and the same answers."""

import numpy as np

from adalora_qat.imaging.geometry import whole_box
from adalora_qat.model.predict import TorchPredictor
from adalora_qat.model.sam import random_segmenter
from adalora_qat.study.measure import RememberingEncoder, remembering

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 255, (70, 90), dtype=np.uint8) for _ in range(3)]
BOXES = [np.array([[5, 5, 60, 50]]), np.array([[10, 20, 80, 60]]), whole_box(70, 90)[None]]


def test_answers_are_the_same_to_the_bit_and_images_encoded_once() -> None:
    plain = TorchPredictor(random_segmenter("tiny-test", 0), "plain")
    kept = remembering(random_segmenter("tiny-test", 0), "kept", most=3)
    for box in BOXES:
        for image in IMAGES:
            one, other = plain.predict(image, box), kept.predict(image, box)
            np.testing.assert_array_equal(one.logits, other.logits)
            np.testing.assert_array_equal(one.masks, other.masks)
            np.testing.assert_array_equal(one.scores, other.scores)
    assert isinstance(kept.encode, RememberingEncoder)
    assert kept.encode.encoded == len(IMAGES)


def test_no_more_is_kept_than_was_asked() -> None:
    kept = remembering(random_segmenter("tiny-test", 0), "kept", most=2)
    for image in [*IMAGES, IMAGES[2], IMAGES[0]]:
        kept.predict(image, BOXES[0])
    assert isinstance(kept.encode, RememberingEncoder)
    assert kept.encode.encoded == 4  # the first was dropped for the third
