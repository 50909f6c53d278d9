"""What the study found, looked up: ``summary.json``, ``training.json``, degraded images."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from plan import Row, read_plan

Entry = dict[str, Any]


class Page:
    """Looks entries of the results up.

    Attributes
    ----------
    out : the folder of the results.
    rows : of the plan.
    summary : of ``summary.json``; its ``rows`` are ``entries``.
    training : of ``training.json``, by run.
    degraded : per-case tables of degraded images, by file.
    repeats : per-case tables of a row trained again with the same seeds.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.rows: dict[str, Row] = read_plan()
        self.summary: Entry = read_json(out / "summary.json")
        self.entries: list[Entry] = self.summary["rows"]
        self.training: Entry = read_json(out / "training.json")
        files = sorted((out / "degraded").glob("*.csv"))
        self.degraded = {file.stem: pd.read_csv(file) for file in files}
        again = sorted((out / "repeats").glob("*.csv"))
        self.repeats = {file.stem: pd.read_csv(file) for file in again}

    def find(self, row: str, stage: str | None = None, **where: str) -> Entry | None:
        """Return the entry of a row: its last stage if none is named, on the test split."""
        wanted = {"set": "test", **where}
        stages = [stage] if stage else ["stage2", "ptq", "stage1"]
        for each in stages:
            for entry in self.entries:
                fits = entry["row"] == row and entry["stage"] == each
                if fits and all(entry[k] == v for k, v in wanted.items()):
                    return entry
        return None

    def first(self, row: str, stage: str | None = None, dataset: str = "test") -> Entry | None:
        """Return the entry with the oracle box, or of a model that takes none."""
        boxes = (self.find(row, stage, set=dataset, box=box) for box in ("oracle", "none"))
        return next((entry for entry in boxes if entry is not None), None)

    def comparison(self, entry: Entry, row: str, stage: str) -> Entry | None:
        """Return the paired comparison of an entry with another row's stage."""
        name = "/".join((entry["row"], entry["stage"], entry["set"], entry["box"]))
        other = "/".join((row, stage, entry["set"], entry["box"]))
        found = self.summary["comparisons"]
        return next((c for c in found if c["row"] == name and c["against"] == other), None)

    def validation(self, row: str) -> float | None:
        """Return a row's Dice on validation, mean over its seeds."""
        return validation(self.training, self.rows[row])

    def by_source(self, row: str, name: str) -> list[float]:
        """Return a row's mean Dice on one source's images, seed by seed."""
        entry = self.first(row)
        return [] if entry is None else [float(v) for v in entry["by_seed_and_source"][name]]

    def title(self, key: str) -> str:
        """Return the title of a row, named by itself or by ROW/STAGE/SET/BOX."""
        return self.rows[key.partition("/")[0]].title


def validation(training: Mapping[str, Any], row: Row) -> float | None:
    """Return a row's Dice on validation, of the models that it left: mean over its seeds."""
    known = validations(training, row)
    return mean(known) if known else None


def validations(training: Mapping[str, Any], row: Row) -> list[float]:
    """Return a row's Dice on validation, seed by seed as far as there are runs."""
    found = []
    for seed in row.seeds:
        entry = training.get(f"{row.name}-s{seed}", {})
        stages = (entry.get(f"{stage}_val_dice") for stage in ("stage2", "stage1", "training"))
        if values := next((each for each in stages if each), None):
            # Baselines keep their best epoch, the others their last.
            found.append(float(max(values) if row.plain else values[-1]))
    return found


def table(head: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
    """Return a Markdown table."""
    head = list(head)
    rows = [" | ".join(map(str, line)) for line in lines]
    return "\n".join(
        [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {r} |" for r in rows)]
    )


def four(value: float | None) -> str:
    """Return four decimals, a dash for nothing."""
    return "–" if value is None or value != value else f"{value:.4f}"


def spread(entry: Entry) -> str:
    """Return the mean, and the standard deviation over seeds where there are several."""
    sd = entry["dice_sd_over_seeds"]
    return four(entry["dice_mean"]) + ("" if sd is None else f" ± {sd:.4f}")


def mean(values: Sequence[float]) -> float:
    """Return the mean, nan of nothing."""
    return statistics.fmean(values) if values else math.nan


def spread_of(values: Sequence[float]) -> str:
    """Return the mean, and the standard deviation where there are several values."""
    sd = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return four(mean(values)) + sd


def source(entry: Entry | None, name: str) -> float | None:
    """Return the mean Dice on one source's images."""
    found = None if entry is None else entry["by_source"].get(name)
    return None if found is None else float(found["dice_mean"])


def shown(found: Entry | None, what: str) -> str:
    """Return whether a comparison has shown something, in words."""
    return "–" if found is None else ("shown" if found[what] else "not shown")


def difference(found: Entry | None) -> str:
    """Return a mean difference with its interval."""
    if found is None:
        return "–"
    low, high = found["ci"]
    return f"{found['mean_difference']:+.4f} [{low:+.4f}, {high:+.4f}]"


def read_json(file: Path) -> Entry:
    """Return what a JSON file holds, nothing if it is not there."""
    found: Entry = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return found
