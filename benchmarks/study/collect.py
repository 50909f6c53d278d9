"""From the folders of the study to the results that are kept.

    python benchmarks/study/collect.py pack ROOT FILE.tgz           # on the machine that trained
    tar xzf FILE.tgz -C ROOT                                         # where the results are written
    python benchmarks/study/collect.py write ROOT --out results/study
    python benchmarks/study/collect.py repeat OTHER_ROOT ROW         # trained again, same seeds

``write`` leaves per-case tables (``cases/ROW.csv``), ``training.json`` (validation by epoch,
ranks, movement of Λ, provenance), ``jobs.json`` (commands, seconds, how each job ended),
``summary.json`` (means by row, seed and source, paired statistics) and the pages of
``page.py``. Only rows that ended are in it; the others are named as missing. Rows and seeds
that ROOT lacks are taken over from the results that are there already.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from crossing import METHODS, WAYS, preferred
from lookup import read_json
from page import write_page
from plan import PLAN, Row, read_plan

from adalora_qat.evaluate.compare import compare, holm_adjusted
from adalora_qat.evaluate.comparison import Comparison, verdict
from adalora_qat.files import write_json, write_text

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from _machine import describe_machine

KEPT = ("dsc", "iou", "nsd_deepmind2d_2px", "nsd_medsam_2px", "hd95_px", "score")
RATIOS = ("ctr_truth", "ctr_prediction")
PARTS = (
    "jobs.json", "evaluations/*/*/cases.parquet", "evaluations/*/*/model.json",
    "evaluations/*/*_degraded.csv",
    "runs/*/config.yaml", "runs/*/provenance.json", "runs/*/stage*/epochs.csv",
    "runs/*/epochs.csv", "runs/*/stage1/ranks.csv", "runs/*/stage1/ranks.json",
    "runs/*/stage2/lambda_movement.json", "logs/*.txt",
)  # fmt: skip
LABELS = ["seed", "stage", "set", "box"]
BASELINE = "decoder-only"


@dataclass(frozen=True)
class Evaluation:
    """The per-case table of one row, seed, stage, set and box."""

    row: Row
    seed: int
    stage: str
    set: str
    box: str
    cases: pd.DataFrame
    facts: dict[str, Any]

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Return what seeds are averaged within."""
        return self.row.name, self.stage, self.set, self.box


def pack(root: Path, file: Path) -> None:
    """Write everything small into one archive."""
    with tarfile.open(file, "w:gz") as archive:
        for pattern in PARTS:
            for path in sorted(root.glob(pattern)):
                archive.add(path, path.relative_to(root))


def evaluations(root: Path, rows: dict[str, Row]) -> Iterator[Evaluation]:
    """Yield every finished evaluation, rows in the order of the plan."""
    order = list(rows)
    folders = [f for f in (root / "evaluations").glob("*/*") if (f / "cases.parquet").is_file()]
    known = [(f, *f.parent.name.rsplit("-s", 1)) for f in folders]
    known = [each for each in known if each[1] in rows]
    for folder, name, seed in sorted(known, key=lambda e: (order.index(e[1]), e[2], e[0].name)):
        stage, dataset, _ = folder.name.split("_", 2)
        told, cases = folder / "model.json", pd.read_parquet(folder / "cases.parquet")
        yield Evaluation(
            rows[name],
            int(seed),
            stage,
            dataset,
            # What the model was given: one that takes no box says so.
            str(cases["box"].iloc[0]),
            cases,
            json.loads(told.read_text("utf-8"))["facts"] if told.is_file() else {},
        )


def kept(out: Path, rows: dict[str, Row]) -> Iterator[Evaluation]:
    """Yield the evaluations whose per-case tables are among the results, in the plan's order."""
    told = read_json(out / "summary.json").get("rows", [])
    facts = {(e["row"], e["stage"], e["set"], e["box"]): e["facts"] for e in told}
    for name, row in rows.items():
        file = out / "cases" / f"{name}.csv"
        if not file.is_file():
            continue
        whole = pd.read_csv(file, dtype={"id": str, "source": str, "target": str})
        for (seed, stage, dataset, box), part in whole.groupby(LABELS, sort=False):
            cases = part.drop(columns=["seed", "stage", "set"]).reset_index(drop=True)
            cases = cases.reindex(columns=list(dict.fromkeys([*cases, *RATIOS])))
            key = (name, str(stage), str(dataset), str(box))
            yield Evaluation(row, int(seed), key[1], key[2], key[3], cases, facts.get(key, {}))


def together(before: list[Evaluation], now: list[Evaluation], order: list[str]) -> list[Evaluation]:
    """Return all evaluations, a new one in the place of an old one of the same kind."""
    found = {(*each.key, each.seed): each for each in (*before, *now)}
    return sorted(found.values(), key=lambda e: (order.index(e.row.name), e.seed, *e.key[1:]))


def write(root: Path, out: Path, plan: Path = PLAN) -> None:
    """Write the results, those that are in ``out`` already included."""
    rows = read_plan(plan)
    found = together(list(kept(out, rows)), list(evaluations(root, rows)), list(rows))
    for name in dict.fromkeys(each.row.name for each in found):
        _write_cases([each for each in found if each.row.name == name], out / "cases")
    for file in sorted((root / "evaluations").glob("*/*_degraded.csv")):
        stage = file.name.removesuffix("_degraded.csv")
        write_text(out / "degraded" / f"{file.parent.name}_{stage}.csv", file.read_text("utf-8"))
    new = json.loads((root / "jobs.json").read_text("utf-8"))
    ended = {n: _without_root(j) for n, j in new.items() if j["status"] == "done"}
    jobs = read_json(out / "jobs.json") | ended
    write_json(out / "jobs.json", dict(sorted(jobs.items())))
    trained = read_json(out / "training.json")
    trained |= {n: t for n, t in training(root, rows).items() if n in ended}
    write_json(out / "training.json", dict(sorted(trained.items())))
    chosen = preferred(trained, rows)
    summary = {
        "rows": [_summary(group) for group in _groups(found)],
        "comparisons": _comparisons(found),
        "preferred": chosen,
        "crossings": _crossings(found, chosen),
        "missing": sorted(
            f"{name}-s{seed}"
            for name, row in rows.items()
            for seed in row.seeds
            if jobs.get(f"{name}-s{seed}", {}).get("status") != "done"
        ),
        "tabulated_on": describe_machine(),
    }
    summary = _finite(summary)
    write_json(out / "summary.json", summary)
    write_page(out)


def repeat(root: Path, row: str, out: Path, plan: Path = PLAN) -> None:
    """Write a row's Dice in another root, where it was trained again, beside the results."""
    again = [
        each.cases[["id", "source", "target", "dsc"]].assign(seed=each.seed)
        for each in evaluations(root, read_plan(plan))
        if each.key == (row, "stage1", "test", "oracle")
    ]
    if not again:
        raise SystemExit(f"{root} has no evaluation of {row}'s stage 1 on the test split")
    write_text(out / "repeats" / f"{row}.csv", _csv(pd.concat(again)))
    write_page(out)


def training(root: Path, rows: dict[str, Row]) -> dict[str, Any]:
    """Return what each run's training left: validation by epoch, ranks, Λ, provenance."""
    told: dict[str, Any] = {}
    for run in sorted((root / "runs").iterdir()):
        if run.name.rsplit("-s", 1)[0] not in rows:
            continue
        entry: dict[str, Any] = {"config": (run / "config.yaml").read_text("utf-8")}
        provenance = run / "provenance.json"
        if provenance.is_file():
            entry["provenance"] = json.loads(provenance.read_text("utf-8"))
        for file in sorted(run.glob("**/epochs.csv")):
            stage = file.parent.name if file.parent != run else "training"
            with file.open() as lines:
                entry[f"{stage}_val_dice"] = [
                    round(float(row["val_dice"]), 5) for row in csv.DictReader(lines)
                ]
        ranks = run / "stage1" / "ranks.json"
        if ranks.is_file():
            events = json.loads(ranks.read_text("utf-8"))
            entry["ranks"] = events[-1]["ranks"] if events else {}
        moved = run / "stage2" / "lambda_movement.json"
        if moved.is_file():
            entry["lambda_movement"] = json.loads(moved.read_text("utf-8"))
        told[run.name] = entry
    return told


def _write_cases(group: list[Evaluation], folder: Path) -> None:
    parts = []
    for each in group:
        measured = [name for name in KEPT if name in each.cases]
        measured += [name for name in RATIOS if each.cases[name].notna().any()]
        table = each.cases[["id", "source", "target", *measured]].copy()
        named = {"seed": each.seed, "stage": each.stage, "set": each.set, "box": each.box}
        for number, (name, value) in enumerate(named.items()):
            table.insert(number, name, value)
        parts.append(table)
    write_text(folder / f"{group[0].row.name}.csv", _csv(pd.concat(parts)))


def _csv(table: pd.DataFrame) -> str:
    text: str = table.to_csv(index=False, float_format="%.7g", lineterminator="\n")
    return text


def _groups(found: list[Evaluation]) -> list[list[Evaluation]]:
    keys = dict.fromkeys(each.key for each in found)
    return [[each for each in found if each.key == key] for key in keys]


def _summary(group: list[Evaluation]) -> dict[str, Any]:
    first = group[0]
    by_seed = {each.seed: _means(each.cases) for each in group}
    scores = [by_seed[seed]["dsc"] for seed in by_seed]
    pooled = seed_mean(group)
    return {
        "row": first.row.name,
        "title": first.row.title,
        "stage": first.stage,
        "set": first.set,
        "box": first.box,
        "seeds": list(by_seed),
        "n": len(pooled),
        "dropped": int(pooled["dsc"].isna().sum()),
        "dice_mean": float(np.mean(scores)),
        "dice_sd_over_seeds": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "dice_sd_over_cases": float(pooled["dsc"].std(ddof=1)),
        **{name: float(pooled[name].mean()) for name in KEPT if name in pooled},
        "by_source": {
            str(source): {"n": len(part), "dice_mean": float(part["dsc"].mean())}
            for source, part in pooled.groupby("source")
        },
        "by_seed_and_source": {
            str(source): [
                float(each.cases.loc[each.cases["source"] == source, "dsc"].mean())
                for each in group
            ]
            for source in sorted(pooled["source"].unique())
        },
        "by_target": {
            str(target): float(part["dsc"].mean()) for target, part in pooled.groupby("target")
        },
        "cardiothoracic_ratio": _ratio(pooled),
        "by_seed": {str(seed): means for seed, means in by_seed.items()},
        "facts": first.facts,
    }


def _ratio(cases: pd.DataFrame) -> dict[str, float] | None:
    """Return how nearly predicted cardiothoracic ratios are the true ones, where there are any."""
    known = cases.dropna(subset=["ctr_truth", "ctr_prediction"])
    if known.empty:
        return None
    error = known["ctr_prediction"] - known["ctr_truth"]
    return {
        "n": len(known),
        "truth_mean": float(known["ctr_truth"].mean()),
        "bias": float(error.mean()),
        "mean_absolute_error": float(error.abs().mean()),
        "sd_of_error": float(error.std(ddof=1)),
    }


def _means(cases: pd.DataFrame) -> dict[str, float]:
    return {name: float(cases[name].mean()) for name in KEPT if name in cases}


def seed_mean(group: list[Evaluation]) -> pd.DataFrame:
    """Return one table whose scores are the means over seeds, case by case."""
    first = group[0].cases.set_index(["id", "target"])
    numeric = [name for name in first.columns if first[name].dtype.kind in "fi"]
    stacked = pd.concat([each.cases.set_index(["id", "target"])[numeric] for each in group])
    means = stacked.groupby(level=[0, 1]).mean().loc[first.index]
    whole = first.copy()
    for name in numeric:
        whole[name] = means[name].to_numpy()
    return whole.reset_index().assign(model=group[0].row.title)


def _comparisons(found: list[Evaluation]) -> list[dict[str, Any]]:
    """Compare rows with their baseline, stage 1 and PTQ; one Holm family a question and set."""
    groups = {group[0].key: group for group in _groups(found)}
    families: dict[tuple[str, str], list[tuple[Any, Any, Comparison]]] = {}
    for key, group in groups.items():
        for question, other in _questions(key, group[0].row):
            if other in groups and other != key:
                a = seed_mean(group).assign(model=" ".join(key[:2]))
                b = seed_mean(groups[other]).assign(model=" ".join(other[:2]))
                made = compare(a, b, "dsc", missing="drop")
                families.setdefault((question, key[2]), []).append((key, other, made))
    return [
        _comparison(question, key, other, each)
        for (question, _), members in families.items()
        for (key, other, _), each in zip(
            members, holm_adjusted([made for _, _, made in members]), strict=True
        )
    ]


def _crossings(found: list[Evaluation], chosen: dict[str, dict[str, str]]) -> list[dict[str, Any]]:
    """Compare INT8 with every other row on the images of the hospital that neither was trained on.

    INT8 by its first recipe and by that which validation prefers. One Holm family a hospital.
    """
    groups = {group[0].key: group for group in _groups(found)}
    told = []
    for trained, tested in WAYS:
        members = []
        others = [
            (f"{trained}-{recipe}", "stage1", "test", box)
            for method, recipes in METHODS.items() if method != "int8"
            for recipe in recipes
            for box in ("oracle", "none")
        ]  # fmt: skip
        mine = dict.fromkeys((f"{trained}-{METHODS['int8'][0]}", chosen[trained]["int8"]))
        for key in ((row, "stage2", "test", "oracle") for row in mine):
            for other in (o for o in others if {key, o} <= groups.keys()):
                a, b = (
                    table[table["source"] == tested].assign(model=row[0])
                    for row, table in ((k, seed_mean(groups[k])) for k in (key, other))
                )
                members.append((key, other, compare(a, b, "dsc", missing="drop")))
        adjusted = holm_adjusted([made for _, _, made in members])
        told += [
            _comparison(f"{trained} to {tested}", key, other, each)
            for (key, other, _), each in zip(members, adjusted, strict=True)
        ]
    return told


def _questions(
    key: tuple[str, str, str, str], row: Row
) -> Iterator[tuple[str, tuple[str, str, str, str]]]:
    _, stage, dataset, box = key
    if row.targets != ("lung",):
        return  # no other row has these masks
    source = row.data.removeprefix("only-")
    baseline = BASELINE if row.data == "main" else f"{source}-decoder"
    yield "against decoder fine-tuning", (baseline, "stage1", dataset, box)
    if box == "none":
        # A model that takes no box against one that has the oracle's: said in the verdict.
        yield "against decoder fine-tuning", (baseline, "stage1", dataset, "oracle")
    if stage in ("ptq", "stage2"):
        yield "against stage 1", (row.stage1 or row.name, "stage1", dataset, box)
    if stage == "stage2":
        yield "against PTQ", (row.name, "ptq", dataset, box)


def _comparison(question: str, key: Any, other: Any, made: Comparison) -> dict[str, Any]:
    return {
        "question": question,
        "row": "/".join(key),
        "against": "/".join(other),
        "n": made.n,
        "mean_difference": made.mean_difference,
        "ci": [made.ci_low, made.ci_high],
        "wilcoxon_p": made.wilcoxon.p,
        "wilcoxon_p_holm": made.wilcoxon_p_holm,
        "rank_biserial": made.wilcoxon.rank_biserial,
        "tost_p": made.tost_p,
        "tost_p_holm": made.tost_p_holm,
        "noninferiority_p_holm": made.noninferiority_p_holm,
        "margin": made.margin,
        "equivalent": made.equivalent,
        "noninferior": made.noninferior,
        "verdict": verdict(made),
    }


def _finite(value: Any) -> Any:
    """Return plain values with null for what is not a number."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _without_root(job: dict[str, Any]) -> dict[str, Any]:
    """Return a job with its commands as anyone would type them."""
    commands = job.get("commands")
    if not commands:
        return job
    root = commands[0].partition(" --data ")[2].partition("/data/")[0]
    return {**job, "commands": [command.replace(root, "ROOT") for command in commands]}


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    small = commands.add_parser("pack")
    small.add_argument("root", type=Path)
    small.add_argument("file", type=Path)
    results = commands.add_parser("write")
    results.add_argument("root", type=Path)
    results.add_argument("--out", type=Path, default=Path("results/study"))
    again = commands.add_parser("repeat")
    again.add_argument("root", type=Path)
    again.add_argument("row")
    again.add_argument("--out", type=Path, default=Path("results/study"))
    given = parser.parse_args()
    if given.command == "pack":
        pack(given.root, given.file)
    elif given.command == "repeat":
        repeat(given.root, given.row, given.out)
    else:
        write(given.root, given.out)


if __name__ == "__main__":
    main()
