"""Samples to tensors on the device, through kept features where a prefix is frozen."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor

from adalora_qat.data.dataset import Batch, SegmentationDataset, collate
from adalora_qat.train.features import Features
from adalora_qat.train.sampling import MicroBatch


class Feed:
    """A data set as the objective wants it, made ahead by threads, each a batch at a time.

    Threads rather than processes: OpenCV, NumPy and PyTorch let go of the interpreter's lock, a
    sample depends on seed, epoch and index alone, and nothing is copied between processes.
    """

    def __init__(
        self, dataset: SegmentationDataset, features: Features | None = None, workers: int = 2
    ) -> None:
        self.dataset = dataset
        self.features = features
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="feed")
        self._workers = workers
        self._rest: Iterator[MicroBatch] = iter(())
        self._ahead: deque[tuple[MicroBatch, Future[Batch]]] = deque()

    def __len__(self) -> int:
        return len(self.dataset)

    def begin(self, epoch: int, micros: Iterable[MicroBatch]) -> None:
        """Draw the prompts and augmentation of this epoch, and start on its batches."""
        wait([made for _, made in self._ahead])  # the epoch must not change under their hands
        self._ahead.clear()
        self.dataset.set_epoch(epoch)
        self._rest = iter(micros)
        for _ in range(self._workers + 1):
            self._submit()

    def batch(self, micro: MicroBatch, device: torch.device) -> tuple[dict[str, Tensor], list[str]]:
        """Return the tensors of ``Objective.forward`` and the names of the samples."""
        if self._ahead and self._ahead[0][0] == micro:
            batch = self._ahead.popleft()[1].result()
            self._submit()
        else:
            batch = self._made(micro)
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

    def _submit(self) -> None:
        micro = next(self._rest, None)
        if micro is not None:
            self._ahead.append((micro, self._pool.submit(self._made, micro)))

    def _made(self, micro: MicroBatch) -> Batch:
        return collate([self.dataset[index] for index in micro.indices])
