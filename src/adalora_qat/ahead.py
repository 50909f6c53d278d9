"""Work done a few items before it is asked for, so that memory stays flat."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")


def in_order(
    pool: Executor, work: Callable[[Item], Done], items: Iterable[Item], ahead: int
) -> Iterator[Done]:
    """Yield what ``work`` gives for each item, in order, computed in the pool.

    As ``pool.map``, but items are taken, worked on and kept at most ``ahead`` early.

    Parameters
    ----------
    items : taken in the calling thread, so a generator will do.
    ahead : how many items beside the one that is yielded, at least 0.

    Raises
    ------
    Exception
        Whatever ``work`` raises, when its item's turn comes.
    """
    running: deque[Future[Done]] = deque()
    for item in items:
        running.append(pool.submit(work, item))
        if len(running) > ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
