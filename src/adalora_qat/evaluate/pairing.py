"""Two per-case tables side by side: which cases pair, which do not, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from adalora_qat.errors import DataError
from adalora_qat.evaluate.summaries import NO_CLASS, POOLED


@dataclass(frozen=True)
class Dropped:
    """A case that could not be compared, and why."""

    id: str
    target: str
    reason: str


def group_names(table: pd.DataFrame, column: str) -> list[str]:
    """Return the group of each case; one without a value is in a group of its own."""
    if column not in table:
        raise DataError(f"the per-case table has no column {column!r}")
    return [NO_CLASS if pd.isna(value) else str(value) for value in table[column]]


def select(table: pd.DataFrame, by: str, group: str, targets: Sequence[str] | None) -> pd.DataFrame:
    """Return the cases of one group and of these targets; None takes every target."""
    if by != POOLED:
        table = table[[name == group for name in group_names(table, by)]]
    return table if targets is None else table[table["target"].isin(list(targets))]


def check_one(table: pd.DataFrame, which: str) -> None:
    """Refuse a table that holds more than one model's answer to a case."""
    if not len(table):
        raise DataError(f"table {which} has no case")
    for column in ("model", "box", "altered"):
        if column in table and len(values := table[column].drop_duplicates()) > 1:
            raise DataError(
                f"table {which} holds several values of {column} "
                f"({', '.join(map(str, values))}); compare one at a time"
            )
    if (doubled := table.duplicated(["id", "target"])).any():
        first = table.loc[doubled, ["id", "target"]].iloc[0]
        raise DataError(f"table {which} lists {first['id']} / {first['target']} twice")


def pair(
    a: pd.DataFrame, b: pd.DataFrame, metric: str, missing: str
) -> tuple[pd.DataFrame, tuple[Dropped, ...]]:
    """Return the finite pairs (columns of A, and a, b) and what was left out.

    Parameters
    ----------
    a, b : per-case tables of one model each.
    metric : the column that is compared.
    missing : ``error`` refuses cases that one table lacks; anything else drops them.
    """
    for which, table in (("A", a), ("B", b)):
        if metric not in table:
            raise DataError(f"table {which} has no column {metric!r}")
    key = ["id", "target"]
    joined = a.merge(b, on=key, how="outer", suffixes=("", "_b"), indicator="side")
    alone = joined[joined["side"] != "both"]
    if len(alone) and missing == "error":
        first = alone.iloc[0]
        raise DataError(
            f"{len(alone)} cases are in one table only, the first is {first['id']} / "
            f"{first['target']}; evaluate both models on the same cases, or ask to drop them"
        )
    both = joined[joined["side"] == "both"].copy()
    _check_same_truth(both)
    both["a"] = both[metric].astype("float64")
    both["b"] = both[f"{metric}_b"].astype("float64")
    finite = np.isfinite(both["a"].to_numpy()) & np.isfinite(both["b"].to_numpy())
    reason = {"left_only": "not in B", "right_only": "not in A"}
    dropped = [
        Dropped(str(i), str(t), reason[str(side)])
        for i, t, side in zip(alone["id"], alone["target"], alone["side"], strict=True)
    ]
    dropped += [_why(row, metric) for row in both[~finite].to_dict("records")]
    return both[finite], tuple(dropped)


def _why(row: Mapping[Any, Any], metric: str) -> Dropped:
    for name, value, status in (("A", "a", "status"), ("B", "b", "status_b")):
        if not math.isfinite(row[value]):
            stated = row.get(status)
            known = isinstance(stated, str) and stated != "ok"
            reason = f"{stated} ({name})" if known else f"{metric} of {name} is not a number"
            break
    return Dropped(str(row["id"]), str(row["target"]), reason)


def _check_same_truth(both: pd.DataFrame) -> None:
    for column in ("height", "width", "truth_area_px"):
        if column in both and f"{column}_b" in both:
            unequal = (both[column] != both[f"{column}_b"]).fillna(False).to_numpy(dtype=bool)
            if unequal.any():
                row = both[unequal].iloc[0]
                raise DataError(
                    f"{row['id']} / {row['target']} was scored with {column}={row[column]} in A "
                    f"and {row[f'{column}_b']} in B; evaluate both on the same truth at the "
                    "original size"
                )


def clusters_of(pairs: pd.DataFrame) -> tuple[NDArray[np.int64], str]:
    """Return the cluster of each case: its patient where known, else its image."""
    unknown = pd.Series([None] * len(pairs), index=pairs.index, dtype=object)
    patients = pairs.get("patient", unknown)
    sources = pairs.get("source", unknown)
    names = [
        ("image", "", case_id) if pd.isna(patient) else ("patient", str(source), str(patient))
        for case_id, patient, source in zip(pairs["id"], patients, sources, strict=True)
    ]
    codes = {name: number for number, name in enumerate(dict.fromkeys(names))}
    kinds = {kind for kind, _, _ in names}
    told = "patient where known, else image" if len(kinds) > 1 else (*kinds, "image")[0]
    return np.array([codes[name] for name in names], dtype=np.int64), told


def unit_means(d: NDArray[np.float64], clusters: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean difference of each cluster, (G,).

    Parameters
    ----------
    d : (N,), one difference a case.
    clusters : (N,), the cluster of each case, 0 to G − 1.
    """
    if not d.size:
        return d
    sizes = np.bincount(clusters)
    # The mean of one case is that case, to the last bit.
    return d if sizes.max() == 1 else np.bincount(clusters, weights=d) / sizes
