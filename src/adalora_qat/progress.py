"""How long work says how far it is, and to whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what) after each piece of work: "3 of 10, phantom_003.png"."""


class Watch(Protocol):
    """Who is told what is going on."""

    def phase(self, name: str) -> None:
        """Begin a phase."""

    def progress(self, done: int, total: int, what: str) -> None:
        """Report work: done of total."""
