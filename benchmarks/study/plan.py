"""The plan of the study as typed rows, and the commands that each of them is.

Every step is a command of the package's own command line, written down with the results, so that
any row can be run again alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PLAN = Path(__file__).with_name("plan.yaml")
KEYS = {
    "title", "recipe", "overrides", "data", "stage1", "stages", "boxes", "external", "seeds",
    "targets", "pack", "plain", "degraded", "like", "adds",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A row of the plan; ``plan.yaml`` explains the fields."""

    name: str
    recipe: str
    title: str
    overrides: tuple[str, ...] = ()
    data: str = "main"
    stage1: str | None = None
    stages: tuple[str, ...] = ("stage1",)
    boxes: tuple[str, ...] = ("oracle",)
    external: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    targets: tuple[str, ...] = ("lung",)
    pack: str | None = None
    plain: bool = False
    degraded: tuple[str, ...] = ()
    like: str | None = None
    adds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where the study reads and writes: prepared manifests, run folders, evaluations, a cache."""

    data: Path
    runs: Path
    evaluations: Path
    cache: Path

    @classmethod
    def under(cls, root: Path) -> Place:
        """Return the places below one folder."""
        return cls(root / "data", root / "runs", root / "evaluations", root / "cache")


@dataclass(frozen=True)
class Job:
    """One row with one seed."""

    row: Row
    seed: int

    @property
    def name(self) -> str:
        """Return the name of its run folder and evaluations."""
        return f"{self.row.name}-s{self.seed}"

    @property
    def needs(self) -> str | None:
        """Return the job whose stage 1 this one starts from."""
        return f"{self.row.stage1}-s{self.seed}" if self.row.stage1 else None

    def model(self, place: Place, stage: str) -> Path:
        """Return the model of a stage."""
        run = place.runs / self.name
        return run if self.row.plain else run / stage / "model.safetensors"

    def commands(self, place: Place) -> Iterator[list[str]]:
        """Yield the arguments of ``adalora-qat`` that make and measure this job."""
        run, data = place.runs / self.name, place.data / self.row.data
        yield [
            "train", self.row.recipe, *self.row.overrides, f"seed={self.seed}",
            "--data", str(data), "--out", str(run), "--cache", str(place.cache),
            *(["--stage1", str(place.runs / self.needs)] if self.needs else []),
        ]  # fmt: skip
        for stage in self.row.stages:
            model = self.model(place, stage)
            sets = [("test", data, "test", box) for box in self.row.boxes]
            sets += [("external", place.data / "external", "test", b) for b in self.row.external]
            for name, folder, split, box in sets:
                out = place.evaluations / self.name / f"{stage}_{name}_{box}"
                yield [
                    "evaluate", str(model), "--data", str(folder), "--split", split,
                    "--box", box, "--out", str(out),
                    *(part for t in self.row.targets for part in ("--target", t)),
                ]  # fmt: skip


def read_plan(path: Path = PLAN) -> dict[str, Row]:
    """Read the rows, in order.

    Raises
    ------
    ValueError
        If a row has an unknown key, an override that is not a string, or names a row that is not
        above it.
    """
    values: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text("utf-8"))["rows"]
    rows: dict[str, Row] = {}
    whole: dict[str, dict[str, Any]] = {}
    for name, given in values.items():
        unknown = set(given) - KEYS
        if unknown:
            raise ValueError(f"row {name}: unknown {', '.join(sorted(unknown))}")
        for key in ("stage1", "like"):
            if given.get(key) not in (None, *rows):
                raise ValueError(f"row {name}: {key} is {given[key]}, which is not above it")
        merged = {**whole.get(given.get("like", ""), {}), **given}
        merged["overrides"] = [*merged.get("overrides", []), *merged.get("adds", [])]
        # What a third row would inherit: not what this one differs by.
        for override in merged["overrides"]:
            if not isinstance(override, str):
                raise ValueError(f"row {name}: the override {override!r} is not section.key=value")
        whole[name] = {k: v for k, v in merged.items() if k not in ("like", "adds")}
        fixed = {k: tuple(v) if isinstance(v, list) else v for k, v in merged.items()}
        rows[name] = Row(name=name, **fixed)
    return rows


def jobs_of(rows: dict[str, Row], path: Path = PLAN) -> list[Job]:
    """Return all jobs, the plan's ``first`` first, then the first seed of every row."""
    first = yaml.safe_load(path.read_text("utf-8")).get("first", [])
    found = [Job(row, seed) for row in rows.values() for seed in row.seeds]
    order = {name: number for number, name in enumerate(rows)}
    return sorted(
        found,
        key=lambda job: (
            first.index(job.name) if job.name in first else len(first),
            job.row.seeds.index(job.seed),
            order[job.row.name],
        ),
    )
