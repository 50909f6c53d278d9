"""A run's history as tables for people and as flat values for trackers."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adalora_qat.config import RunConfig
from adalora_qat.files import write_text
from adalora_qat.train.state import FitState


def tracked_values(config: RunConfig) -> dict[str, str | int | float | bool]:
    """Return the configuration as the flat plain values that trackers take."""
    flat: dict[str, str | int | float | bool] = {}

    def visit(values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if isinstance(value, Mapping):
                visit(value, f"{prefix}{key}.")
            else:
                flat[prefix + key] = value if isinstance(value, int | float) else str(value)

    visit(config.model_dump(mode="json"), "")
    return flat


def write_history(folder: Path, state: FitState) -> None:
    """Write ``history.csv`` (a row a step) and ``epochs.csv`` (a row an epoch)."""
    write_text(folder / "history.csv", _csv(state.steps))
    write_text(folder / "epochs.csv", _csv(state.epochs))


def _csv(rows: Sequence[Mapping[str, float]]) -> str:
    text = io.StringIO()
    # A run that an older version began may lack a column in its first rows.
    writer = csv.DictWriter(text, list(rows[-1]) if rows else [], "", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
