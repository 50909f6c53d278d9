"""Which samples make which step: a function of seed, epoch and sizes, not of the machine.

``batch_size`` is the number of samples of one optimizer step, over all processes and
accumulated micro-batches, so that a configuration computes the same on one device or eight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adalora_qat.errors import ConfigError


@dataclass(frozen=True)
class MicroBatch:
    """What one process computes at once.

    Attributes
    ----------
    indices : positions in the data set.
    weights : the share of each sample in the step's mean loss, times the number of processes
        (DDP averages over them); 0 for a filler, which a process gets that has none left.
    """

    indices: tuple[int, ...]
    weights: tuple[float, ...]


def plan_epoch(
    count: int,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
) -> list[list[MicroBatch]]:
    """Return this process's micro-batches, one list for each optimizer step of the epoch.

    The last step may hold fewer samples; none is dropped, none comes twice.

    Raises
    ------
    ConfigError
        If a step cannot be shared out evenly.
    """
    shares = world * accumulate
    if batch_size % shares:
        raise ConfigError(
            f"batch_size={batch_size} cannot be shared by {world} processes × "
            f"accumulate={accumulate}; make it a multiple of {shares}"
        )
    order = np.random.default_rng((seed, epoch)).permutation(count)
    starts = range(0, count, batch_size)
    size = batch_size // shares
    return [
        [
            _share(order[start : start + batch_size], (micro * world + rank) * size, size, world)
            for micro in range(accumulate)
        ]
        for start in starts
    ]


def _share(step: np.ndarray, first: int, size: int, world: int) -> MicroBatch:
    own = step[first : first + size]
    weight = world / len(step)
    if len(own) == 0:
        return MicroBatch((int(step[0]),), (0.0,))
    return MicroBatch(tuple(int(i) for i in own), (weight,) * len(own))
