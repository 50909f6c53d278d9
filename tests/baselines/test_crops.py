"""The box as a crop."""

from pathlib import Path

import numpy as np
import pytest

from adalora_qat.baselines.crops import BoxCropDataset, crop_window, paste
from adalora_qat.baselines.predict import BaselinePredictor
from adalora_qat.config import BaselinesConfig, DataConfig, PromptConfig
from adalora_qat.corpus.records import Record
from adalora_qat.corpus.sources import read_source
from adalora_qat.imaging.geometry import Frame, load_image, load_mask, mask_box_inclusive
from adalora_qat.phantom.phantom import write_phantoms

FRAME = Frame(64, "minmax")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Phantoms of twice the model side: nothing is resized before the crop."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, 3, seed=0, side=128)
    return sorted(read_source("phantom", folder).records, key=lambda record: record.id)


def test_windows_by_hand() -> None:
    box = np.array([10, 20, 30, 60])
    assert crop_window(box, (100, 100), 0.0) == (10, 20, 30, 60)
    assert crop_window(box, (100, 100), 0.1) == (8, 16, 32, 64)
    assert crop_window(box, (62, 31), 0.1) == (8, 16, 31, 62)
    # In whole pixels outwards, and never empty.
    assert crop_window(np.array([10.2, 20.7, 30.1, 60.5]), (100, 100), 0.0) == (10, 20, 31, 61)
    assert crop_window(np.array([99, 99, 99, 99]), (100, 100), 0.1) == (99, 99, 100, 100)


def test_paste_leaves_nothing_outside() -> None:
    mask = paste(np.ones((2, 3), np.float32), (1, 2, 4, 4), (5, 6))
    assert mask.sum() == 6
    assert mask[2:4, 1:4].all()


def test_training_and_prediction_see_the_same_crop(records: list[Record]) -> None:
    dataset = BoxCropDataset(records, DataConfig(), FRAME, 0.1, train=False)
    seen = []

    def look(unit: np.ndarray) -> np.ndarray:
        seen.append(unit)
        return np.zeros((64, 64), np.float32)

    config = BaselinesConfig(architecture="unet", side=64, input="crop", margin=0.1)
    predictor = BaselinePredictor(look, config, "stub")
    for index, record in enumerate(records):
        truth = np.logical_or.reduce([load_mask(p) for p in record.mask_parts("lung")])
        predictor.predict(load_image(record.image), mask_box_inclusive(truth)[None])
        sample = dataset[index]
        h, w = sample.valid
        assert np.array_equal(sample.image[0, :h, :w].numpy(), seen[-1])


def test_masks_and_boxes_move_with_the_crop(records: list[Record]) -> None:
    dataset = BoxCropDataset(records, DataConfig(), FRAME, 0.25, train=False)
    for sample in (dataset[index] for index in range(len(records))):
        found = mask_box_inclusive(sample.masks[0].numpy() > 0)
        assert np.abs(found - sample.boxes[0].numpy()).max() < 1.5
        # A quarter of the box on each side: the long side is two thirds of the crop, or more
        # where the image ends.
        assert max(found[2:] - found[:2]) > 0.6 * max(sample.valid)


def test_jitter_is_in_pixels_of_the_model_side(records: list[Record]) -> None:
    def windows(jitter_px: int) -> list[tuple[int, int]]:
        config = DataConfig(prompt=PromptConfig(jitter_px=jitter_px))
        dataset = BoxCropDataset(records, config, FRAME, 0.0, train=True)
        boxes = []
        for epoch in range(1, 9):
            dataset.set_epoch(epoch)
            record = dataset.records[0]
            from adalora_qat.samples.streams import stream

            mask = dataset._planes(record).masks[0]
            boxes.append(dataset._box(mask, stream("prompt", 0, epoch, record.id)))
        return [float(np.ptp([box[edge] for box in boxes])) for edge in range(4)]

    assert max(windows(0)) == 0
    # ±4 px of the model side are ±8 of planes twice as large.
    assert 8 < max(windows(4)) <= 16


def test_a_crop_that_must_be_cached_at_its_own_side(records: list[Record], tmp_path: Path) -> None:
    from adalora_qat.samples.cache import PlaneCache

    cache = PlaneCache(tmp_path, 128)
    cache.build(records, ("lung",))
    kept = BoxCropDataset(records, DataConfig(), FRAME, 0.1, train=False, cache=cache)[0]
    decoded = BoxCropDataset(records, DataConfig(), FRAME, 0.1, train=False)[0]
    assert kept.image.equal(decoded.image)
