"""How long tasks report their progress, and to whom."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from adalora_qat.files import write_json

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what) after each piece of work: "3 of 10, phantom_003.png"."""


class Watch(Protocol):
    """Receives the progress of long tasks."""

    def phase(self, name: str) -> None:
        """Begin a phase."""

    def progress(self, done: int, total: int, what: str) -> None:
        """Report work: done of total."""


@dataclass
class Clock:
    """Seconds by phase, kept on disk so that resumed work reports the whole of its time."""

    path: Path
    watch: Watch
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.is_file():
            self.seconds = json.loads(self.path.read_text("utf-8"))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase and tell the watcher."""
        self.watch.phase(name.replace("_", " "))
        started = time.perf_counter()
        yield
        spent = time.perf_counter() - started
        self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 2)
        write_json(self.path, self.seconds)
