import numpy as np

from adalora_qat.imaging.automatic_prompt import automatic_box, predict_automatically
from adalora_qat.imaging.geometry import whole_box
from adalora_qat.model.predict import TorchPredictor
from adalora_qat.model.sam import random_segmenter
from adalora_qat.predictor import EncodesOnce


def test_one_encoding_serves_many_prompts() -> None:
    segmenter = random_segmenter("tiny-test", seed=0)
    predictor = TorchPredictor(segmenter, "tiny")
    assert isinstance(predictor, EncodesOnce)
    image = np.random.default_rng(0).integers(0, 255, (40, 60), dtype=np.uint8)
    runs: list[int] = []
    segmenter.image_encoder.register_forward_hook(lambda *_: runs.append(1))
    ask = predictor.prompted(image)
    boxes = np.array([[5, 5, 50, 30]])
    whole = whole_box(*image.shape[:2])[None]
    first, second = ask(whole), ask(boxes)
    assert len(runs) == 1
    np.testing.assert_array_equal(first.logits, predictor.predict(image, whole).logits)
    np.testing.assert_array_equal(second.logits, predictor.predict(image, boxes).logits)

    runs.clear()
    found = predict_automatically(predictor, image)
    assert len(runs) == 1
    box = automatic_box(first, (40, 60))
    expected = first if box is None else ask(box[None])
    np.testing.assert_array_equal(found.logits, expected.logits)
