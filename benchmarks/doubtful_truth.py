"""What test cases whose truth is wrong to the eye do to the means of a study.

    python benchmarks/doubtful_truth.py results/jsrt_shenzhen

Reads ``doubtful_truth.csv`` (id, reason: found among the worst cases, by looking at them) and
the per-case tables, and writes ``doubtful_truth.json``: each model's mean Dice with all cases
and without these. The figure with all cases is the result; the other says what limits it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from adalora_qat.files import write_json


def main() -> None:
    """Write the means."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("study", type=Path)
    folder: Path = parser.parse_args().study
    doubtful = pd.read_csv(folder / "doubtful_truth.csv")
    rows: list[dict[str, Any]] = []
    for file in sorted(folder.glob("cases_*.csv")):
        cases = pd.read_csv(file)
        kept = cases[~cases["id"].isin(doubtful["id"])]
        left_out = cases[cases["id"].isin(doubtful["id"])]
        rows.append(
            {
                "name": file.stem.removeprefix("cases_"),
                "dice_all": float(cases["dsc"].mean()),
                "n_all": len(cases),
                "dice_without": float(kept["dsc"].mean()),
                "n_without": len(kept),
                "by_source_without": kept.groupby("source")["dsc"].mean().to_dict(),
                "dice_of_the_doubtful": dict(zip(left_out["id"], left_out["dsc"], strict=True)),
            }
        )
    write_json(
        folder / "doubtful_truth.json",
        {
            "command": f"python benchmarks/doubtful_truth.py {folder}",
            "left_out": doubtful.to_dict("records"),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
