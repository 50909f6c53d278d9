"""Table 3 on three structures from the runs of chest_grid.py: table3.json and table3.md.

    python benchmarks/study/chest_table.py RESULTS --out results/chest

Every figure is of test images, without a box unless it says so, in the model frame (256 px).
Left lung, right lung and heart are those that JSRT draws; the union of both lungs is of both sets.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from adalora_qat.evaluate.compare import Comparison, compare, holm_adjusted, verdict
from adalora_qat.files import write_json, write_text

BASE = ("adalora", "stage1")
UNION = "lung"


@dataclass(frozen=True)
class Entry:
    """A line of the table: a row of the plan and the stage that is measured."""

    row: str
    stage: str
    title: str

    @property
    def key(self) -> tuple[str, str]:
        """Row and stage."""
        return self.row, self.stage


class Runs:
    """All runs of a folder, those with the rates that the search chose apart.

    Attributes
    ----------
    plan, cases : what was planned, and the images.
    chosen : row → factor on its rates.
    by_row : row → (seed, split) → run.
    """

    def __init__(self, folder: Path) -> None:
        self.plan = _read(folder / "plan.json")
        self.cases = _read(folder / "cases.json")
        self.sessions = [_read(path) for path in sorted(folder.glob("session-*.json"))]
        self.structures: list[str] = self.cases["structures"]
        found = [_read(path) for path in sorted(folder.glob("*-x*.json"))]
        budget = self.plan["budget"]
        first = budget["seeds"][0], budget["splits"][0]
        self.search: dict[str, dict[float, float]] = defaultdict(dict)
        for run in found:
            if (run["seed"], run["split"]) == first:
                self.search[run["row"]][run["factor"]] = run["validation"]
        self.chosen = {
            row: max(sorted(tried), key=lambda factor: tried[factor])
            for row, tried in self.search.items()
        }
        self.by_row: dict[str, dict[tuple[int, int], dict[str, Any]]] = defaultdict(dict)
        for run in found:
            if run["factor"] == self.chosen.get(run["row"]):
                self.by_row[run["row"]][run["seed"], run["split"]] = run

    def entries(self) -> list[Entry]:
        """Return the lines in the order of the paper's table: PTQ beside what trains from it."""
        made = []
        for row, told in self.plan["rows"].items():
            if row not in self.by_row:
                continue
            if told.get("trains") == "stage2":
                made.append(Entry(row, "ptq", told["title"].replace("QAT", "PTQ")))
                made.append(Entry(row, "stage2", told["title"]))
            else:
                made.append(Entry(row, "stage1", told["title"]))
        return made

    def dice(
        self, entry: Entry, block: tuple[int, int], name: str, prompt: str = "automatic"
    ) -> list[float]:
        """Return the test Dice by image of one run, of images whose truth is known."""
        values = self.by_row[entry.row][block]["scores"][entry.stage]["test"][prompt][name]
        return [value for value in values if value is not None]

    def mean(self, entry: Entry, block: tuple[int, int], prompt: str = "automatic") -> float:
        """Return the mean over structures of a run's mean test Dice."""
        return fmean(fmean(self.dice(entry, block, name, prompt)) for name in self.structures)

    def table(self, entry: Entry, blocks: Iterable[tuple[int, int]]) -> pd.DataFrame:
        """Return one row an image and structure: its mean Dice over runs, for paired tests."""
        seen: dict[tuple[int, str], list[float]] = defaultdict(list)
        for seed, split in blocks:
            run = self.by_row[entry.row][seed, split]
            scores = run["scores"][entry.stage]["test"]["automatic"]
            rows = [i for i, side in enumerate(self.cases["splits"][self._at(split)])
                    if side == "test"]  # fmt: skip
            for name in self.structures:
                for i, value in zip(rows, scores[name], strict=True):
                    if value is not None:
                        seen[i, name].append(value)
        cases = self.cases
        return pd.DataFrame(
            {
                "id": cases["ids"][i],
                "source": cases["sources"][i],
                "patient": cases["patients"][i],
                "target": name,
                "model": entry.title,
                "box": "automatic",
                "height": cases["extent"][i][0],
                "width": cases["extent"][i][1],
                "truth_area_px": cases["areas"][i][self.structures.index(name)],
                "dsc": fmean(values),
            }
            for (i, name), values in seen.items()
        )

    def _at(self, split: int) -> int:
        return int(self.plan["budget"]["splits"].index(split))


def spread(values: dict[tuple[int, int], float]) -> dict[str, float | None]:
    """Return the mean of runs, and how far seeds and splits move it.

    Parameters
    ----------
    values : (seed, split) → figure.

    Returns
    -------
    mean; ``seeds``, the deviation over seeds within a split (root mean square over splits);
    ``splits``, that over splits of the means over seeds. None where there are too few.
    """
    by_split: dict[int, list[float]] = defaultdict(list)
    for (_, split), value in values.items():
        by_split[split].append(value)
    within = [stdev(found) for found in by_split.values() if len(found) > 1]
    means = [fmean(found) for found in by_split.values()]
    return {
        "mean": fmean(values.values()),
        "seeds": math.sqrt(fmean(s * s for s in within)) if within else None,
        "splits": stdev(means) if len(means) > 1 else None,
    }


def line(runs: Runs, entry: Entry) -> dict[str, Any]:
    """Return all figures of one line."""
    blocks = sorted(runs.by_row[entry.row])
    structures = [*runs.structures, UNION]
    dice = {
        name: spread({b: fmean(runs.dice(entry, b, name)) for b in blocks}) for name in structures
    }
    iou = {
        name: fmean(fmean(d / (2 - d) for d in runs.dice(entry, b, name)) for b in blocks)
        for name in structures
    }
    boxed = {b: runs.mean(entry, b, "box") for b in blocks}
    told = [runs.by_row[entry.row][b]["stages"].get(entry.stage, {}) for b in blocks]
    return {
        **asdict(entry),
        "runs": len(blocks),
        "blocks": blocks,
        "factor": runs.chosen[entry.row],
        "search": runs.search[entry.row],
        "mean": spread({b: runs.mean(entry, b) for b in blocks}),
        "dice": dice,
        "iou": iou,
        "with_box": spread(boxed),
        "ratio_error": _ratio(runs, entry, blocks),
        "trained_parameters": _first(told, "trained_parameters"),
        "steps": _first(told, "steps"),
        "steps_per_s": _average(told, "steps_per_s"),
    }


def comparisons(runs: Runs, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Compare every line with stage 1's hybrid, and each QAT with its PTQ: one family."""
    known = {entry.key: entry for entry in entries}
    pairs = [(entry, known[BASE]) for entry in entries if entry.key != BASE and BASE in known]
    pairs += [(e, known[e.row, "ptq"]) for e in entries if e.stage == "stage2"]
    made: list[Comparison] = []
    for a, b in pairs:
        both = sorted(set(runs.by_row[a.row]) & set(runs.by_row[b.row]))
        made.append(compare(runs.table(a, both), runs.table(b, both), "dsc", missing="drop"))
    return [
        {
            "row": a.key,
            "against": b.key,
            "mean_difference": c.mean_difference,
            "ci": [c.ci_low, c.ci_high],
            "images": c.n_clusters,
            "masks": c.n,
            "wilcoxon_p_holm": c.wilcoxon_p_holm,
            "equivalence_p_holm": c.tost_p_holm,
            "verdict": verdict(c),
        }
        for (a, b), c in zip(pairs, holm_adjusted(made), strict=True)
    ]


def ranks(runs: Runs) -> dict[str, dict[str, float]]:
    """Return layer → its final rank in AdaLoRA's first stage: mean, least and most over runs."""
    found: dict[str, list[int]] = defaultdict(list)
    for run in runs.by_row.get(BASE[0], {}).values():
        for layer, rank in run["stages"]["stage1"]["ranks"].items():
            found[layer].append(rank)
    return {k: {"mean": fmean(v), "min": min(v), "max": max(v)} for k, v in found.items()}


def markdown(values: dict[str, Any], structures: Sequence[str]) -> str:
    """Return the tables as Markdown."""
    named = [name.replace("_", " ") for name in structures]
    head = ["", *named, "mean", "± seeds", "± splits", "union of lungs", "with box", "CTR error",
            "runs"]  # fmt: skip
    rows = [
        [
            each["title"],
            *(_four(each["dice"][name]["mean"]) for name in structures),
            _four(each["mean"]["mean"]), _four(each["mean"]["seeds"]),
            _four(each["mean"]["splits"]), _four(each["dice"][UNION]["mean"]),
            _four(each["with_box"]["mean"]), _ratio_words(each["ratio_error"]), str(each["runs"]),
        ]
        for each in values["rows"]
    ]  # fmt: skip
    titles = {(each["row"], each["stage"]): each["title"] for each in values["rows"]}
    tests = [
        [
            titles[tuple(c["row"])], titles[tuple(c["against"])],
            f"{c['mean_difference']:+.4f} [{c['ci'][0]:+.4f}, {c['ci'][1]:+.4f}]",
            _p(c["wilcoxon_p_holm"]), _p(c["equivalence_p_holm"]),
        ]
        for c in values["comparisons"]
    ]  # fmt: skip
    budget = values["budget"]
    return "\n".join(
        [
            "# Table 3 on left lung, right lung and heart", "",
            f"Dice on test images at 256 px without a box. Budget of every row: "
            f"{budget['stage1']['steps']} steps of {budget['batch']} radiographs in stage 1, "
            f"{budget['stage2']['steps']} more in stage 2, learning rates × "
            f"{', '.join(map(str, budget['search']))} tried with the first seed on the first "
            f"split and chosen by validation; {len(budget['seeds'])} seeds × "
            f"{len(budget['splits'])} splits. ± is a standard deviation: over seeds within a "
            "split, over splits of the means over seeds. CTR error: cardiothoracic ratio from "
            "predicted minus from true masks, mean (standard deviation).", "",
            *_grid(head, rows), "",
            "## Paired comparisons", "",
            "By image: each one's mean Dice over runs and structures; 95 % bootstrap interval, "
            "Wilcoxon's signed ranks, and two one-sided tests of equivalence within ±0.005, "
            "adjusted by Holm over all lines.", "",
            *_grid(["", "against", "difference [95 % CI]", "Wilcoxon p", "equivalence p"], tests),
            "", "## Where the ranks went", "",
            "Mean final rank by stage of the encoder and kind of layer, over AdaLoRA's runs.", "",
            *_rank_lines(values["ranks"]), "",
        ]
    )  # fmt: skip


def _rank_lines(found: dict[str, dict[str, float]]) -> list[str]:
    kinds = sorted({layer.rpartition(".")[2] for layer in found})
    blocks: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for layer, rank in found.items():
        stage = ".".join(layer.split(".")[:2])
        blocks[stage][layer.rpartition(".")[2]].append(rank["mean"])
    rows = [
        [stage, *(f"{fmean(kept[kind]):.1f}" if kept[kind] else "" for kind in kinds)]
        for stage, kept in sorted(blocks.items())
    ]
    return _grid(["", *kinds], rows)


def _ratio(runs: Runs, entry: Entry, blocks: Sequence[tuple[int, int]]) -> dict[str, float] | None:
    errors = []
    for block in blocks:
        scores = runs.by_row[entry.row][block]["scores"][entry.stage]["test"]["automatic"]
        pairs = zip(scores["ctr"], scores["ctr_truth"], strict=True)
        errors += [a - b for a, b in pairs if a is not None and b is not None]
    if len(errors) < 2:
        return None
    absolute = fmean(abs(e) for e in errors)
    return {"mean": fmean(errors), "sd": stdev(errors), "mean_absolute": absolute}


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruled = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, ruled, *rows)]


def _four(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _p(value: float) -> str:
    return "" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _ratio_words(error: dict[str, float] | None) -> str:
    return "" if error is None else f"{error['mean']:+.4f} ({error['sd']:.4f})"


def _first(told: Sequence[dict[str, Any]], key: str) -> int | None:
    return next((each[key] for each in told if key in each), None)


def _average(told: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [each[key] for each in told if key in each]
    return fmean(values) if values else None


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/chest"))
    args = parser.parse_args()
    runs = Runs(args.results)
    entries = runs.entries()
    values = {
        "command": "python benchmarks/study/chest_grid.py DATA WORK; then chest_table.py",
        "sessions": runs.sessions,
        "budget": runs.plan["budget"],
        "rows": [line(runs, entry) for entry in entries],
        "comparisons": comparisons(runs, entries),
        "ranks": ranks(runs),
    }
    write_json(args.out / "table3.json", values)
    write_text(args.out / "table3.md", markdown(values, runs.structures))


if __name__ == "__main__":
    main()
