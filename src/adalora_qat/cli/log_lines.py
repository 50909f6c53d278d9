"""Progress of a long command as plain lines, for logs, where no bar can be drawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from adalora_qat.cli.app import err_console
from adalora_qat.cli.watch import Bars, watching

if TYPE_CHECKING:
    from adalora_qat.train.state import StepReport

_SECONDS = 5.0


class LogLines:
    """Writes a line at once, then at most one every few seconds, and always the last of a task."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._started = time.monotonic()
        self._written = float("-inf")

    def on_step(self, report: StepReport) -> None:
        """Log a training step: stage, epoch, loss, validation Dice."""
        dice = "" if report.val_dice is None else f", val Dice {report.val_dice:.4f}"
        text = f"epoch {report.epoch}/{report.epochs}, loss {report.loss:.4f}{dice}"
        self._log(report.step, report.steps, f"{report.stage}: {text}")

    def progress(self, done: int, total: int, what: str) -> None:
        """Log other work: done of total."""
        self._log(done, total, what)

    def phase(self, name: str) -> None:
        """Begin a phase."""
        self._write(name)

    def _log(self, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if done < total and now - self._written < _SECONDS:
            return
        self._written = now
        self._write(f"{now - self._started:7.0f} s  {done}/{total}  {text}")


@contextmanager
def watching_or_logging(*, shown: bool = True) -> Iterator[Bars | LogLines]:
    """Show bars on a terminal, and plain lines on stderr elsewhere; ``shown=False``: neither."""
    if err_console.is_terminal or not shown:
        with watching(shown=shown) as watch:
            yield watch
    else:
        yield LogLines(lambda line: err_console.print(line, highlight=False, soft_wrap=True))
