"""Plain lines for a log: the first at once, then every few seconds, and the last of each work."""

import pytest

from adalora_qat.cli import log_lines
from adalora_qat.cli.log_lines import LogLines
from adalora_qat.train.state import StepReport


def test_lines_come_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(log_lines.time, "monotonic", lambda: now)
    written: list[str] = []
    lines = LogLines(written.append)
    lines.phase("stage1")
    for step in range(1, 13):
        now += 1
        lines.on_step(StepReport("stage1", 1, 2, step, 12, 0.5, 0.9 if step > 6 else None))
    assert [line.split()[0] for line in written] == ["stage1", "1", "6", "11", "12"]
    assert written[2].split("  ")[-2:] == ["6/12", "stage1: epoch 1/2, loss 0.5000"]
    assert written[3].endswith("11/12  stage1: epoch 1/2, loss 0.5000, val Dice 0.9000")
    lines.progress(3, 9, "frozen features")
    assert len(written) == 5
