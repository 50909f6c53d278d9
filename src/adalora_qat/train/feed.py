"""Samples to tensors on the device, through kept features where a prefix is frozen."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial

import cv2
import torch
from torch import Tensor

from adalora_qat.samples.dataset import SegmentationDataset, collate, unexpanded
from adalora_qat.samples.makers import Makers
from adalora_qat.train.features import Features
from adalora_qat.train.sampling import MicroBatch

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class _Made:
    """A batch on its way: tensors by name, the samples' names, and when the copy is done."""

    tensors: dict[str, Tensor]
    ids: list[str]
    arrived: torch.cuda.Event | None = None


class Feed:
    """A data set as the objective wants it, made ahead, a batch by each worker at a time.

    Workers are threads: OpenCV, NumPy and PyTorch let go of the interpreter's lock, a sample
    depends on seed, epoch and index alone, and nothing is copied between processes. The threads
    also send batches to a GPU, on a stream of their own: the training stream waits for neither
    the copy nor the page-locking. With ``processes`` each thread has a batch made by a process.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        features: Features | None = None,
        workers: int = 2,
        *,
        processes: bool = False,
    ) -> None:
        self.dataset = dataset
        self.features = features
        # These threads are the parallel ones: OpenCV's own, one a core in every process, would
        # only wait for each other on images this small.
        self._pool = ThreadPoolExecutor(
            workers, thread_name_prefix="feed", initializer=cv2.setNumThreads, initargs=(1,)
        )
        self._workers = workers
        self._device = _CPU
        self._copies: torch.cuda.Stream | None = None
        self._processes = processes
        self._makers: Makers | None = None
        self._rest: Iterator[MicroBatch] = iter(())
        self._ahead: deque[tuple[MicroBatch, Future[_Made]]] = deque()

    def __len__(self) -> int:
        return len(self.dataset)

    def begin(self, epoch: int, micros: Iterable[MicroBatch], device: torch.device = _CPU) -> None:
        """Draw the prompts and augmentation of this epoch, and start on its batches."""
        wait([made for _, made in self._ahead])  # the epoch must not change under their hands
        self._ahead.clear()
        self.dataset.set_epoch(epoch)
        self._device = device
        if device.type == "cuda" and self._copies is None:
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        planned = list(micros)
        if self._processes and self._makers is None and planned:
            largest = max(len(micro.indices) for micro in planned)
            self._makers = Makers(self.dataset, self._workers, largest)
        self._rest = iter(planned)
        for _ in range(self._workers + 1):
            self._submit()

    def batch(self, micro: MicroBatch, device: torch.device) -> tuple[dict[str, Tensor], list[str]]:
        """Return the tensors of ``Objective.forward`` and the names of the samples."""
        if self._ahead and self._ahead[0][0] == micro:
            made = self._ahead.popleft()[1].result()
            self._submit()
        else:
            made = self._made(micro)
        if made.arrived is not None:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(made.arrived)
            for tensor in made.tensors.values():
                # Memory of the copying stream, which must not be used again too early.
                tensor.record_stream(stream)
        moved = {name: t.to(device, non_blocking=True) for name, t in made.tensors.items()}
        if moved["masks"].dtype == torch.uint8:
            moved["masks"] = moved["masks"].float()
        if self.features is not None:
            moved["inputs"] = self.features.take(micro.indices, device)
        return moved, made.ids

    def _submit(self) -> None:
        micro = next(self._rest, None)
        if micro is not None:
            self._ahead.append((micro, self._pool.submit(self._sent, micro)))

    def _sent(self, micro: MicroBatch) -> _Made:
        """Make a batch ahead, in a process if there are any, and send it to the device."""
        if self._copies is None:
            return self._made(micro)
        with torch.cuda.stream(self._copies):
            made = self._made(micro, partial(_to, device=self._device))
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(self._copies)
        return replace(made, arrived=arrived)

    def _made(self, micro: MicroBatch, send: Callable[[Tensor], Tensor] | None = None) -> _Made:
        if self._makers is not None:
            tensors, ids = self._makers.batch(micro.indices, send or Tensor.clone)
        else:
            batch = collate([self.dataset[index] for index in micro.indices])
            tensors, ids = batch.tensors(), batch.ids
            if self.features is not None:
                del tensors["inputs"]
            if send is not None:
                tensors = {name: send(tensor) for name, tensor in tensors.items()}
        weights = torch.tensor(micro.weights)
        return _Made({**tensors, "weights": send(weights) if send else weights}, ids)


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    # What is expanded travels once.
    sent = unexpanded(tensor).contiguous().pin_memory().to(device, non_blocking=True)
    return sent.expand(tensor.shape)
