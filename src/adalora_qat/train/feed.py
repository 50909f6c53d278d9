"""Samples to tensors on the device, through kept features where a prefix is frozen."""

from __future__ import annotations

import torch
from torch import Tensor

from adalora_qat.data.dataset import SegmentationDataset, collate
from adalora_qat.train.features import Features
from adalora_qat.train.sampling import MicroBatch


class Feed:
    """A data set as the objective wants it."""

    def __init__(self, dataset: SegmentationDataset, features: Features | None = None) -> None:
        self.dataset = dataset
        self.features = features

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Draw the prompts and augmentation of this epoch."""
        self.dataset.set_epoch(epoch)

    def batch(self, micro: MicroBatch, device: torch.device) -> tuple[dict[str, Tensor], list[str]]:
        """Return the tensors of ``Objective.forward`` and the names of the samples."""
        batch = collate([self.dataset[index] for index in micro.indices])
        inputs = batch.images if self.features is None else self.features.take(micro.indices)
        tensors = {
            "inputs": inputs,
            "boxes": batch.boxes,
            "masks": batch.masks,
            "valid": batch.valid,
            "weights": torch.tensor(micro.weights),
        }
        moved = {name: t.to(device, non_blocking=True) for name, t in tensors.items()}
        return moved, list(batch.ids)
