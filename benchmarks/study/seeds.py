"""What averaging over seeds hides: the paired comparison with stage 1, seed by seed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pandas as pd
from lookup import Page, difference, four, table

from adalora_qat.evaluate.compare import compare

COMPARED = ("full-qat", "int8-all", "d-qat", "w4a8")


class Seed(NamedTuple):
    """A quantized row minus its stage 1, for one seed."""

    seed: int
    mean_difference: float
    ci: tuple[float, float]
    wilcoxon_p: float
    tost_p: float


def by_seed(out: Path, row: str, base: str = "adalora") -> list[Seed]:
    """Compare stage 2 of a row with the stage 1 it started from, on the test split.

    Parameters
    ----------
    out : the folder of results, with ``cases/ROW.csv``.
    """
    mine, theirs = _cases(out, row, "stage2"), _cases(out, base, "stage1")
    found = []
    for seed in sorted(set(mine["seed"]) & set(theirs["seed"])):
        a, b = (part[part["seed"] == seed].assign(model=name)
                for part, name in ((mine, "stage 2"), (theirs, "stage 1")))  # fmt: skip
        made = compare(a, b, "dsc", missing="drop")
        found.append(
            Seed(int(seed), made.mean_difference, (made.ci_low, made.ci_high), made.wilcoxon.p,
                 made.tost_p)
        )  # fmt: skip
    return found


def _cases(out: Path, row: str, stage: str) -> pd.DataFrame:
    whole = pd.read_csv(out / "cases" / f"{row}.csv", dtype={"id": str})
    wanted = (whole["stage"] == stage) & (whole["set"] == "test") & (whole["box"] == "oracle")
    return whole[wanted].drop(columns=["stage", "set"])


def seed_by_seed(page: Page) -> str:
    """Return the table of all rows, the mean of the seeds last."""
    lines = []
    for row in COMPARED:
        lines += [
            (page.rows[row].title, f"seed {each.seed}",
             difference({"mean_difference": each.mean_difference, "ci": each.ci}),
             four(each.wilcoxon_p), probability(each.tost_p))
            for each in by_seed(page.out, row)
        ]  # fmt: skip
        entry = page.find(row, "stage2", box="oracle")
        found = page.comparison(entry, "adalora", "stage1") if entry else None
        if found is not None:
            lines.append(
                (page.rows[row].title, "seeds averaged", difference(found),
                 four(found["wilcoxon_p"]), probability(found["tost_p"]))
            )  # fmt: skip
    head = ("Policy", "Seed", "minus stage 1 [95 % CI]", "Wilcoxon p", "equivalence p at ±0.005")
    return table(head, lines)


def probability(value: float) -> str:
    """Return a p-value with three decimals, small ones as a bound."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
