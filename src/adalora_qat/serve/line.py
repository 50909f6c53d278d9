"""The line of requests before the model: bounded, so that memory and waiting are, too."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import TypeVar

from adalora_qat.serve.refusal import Refusal
from adalora_qat.serve.settings import Settings

T = TypeVar("T")
# How much the newest piece of work counts in the mean that Retry-After is made of.
_NEWEST = 0.1


class Line:
    """Runs work in a few threads, and refuses more than may wait.

    Parameters
    ----------
    settings : ``workers``, ``waiting`` and ``seconds``.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pool = ThreadPoolExecutor(settings.workers, thread_name_prefix="adalora-qat-serve")
        self._lock = threading.Lock()
        self.accepted = 0
        self.mean_seconds = 1.0

    @property
    def is_full(self) -> bool:
        """Whether the next request would be refused."""
        return self.accepted >= self._settings.workers + self._settings.waiting

    def retry_after(self) -> int:
        """Return in how many seconds half of the line should be done, at least 1."""
        half = self.accepted / 2 / self._settings.workers
        return max(1, math.ceil(half * self.mean_seconds))

    def check(self) -> None:
        """Refuse a request while the line is full: before its body is read, if possible.

        Raises
        ------
        Refusal
            503, with Retry-After.
        """
        if self.is_full:
            after = self.retry_after()
            raise Refusal(
                503,
                "busy",
                f"{self.accepted} requests are being worked on or wait; try again in {after} s",
                {"Retry-After": str(after)},
            )

    async def run(self, work: Callable[[], T]) -> T:
        """Do a piece of work in a thread, in its turn.

        Raises
        ------
        Refusal
            503 if the line is full; 504 if it is not done in time. Work that has begun cannot
            be broken off: its place in the line is free only when it ends.
        """
        self.check()
        self.accepted += 1
        future = self._pool.submit(self._timed, work)
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: _soon(loop, self._leave))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._settings.seconds)
        except TimeoutError:
            raise Refusal(
                504,
                "too_slow",
                f"not done in {self._settings.seconds:g} s; send a smaller image or fewer boxes",
            ) from None

    def _timed(self, work: Callable[[], T]) -> T:
        started = perf_counter()
        try:
            return work()
        finally:
            spent = perf_counter() - started
            with self._lock:
                self.mean_seconds += _NEWEST * (spent - self.mean_seconds)

    def _leave(self) -> None:
        self.accepted -= 1

    def close(self) -> None:
        """Wait for what was begun; nothing more is taken."""
        self._pool.shutdown(cancel_futures=True)


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)
