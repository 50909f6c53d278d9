"""Records to samples and batches: cache, augmentation, prompts. Torch begins here.

Shapes: B images, N targets (one box and one mask each), S model side, h w the valid extent.
Every random number depends on (seed, epoch, id) only: not on workers, order or restarts. Where
an epoch sees a record several times, the number of the time is part of the id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from adalora_qat.config import DataConfig
from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError
from adalora_qat.imaging.geometry import Frame, to_channels, unit_range
from adalora_qat.samples.augment import augment
from adalora_qat.samples.cache import PlaneCache
from adalora_qat.samples.planes import Planes, decode
from adalora_qat.samples.prompts import (
    exact_box,
    jittered_box,
    training_box,
    whole_image_box,
)
from adalora_qat.samples.streams import stream
from adalora_qat.samples.structures import SIDES, assemble, wanted


@dataclass(frozen=True)
class Sample:
    """One image with its prompts and truth, in the model frame.

    Attributes
    ----------
    image : (3, S, S) float32, normalised, padding zero; equal channels share their memory.
    boxes : (N, 4) float32, xyxy.
    masks : (N, S, S) uint8, 0 or 1.
    valid : (h, w), the extent without padding.
    id : of the record.
    structures : (N,) int64, which structure each mask is, −1 for whatever the box holds; None
        where the model has no structures. Then also:
    known : (N,) float32, 0 where the truth of a mask is unknown.
    merged : 1 where the masks of both lungs hold their union, which alone is known.
    """

    image: Tensor
    boxes: Tensor
    masks: Tensor
    valid: tuple[int, int]
    id: str
    structures: Tensor | None = None
    known: Tensor | None = None
    merged: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Samples stacked.

    Attributes
    ----------
    images : (B, 3, S, S) float32; equal channels share their memory, so copy before writing.
    boxes : (B, N, 4) float32.
    masks : (B, N, S, S) uint8, to be made floats where they are used: four times as large.
    valid : (B, 1, S, S) float32, 1 where the image is and 0 on the padding.
    ids : of the records, in order.
    structures, known, merged : (B, N) int64, (B, N) and (B,) float32, or absent: see ``Sample``.
    """

    images: Tensor
    boxes: Tensor
    masks: Tensor
    valid: Tensor
    ids: list[str]
    named: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by the names that an objective knows them by."""
        return {
            "inputs": self.images,
            "boxes": self.boxes,
            "masks": self.masks,
            "valid": self.valid,
            **self.named,
        }

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, as ``DataLoader(pin_memory=True)`` asks."""
        return Batch(
            self.images.pin_memory(),
            self.boxes.pin_memory(),
            self.masks.pin_memory(),
            self.valid.pin_memory(),
            self.ids,
            {name: tensor.pin_memory() for name, tensor in self.named.items()},
        )


class SegmentationDataset(Dataset[Sample]):
    """Samples of records for training (``train=True``) or for validation and test.

    Training draws prompts and augmentation anew at every epoch. Otherwise the box is the
    exact oracle box, or that box with a fixed jitter of ``jitter_px``.

    Parameters
    ----------
    records : as read from a manifest; each must give every target.
    config : prompts (their ``targets`` name the masks), augmentation, and how often training
        sees the records of each data set.
    frame : what the model wants to see.
    seed : of all randomness.
    cache : where decoded images are kept; without it every access decodes the files.

    Raises
    ------
    DataError
        If records lack a target; an access raises it if a file cannot be used.
    """

    def __init__(
        self,
        records: Sequence[Record],
        config: DataConfig,
        frame: Frame,
        *,
        seed: int = 0,
        train: bool = True,
        jitter_px: int = 0,
        cache: PlaneCache | None = None,
        structures: Sequence[str] = (),
    ) -> None:
        repeat = config.repeat if train else {}
        self.records, self.streams = _repeated(records, repeat)
        self.structures = tuple(structures)
        self.config = config
        self.frame = frame
        self.seed = seed
        self.train = train
        self.jitter_px = jitter_px
        self.cache = cache
        # Shared memory: workers that live through epochs see the epoch change.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]
        if self.structures:
            _check_structures(self.records, self.structures)
        else:
            _check_targets(self.records, self.targets)

    @property
    def targets(self) -> tuple[str, ...]:
        """The mask kinds of a sample, in order."""
        return self.config.prompt.targets

    @property
    def epoch(self) -> int:
        """The epoch whose randomness samples are drawn with."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw the prompts and augmentation of this epoch from now on."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record, name = self.records[index], self.streams[index]
        if self.structures:
            return self._structured(record, name)
        planes = self._planes(record)
        grey, masks = unit_range(planes.grey, self.frame), planes.masks
        epoch = self.epoch if self.train else 0
        if self.train and self.config.augment.enabled:
            rng = stream("augment", self.seed, epoch, name)
            grey, masks = augment(grey, masks, self.config.augment, rng)
        rng = stream("prompt", self.seed, epoch, name)
        boxes = np.stack([self._box(mask, rng) for mask in masks])
        return Sample(
            image=torch.from_numpy(to_channels(grey, self.frame)).expand(3, -1, -1),
            boxes=torch.from_numpy(boxes),
            masks=torch.from_numpy(_padded(masks, self.frame.side)),
            valid=planes.frame_map.valid_hw,
            id=record.id,
        )

    def _structured(self, record: Record, name: str) -> Sample:
        """Return a sample with a prompt for each structure, known or not."""
        names = wanted(record, self.structures)
        planes = self._planes(record, names)
        truth = assemble(planes.masks, names, self.structures)
        grey, masks = unit_range(planes.grey, self.frame), truth.masks
        epoch = self.epoch if self.train else 0
        if self.train and self.config.augment.enabled:
            rng = stream("augment", self.seed, epoch, name)
            there = masks.any(axis=(1, 2))
            lungs = np.array([name in SIDES for name in self.structures])
            grey, moved = augment(grey, masks[there], self.config.augment, rng, lungs[there])
            masks = np.zeros_like(masks)
            masks[there] = moved
        rng = stream("prompt", self.seed, epoch, name)
        prompts = [self._prompt(mask, rng) for mask in masks]
        named = [number if says else -1 for number, (_, says) in enumerate(prompts)]
        known = truth.known & masks.any(axis=(1, 2))
        return Sample(
            image=torch.from_numpy(to_channels(grey, self.frame)).expand(3, -1, -1),
            boxes=torch.from_numpy(np.stack([box for box, _ in prompts])),
            masks=torch.from_numpy(_padded(masks, self.frame.side)),
            valid=planes.frame_map.valid_hw,
            id=record.id,
            structures=torch.tensor(named),
            known=torch.from_numpy(known.astype(np.float32)),
            merged=torch.tensor(float(truth.merged)),
        )

    def _prompt(
        self, mask: NDArray[np.bool_], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], bool]:
        """Return a box, and whether the prompt says which structure it is for."""
        valid_hw = (mask.shape[0], mask.shape[1])
        whole = whole_image_box(valid_hw)
        # Both draws are made for every mask, so that no structure's depend on another's.
        free, unnamed = rng.random(2)
        if not self.train or not mask.any() or free < self.config.prompt.whole_image:
            return whole, True
        box = jittered_box(mask, valid_hw, self.config.prompt.jitter_px, rng)
        return box, unnamed >= self.config.prompt.unnamed

    def _planes(self, record: Record, names: Sequence[str] | None = None) -> Planes:
        targets = self.targets if names is None else names
        if self.cache is None:
            return decode(record, self.frame.side, targets)
        return self.cache.read(record, targets)

    def _box(self, mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
        valid_hw = (mask.shape[0], mask.shape[1])
        if self.train:
            return training_box(mask, valid_hw, self.config.prompt, rng)
        if self.jitter_px:
            return jittered_box(mask, valid_hw, self.jitter_px, rng)
        return exact_box(mask, valid_hw)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples; all must have the same side and number of targets."""
    return Batch(
        images=_stacked_images([sample.image for sample in samples]),
        boxes=_stacked([sample.boxes for sample in samples]),
        masks=_stacked([sample.masks for sample in samples]),
        valid=_valid_maps([sample.valid for sample in samples], samples[0].image.shape[-1]),
        ids=[sample.id for sample in samples],
        named={
            name: _stacked([getattr(sample, name) for sample in samples])
            for name in ("structures", "known", "merged")
            if samples[0].structures is not None
        },
    )


def _repeated(
    records: Sequence[Record], repeat: Mapping[str, int]
) -> tuple[list[Record], list[str]]:
    """Return the records as often as training sees them, and the name of each one's stream."""
    sources = {record.source for record in records}
    if absent := sorted(repeat.keys() - sources):
        raise DataError(
            f"data.repeat names {', '.join(absent)}, of which there are no training records; "
            f"these are of {', '.join(sorted(sources))}"
        )
    seen = [(record, time) for record in records for time in range(repeat.get(record.source, 1))]
    names = [f"{record.id}\x1f{time}" if time else record.id for record, time in seen]
    return [record for record, _ in seen], names


def unexpanded(tensor: Tensor) -> Tensor:
    """Return a tensor with what is expanded (equal channels, a map of ones) once."""
    return tensor[tuple(slice(None if step else 1) for step in tensor.stride())]


def _stacked_images(images: Sequence[Tensor]) -> Tensor:
    # Three equal channels stay one plane in memory: two thirds less to copy and to share.
    if all(image.stride(0) == 0 for image in images):
        return _stacked([image[:1] for image in images]).expand(-1, 3, -1, -1)
    return _stacked(images)


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    # PyTorch's own collate stacks into shared memory where it runs in a worker.
    stacked: Tensor = default_collate(list(tensors))
    return stacked


def _valid_maps(extents: Sequence[tuple[int, int]], side: int) -> Tensor:
    if all(extent == (side, side) for extent in extents):
        return torch.ones(()).expand(len(extents), 1, side, side)
    valid = torch.zeros((len(extents), 1, side, side))
    for row, (h, w) in zip(valid, extents, strict=True):
        row[0, :h, :w] = 1
    return valid


def _check_targets(records: Sequence[Record], targets: Sequence[str]) -> None:
    for target in targets:
        without = [record.id for record in records if not record.mask_parts(target)]
        if without:
            raise DataError(
                f"{len(without)} of {len(records)} records have no {target} mask (first: "
                f"{', '.join(without[:3])}); choose another data.prompt.target or leave them out"
            )


def _check_structures(records: Sequence[Record], structures: Sequence[str]) -> None:
    for name in structures:
        if not any(name in wanted(record, (name,)) or _splits(record, name) for record in records):
            raise DataError(
                f"none of {len(records)} records has a {name} mask; leave it out of "
                "model.structures or give records that have one"
            )
    without = [record.id for record in records if not wanted(record, structures)]
    if without:
        raise DataError(
            f"{len(without)} of {len(records)} records have no mask of {', '.join(structures)} "
            f"(first: {', '.join(without[:3])}); leave them out"
        )


def _splits(record: Record, name: str) -> bool:
    return name in SIDES and bool(wanted(record, (name,)))


def _padded(masks: NDArray[np.bool_], side: int) -> NDArray[np.uint8]:
    count, h, w = masks.shape
    if h == w == side:
        return masks.view(np.uint8)
    canvas = np.zeros((count, side, side), dtype=np.uint8)
    canvas[:, :h, :w] = masks
    return canvas
