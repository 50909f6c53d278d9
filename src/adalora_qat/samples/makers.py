"""Processes that make batches, each into memory that it shares with the one that trains.

For training on a GPU, whose own thread is busy in Python all the time: threads beside it would
wait for the interpreter's lock at each of the hundred small calls that a sample takes.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from ctypes import c_byte
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import torch
from torch import Tensor

from adalora_qat.errors import TrainingError
from adalora_qat.samples.dataset import SegmentationDataset, collate, unexpanded

_ALIGNED = 64
Keep = Callable[[Tensor], Tensor]


class _Place(NamedTuple):
    """Where a tensor lies: what is expanded (equal channels, a map of ones) lies there once."""

    first: int
    dtype: torch.dtype
    once: torch.Size
    shape: torch.Size


class _Maker(NamedTuple):
    pipe: Connection
    memory: Tensor
    process: Any


class Makers:
    """``count`` processes with a copy of the data set; batches hold ``size`` samples at most.

    They see epochs change as the data set does, and end with this object.
    """

    def __init__(self, dataset: SegmentationDataset, count: int, size: int) -> None:
        # Samples of a data set have the same side; a margin for small tensors and alignment.
        one = collate([dataset[0]]).tensors()
        memory = size * (sum(tensor.nbytes for tensor in one.values()) + len(one) * _ALIGNED)
        self._idle: SimpleQueue[_Maker] = SimpleQueue()
        for maker in [_started(dataset, memory) for _ in range(count)]:
            self._idle.put(maker)

    def batch(self, indices: Sequence[int], keep: Keep) -> tuple[dict[str, Tensor], list[str]]:
        """Return the tensors of a batch and the ids of its samples; may be called from threads.

        Parameters
        ----------
        keep : called with each tensor before its memory is used again; returns a copy.

        Raises
        ------
        TrainingError
            If the process is gone.
        Exception
            Whatever making the samples raises.
        """
        maker = self._idle.get()
        try:
            maker.pipe.send(list(indices))
            reply = maker.pipe.recv()
        except (EOFError, OSError) as error:
            maker.process.join(1)
            raise TrainingError(
                f"a process that makes samples ended (exit code {maker.process.exitcode}); it may "
                "have been killed for want of memory. Start again: the run continues"
            ) from error
        try:
            if isinstance(reply, Exception):
                raise reply
            places, ids = reply
            return {
                name: keep(_at(place, maker.memory).expand(place.shape))
                for name, place in places.items()
            }, ids
        finally:
            self._idle.put(maker)


def _started(dataset: SegmentationDataset, memory: int) -> _Maker:
    # Spawned: a fork of a process with threads, or with CUDA, may hang.
    context = get_context("spawn")
    shared = context.RawArray(c_byte, memory)
    ours, theirs = context.Pipe()
    process = context.Process(target=_make, args=(dataset, shared, theirs), daemon=True)
    with _without_main():
        process.start()
    theirs.close()
    return _Maker(ours, torch.frombuffer(shared, dtype=torch.uint8), process)


@contextmanager
def _without_main() -> Iterator[None]:
    # A spawned process runs the user's script again for its names, which it has no need of:
    # scripts would have to be written for that (``if __name__ == "__main__"``).
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _make(dataset: SegmentationDataset, shared: Any, pipe: Connection) -> None:
    """Make the batches that are asked for until nobody is there to ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that trains ends this one
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    memory = torch.frombuffer(shared, dtype=torch.uint8)
    with suppress(EOFError, OSError):
        while True:
            indices = pipe.recv()
            reply: Any
            try:
                batch = collate([dataset[index] for index in indices])
                reply = _written(batch.tensors(), memory), batch.ids
            except Exception as error:  # raised where the batch was asked for
                reply = error
            pipe.send(reply)


def _written(tensors: Mapping[str, Tensor], memory: Tensor) -> dict[str, _Place]:
    places, first = {}, 0
    for name, tensor in tensors.items():
        once = unexpanded(tensor)
        places[name] = _Place(first, once.dtype, once.shape, tensor.shape)
        _at(places[name], memory).copy_(once)
        first += -(-once.nbytes // _ALIGNED) * _ALIGNED
    return places


def _at(place: _Place, memory: Tensor) -> Tensor:
    count = place.once.numel() * place.dtype.itemsize
    return memory[place.first : place.first + count].view(place.dtype).view(place.once)
