"""What test cases whose truth is wrong to the eye do to the means of the study.

    python benchmarks/doubtful_truth.py results/study

Reads ``doubtful_truth.csv`` (id, reason: found among the worst cases, by looking at them) and
the per-case tables in ``cases/``, and writes ``doubtful_truth.json``: each row's mean Dice on the
test split, seeds averaged, with all cases and without these. The figure with all cases is the
result; the other says what limits it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from adalora_qat.files import write_json

# A row's furthest stage speaks for it.
STAGES = ("stage2", "ptq", "stage1")


def main() -> None:
    """Write the means."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("study", type=Path)
    folder: Path = parser.parse_args().study
    doubtful = pd.read_csv(folder / "doubtful_truth.csv")
    rows = [
        row
        for file in sorted((folder / "cases").glob("*.csv"))
        if (row := means(file, doubtful)) is not None
    ]
    write_json(
        folder / "doubtful_truth.json",
        {
            "command": f"python benchmarks/doubtful_truth.py {folder}",
            "left_out": doubtful.to_dict("records"),
            "rows": rows,
        },
    )


def means(file: Path, doubtful: pd.DataFrame) -> dict[str, Any] | None:
    """Return a row's means with and without the doubtful cases; None if it lacks some of them."""
    table = pd.read_csv(file)
    table = table[(table["set"] == "test") & table["box"].isin(["oracle", "none"])]
    stage = next((each for each in STAGES if (table["stage"] == each).any()), None)
    cases = table[table["stage"] == stage].groupby("id")["dsc"].mean()
    named = cases.index.isin(doubtful["id"])
    if named.sum() < len(doubtful):
        return None
    return {
        "name": file.stem,
        "stage": stage,
        "dice_all": float(cases.mean()),
        "n_all": len(cases),
        "dice_without": float(cases[~named].mean()),
        "n_without": int((~named).sum()),
        "dice_of_the_doubtful": cases[named].to_dict(),
    }


if __name__ == "__main__":
    main()
