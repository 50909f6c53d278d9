"""Progress bars: for training steps, and for other long work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from adalora_qat.cli.app import err_console

if TYPE_CHECKING:
    from adalora_qat.train.state import StepReport


class Bars:
    """Progress bars for training steps and for other long work."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}

    def on_step(self, report: StepReport) -> None:
        """Show a training step: stage, epoch, loss, validation Dice, skipped steps."""
        dice = "" if report.val_dice is None else f" · val Dice {report.val_dice:.4f}"
        skipped = f" · {report.skipped} skipped (overflow)" if report.skipped else ""
        text = f"epoch {report.epoch}/{report.epochs} · loss {report.loss:.4f}{dice}{skipped}"
        self._show(report.stage, report.step, report.steps, text)

    def progress(self, done: int, total: int, what: str) -> None:
        """Show other work: done of total."""
        self._show("work", done, total, what)

    def phase(self, name: str) -> None:
        """Begin a phase; the bars of the previous one stay, finished."""
        self._tasks.pop("work", None)
        self._bars.console.print(f"[bold]{name}[/]")

    def _show(self, key: str, done: int, total: int, text: str) -> None:
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task("" if key == "work" else key, text="")
        self._bars.update(self._tasks[key], completed=done, total=total, text=text)
        if done >= total:
            self._bars.stop_task(self._tasks.pop(key))


@contextmanager
def watching(*, shown: bool = True) -> Iterator[Bars]:
    """Show progress bars inside the context, on stderr; ``shown=False`` hides them."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=err_console, disable=not shown) as bars:
        yield Bars(bars)
