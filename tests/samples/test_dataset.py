"""Samples and batches: shapes, frames, and randomness that depends on nothing but the sample."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from adalora_qat.config import AugmentConfig, DataConfig, PromptConfig
from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError
from adalora_qat.imaging import geometry
from adalora_qat.imaging.geometry import Frame
from adalora_qat.phantom.phantom import write_phantoms
from adalora_qat.samples.cache import PlaneCache
from adalora_qat.samples.dataset import Batch, SegmentationDataset, collate

FRAME = Frame(64)
ORGANS = ("left_lung", "right_lung", "heart")
AUGMENTED = DataConfig(augment=AugmentConfig(enabled=True))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, 5, 0, 80)
    for path in folder.glob("**/phantom_000001.png"):
        Image.open(path).crop((0, 0, 80, 60)).save(path)
    return [
        Record(
            f"phantom/{path.stem}",
            "phantom",
            path,
            {kind: folder / "masks" / kind / path.name for kind in ORGANS},
        )
        for path in sorted((folder / "images").iterdir())
    ]


def batch_of(dataset: SegmentationDataset, **options: object) -> Batch:
    return next(iter(DataLoader(dataset, batch_size=len(dataset), collate_fn=collate, **options)))


def equal(first: Batch, second: Batch) -> bool:
    return first.ids == second.ids and all(
        torch.equal(getattr(first, name), getattr(second, name))
        for name in ("images", "boxes", "masks", "valid")
    )


def test_sample_is_the_image_and_truth_in_the_model_frame(records: list[Record]) -> None:
    dataset = SegmentationDataset(records, DataConfig(), FRAME, train=False)
    for sample, record in zip((dataset[i] for i in range(5)), records, strict=True):
        image, frame_map = geometry.image_to_model(geometry.load_image(record.image), FRAME)
        lungs = geometry.load_mask(record.masks["left_lung"])
        lungs = lungs | geometry.load_mask(record.masks["right_lung"])
        mask = geometry.mask_to_model(lungs, frame_map)
        np.testing.assert_array_equal(sample.image, image)
        np.testing.assert_array_equal(sample.masks, mask[None])
        np.testing.assert_array_equal(sample.boxes, geometry.mask_box_inclusive(mask)[None])
        assert sample.valid == frame_map.valid_hw
        assert sample.id == record.id


def test_batch_has_the_shapes_it_promises(records: list[Record]) -> None:
    config = DataConfig(prompt=PromptConfig(target=ORGANS))
    batch = collate([SegmentationDataset(records, config, FRAME)[i] for i in range(5)])
    assert len(batch) == 5
    assert batch.images.shape == (5, 3, 64, 64)
    assert batch.boxes.shape == (5, 3, 4)
    assert batch.masks.shape == (5, 3, 64, 64)
    assert batch.valid.shape == (5, 1, 64, 64)
    assert {t.dtype for t in (batch.images, batch.boxes, batch.valid)} == {torch.float32}
    assert batch.masks.dtype == torch.uint8 and batch.masks.max() == 1
    assert batch.valid[0].all()
    assert batch.valid[1].sum() == 48 * 64  # 60 of 80 rows
    assert not batch.images[1, :, 48:].any()


def test_imagenet_frame_keeps_its_three_channels(records: list[Record]) -> None:
    dataset = SegmentationDataset(records, DataConfig(), Frame(64, "imagenet"))
    batch = collate([dataset[0], dataset[1]])
    assert (batch.images[0, 0] != batch.images[0, 1]).any()
    assert not batch.images[1, :, 48:].any()


@pytest.mark.parametrize("config", [DataConfig(), AUGMENTED])
def test_randomness_depends_on_seed_epoch_and_id_alone(
    records: list[Record], config: DataConfig
) -> None:
    dataset = SegmentationDataset(records, config, FRAME, seed=7)
    first = collate([dataset[i] for i in range(5)])
    backwards = collate([dataset[i] for i in reversed(range(5))][::-1])
    assert equal(first, backwards)
    assert equal(first, batch_of(dataset, num_workers=2))
    fewer = SegmentationDataset(records[2:], config, FRAME, seed=7)
    assert torch.equal(fewer[0].boxes, dataset[2].boxes)
    dataset.set_epoch(1)
    assert not torch.equal(first.boxes, collate([dataset[i] for i in range(5)]).boxes)
    dataset.set_epoch(0)
    assert equal(first, collate([dataset[i] for i in range(5)]))
    other = SegmentationDataset(records, config, FRAME, seed=8)
    assert not torch.equal(first.boxes, collate([other[i] for i in range(5)]).boxes)


def test_living_workers_see_the_epoch_change(records: list[Record]) -> None:
    dataset = SegmentationDataset(records, DataConfig(), FRAME)
    loader = DataLoader(
        dataset, batch_size=5, collate_fn=collate, num_workers=1, persistent_workers=True
    )
    first = next(iter(loader)).boxes.clone()
    dataset.set_epoch(1)
    second = next(iter(loader)).boxes.clone()
    assert not torch.equal(first, second)
    expected = collate([dataset[i] for i in range(5)]).boxes
    assert torch.equal(second, expected)


def test_evaluation_ignores_the_epoch_and_takes_its_own_jitter(records: list[Record]) -> None:
    exact = SegmentationDataset(records, AUGMENTED, FRAME, train=False)
    moved = SegmentationDataset(records, AUGMENTED, FRAME, train=False, jitter_px=3)
    for dataset in (exact, moved):
        before = collate([dataset[i] for i in range(5)])
        dataset.set_epoch(4)
        assert equal(before, collate([dataset[i] for i in range(5)]))
    assert torch.equal(exact[0].image, moved[0].image)
    difference = torch.stack([exact[i].boxes - moved[i].boxes for i in range(5)]).abs()
    assert 0 < difference.max() <= 3


def test_augmented_boxes_follow_the_augmented_masks(records: list[Record]) -> None:
    config = DataConfig(
        prompt=PromptConfig(oracle=1.0), augment=AugmentConfig(enabled=True, shift=0.1)
    )
    dataset = SegmentationDataset(records, config, FRAME)
    plain = SegmentationDataset(records, DataConfig(), FRAME, train=False)
    moved = 0
    for index in range(5):
        sample = dataset[index]
        box = geometry.mask_box_inclusive(sample.masks[0].numpy())
        np.testing.assert_array_equal(sample.boxes[0], box)
        moved += not torch.equal(sample.masks, plain[index].masks)
    assert moved == 5


@pytest.mark.parametrize("config", [DataConfig(), AUGMENTED])
def test_the_cache_changes_nothing(
    records: list[Record], config: DataConfig, tmp_path: Path
) -> None:
    cache = PlaneCache(tmp_path, FRAME.side)
    cache.build(records, ("lung",))
    plain = SegmentationDataset(records, config, FRAME)
    cached = SegmentationDataset(records, config, FRAME, cache=cache)
    expected = collate([plain[i] for i in range(5)])
    assert equal(expected, collate([cached[i] for i in range(5)]))
    assert equal(expected, collate([pickle.loads(pickle.dumps(cached))[i] for i in range(5)]))


def test_records_without_the_target_are_named(records: list[Record]) -> None:
    config = DataConfig(prompt=PromptConfig(target="infection"))
    with pytest.raises(DataError, match=r"5 of 5 records have no infection mask.*phantom_000000"):
        SegmentationDataset(records, config, FRAME)


def test_a_repeated_data_set_is_drawn_anew_each_time(records: list[Record]) -> None:
    ours, theirs = records[:2], [replace(r, source="other") for r in records[2:]]
    plain = SegmentationDataset([*ours, *theirs], AUGMENTED, FRAME)
    config = AUGMENTED.model_copy(update={"repeat": {"phantom": 3}})
    dataset = SegmentationDataset([*ours, *theirs], config, FRAME)
    names = [record.id for record in dataset.records]
    assert names == [r.id for r in (*ours[:1] * 3, *ours[1:] * 3, *theirs)]
    first, second, third = (dataset[i] for i in range(3))
    # The first time is what it was without repeats; the others are other draws of the same image.
    assert torch.equal(first.image, plain[0].image) and torch.equal(first.boxes, plain[0].boxes)
    assert not torch.equal(first.image, second.image)
    assert not torch.equal(second.image, third.image)
    assert first.id == second.id == third.id
    assert torch.equal(dataset[6].image, plain[2].image)
    assert torch.equal(second.image, SegmentationDataset(ours, config, FRAME)[1].image)
    assert len(SegmentationDataset(ours, config, FRAME, train=False)) == 2


def test_a_repeat_of_an_absent_data_set_is_named(records: list[Record]) -> None:
    config = DataConfig(repeat={"jsrt": 2})
    with pytest.raises(DataError, match=r"data\.repeat names jsrt.*these are of phantom"):
        SegmentationDataset(records, config, FRAME)
