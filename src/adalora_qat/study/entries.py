"""From evaluation folders, per-case tables and run folders to a study: what ``compare`` reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pandas as pd

from adalora_qat.errors import DataError
from adalora_qat.evaluate.case_table import read_cases
from adalora_qat.study.facts import read_facts
from adalora_qat.study.measure import STUDY_FILE
from adalora_qat.study.models import distinct_names, named
from adalora_qat.study.study import ModelFacts, Study, compare_models

TABLE_SUFFIXES: Final = (".csv", ".parquet")
# Where evaluations lie inside a run folder, or any folder of evaluations.
PLACES: Final = ("evaluation/*", "*")


@dataclass(frozen=True)
class Entry:
    """One model's per-case table, and what is known of the model.

    Attributes
    ----------
    name : as it will stand in the tables.
    cases : its per-case table: one model, one box, one alteration.
    path : where the table was found.
    facts, machine : from ``model.json`` beside the table; None where there is none.
    """

    name: str
    cases: pd.DataFrame
    path: Path
    facts: ModelFacts | None = None
    machine: Mapping[str, Any] | None = None


def study_of(
    arguments: Sequence[str],
    baseline: str,
    targets: Sequence[str] = (),
    margin: float | None = None,
    *,
    drop_missing: bool = False,
    predict_times: bool = False,
    paper: bool = False,
) -> Study:
    """Read what the arguments name and compare everything with the baseline.

    Parameters
    ----------
    arguments : evaluation folders, ``cases.csv`` or ``cases.parquet``, run folders with
        evaluations inside; each may be ``NAME=PATH``.
    baseline : a model's name, or the argument that holds it alone.
    targets : compare only these masks; none compares all.
    margin : of equivalence in DSC.
    drop_missing : drop and count cases that one model lacks, instead of refusing.
    predict_times : show the evaluations' own times as latency.
    paper : quote the paper's figures in columns of their own.

    Raises
    ------
    DataError
        If a table is missing or damaged, names collide, or tables cannot be paired.
    """
    if margin is not None and not margin > 0:
        raise DataError(f"--margin {margin} must be more than 0, as in 0.005 (half a Dice point)")
    read = [(argument, entries_of(argument)) for argument in arguments]
    entries = _distinct([entry for _, found in read for entry in found])
    chosen = _baseline(baseline, entries, read)
    cases = {entry.name: _of_targets(entry, targets) for entry in entries}
    facts, note = _with_latency(entries, predict_times=predict_times)
    margins = None if margin is None else {"dsc": margin}
    missing = "drop" if drop_missing else "error"
    return compare_models(
        cases, chosen, facts, margins=margins, latency_note=note, paper=paper, missing=missing
    )


def entries_of(argument: str) -> list[Entry]:
    """Return the models that an argument of ``compare`` holds.

    Raises
    ------
    DataError
        If there is no per-case table.
    """
    name, path = named(argument)
    if path.is_file() and path.suffix in TABLE_SUFFIXES:
        found = list(_in_table(path))
    elif path.is_dir():
        found = list(_in_folder(path))
    else:
        kind = "is no per-case table" if path.exists() else "does not exist"
        raise DataError(
            f"{path} {kind}; give a folder that evaluate or report wrote, its cases.csv or "
            "cases.parquet, or a run folder with evaluations in it"
        )
    if name is not None:
        found = [replace(e, name=name if len(found) == 1 else f"{name}: {e.name}") for e in found]
    return found


def _distinct(entries: Sequence[Entry]) -> list[Entry]:
    homes = [_folder(entry.path).name for entry in entries]
    hint = "give names, as in first=a second=b"
    names = distinct_names([entry.name for entry in entries], homes, "tables", hint)
    return [replace(entry, name=name) for entry, name in zip(entries, names, strict=True)]


def _in_folder(path: Path) -> Iterator[Entry]:
    for own in (path / "cases.parquet", path / "cases.csv"):
        if own.is_file():
            yield from _in_table(path if own.suffix == ".parquet" else own)
            return
    found = _evaluations(path)
    if not found:
        raise DataError(
            f"{path} holds no per-case table; make one with `adalora-qat evaluate` or "
            "`adalora-qat report`"
        )
    for folder in found:
        yield from _in_table(folder)


def _evaluations(path: Path) -> list[Path]:
    """Return the evaluations of the last report in a folder, or all that lie in it."""
    listed = path / STUDY_FILE
    if not listed.is_file():
        return sorted({f.parent for place in PLACES for f in path.glob(f"{place}/cases.parquet")})
    try:
        return [path / name for name in json.loads(listed.read_text("utf-8"))["evaluations"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{listed} is damaged; make the report again") from error


def _in_table(path: Path) -> Iterator[Entry]:
    table = read_cases(path)
    if table.empty:
        raise DataError(f"{path} holds no case")
    told = read_facts(_folder(path))
    names = list(dict.fromkeys(table["model"]))
    for name in names:
        part = table[table["model"] == name].reset_index(drop=True)
        if told is not None and len(names) == 1:
            yield Entry(told[0], part, path, told[1], told[2])
        else:
            yield Entry(str(name), part, path)


def _folder(path: Path) -> Path:
    folder = path if path.is_dir() else path.parent
    return folder.resolve()


def _baseline(
    given: str, entries: Sequence[Entry], read: Sequence[tuple[str, Sequence[Entry]]]
) -> str:
    names = [entry.name for entry in entries]
    if given in names:
        return given
    at = 0
    for argument, found in read:
        held = names[at : at + len(found)]
        at += len(found)
        if given == argument or Path(given) == named(argument)[1]:
            if len(held) == 1:
                return held[0]
            raise DataError(f"--baseline {given} holds several models: {'; '.join(held)}; name one")
    raise DataError(f"--baseline {given!r} is none of the models: {'; '.join(names)}")


def _of_targets(entry: Entry, targets: Sequence[str]) -> pd.DataFrame:
    if not targets:
        return entry.cases
    kept = entry.cases[entry.cases["target"].isin(list(targets))]
    if kept.empty:
        known = ", ".join(sorted(set(entry.cases["target"])))
        raise DataError(f"{entry.path} has no case of {', '.join(targets)}; it has {known}")
    return kept.reset_index(drop=True)


def _with_latency(
    entries: Sequence[Entry], *, predict_times: bool
) -> tuple[dict[str, ModelFacts], str]:
    """Keep latencies that may stand side by side, and say how they were taken."""
    facts = {entry.name: entry.facts for entry in entries if entry.facts is not None}
    if predict_times:
        return _predict_times(entries, facts)
    reports = {_folder(entry.path).parent.parent for entry in entries}
    if len(reports) == 1 and any(known.latency_ms is not None for known in facts.values()):
        return facts, "CPU latency: as a report measured it, models in turn."
    plain = {name: replace(known, latency_ms=None) for name, known in facts.items()}
    return plain, "No latency: only models that one report timed in turn can be set side by side."


def _predict_times(
    entries: Sequence[Entry], facts: Mapping[str, ModelFacts]
) -> tuple[dict[str, ModelFacts], str]:
    """Take latencies from the evaluations, if one machine's CPU made them all."""
    machines = {_cpu(entry.machine) for entry in entries}
    if len(machines) != 1 or None in machines:
        raise DataError(
            "the evaluations do not say that one machine's CPU made them all, so their times "
            "cannot be set side by side; leave --predict-times out"
        )
    timed = dict(facts)
    for entry in entries:
        seconds = entry.cases["seconds"].median()
        if pd.notna(seconds):
            known = timed.get(entry.name, ModelFacts())
            timed[entry.name] = replace(known, latency_ms=1000 * float(seconds))
    return timed, (
        "CPU latency: median time of a predict call while evaluating, one model after another: "
        "other work on the machine is in it."
    )


def _cpu(machine: Mapping[str, Any] | None) -> tuple[Any, Any] | None:
    if machine is None or machine.get("device", "cpu" if not machine.get("gpu") else "") != "cpu":
        return None
    return machine.get("processor"), machine.get("cores")
