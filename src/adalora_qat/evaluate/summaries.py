"""Summaries of the per-case table: mean, spread, quartiles, and what was left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from adalora_qat.errors import DataError

POOLED = "all"
NO_CLASS = "(no class given)"


@dataclass(frozen=True)
class Summary:
    """Values of one metric over cases.

    Attributes
    ----------
    n, dropped : finite values, and those that are not (left out of everything else).
    mean, sd : sample deviation (n − 1); NaN for one case.
    median, q1, q3 : quartiles, linear interpolation.
    minimum, maximum : of the finite values.
    """

    n: int
    dropped: int
    mean: float
    sd: float
    median: float
    q1: float
    q3: float
    minimum: float
    maximum: float


def summarize(values: ArrayLike) -> Summary:
    """Summarise (n,) values; everything but the counts is NaN if none is finite."""
    given = np.asarray(values, dtype=np.float64)
    kept = given[np.isfinite(given)]
    if not kept.size:
        nan = math.nan
        return Summary(0, given.size, nan, nan, nan, nan, nan, nan, nan)
    q1, median, q3 = (float(q) for q in np.quantile(kept, [0.25, 0.5, 0.75]))
    sd = float(kept.std(ddof=1)) if kept.size > 1 else math.nan
    low, high = float(kept.min()), float(kept.max())
    return Summary(
        kept.size, given.size - kept.size, float(kept.mean()), sd, median, q1, q3, low, high
    )


def summary_table(
    table: pd.DataFrame, metrics: Sequence[str], by: Sequence[str] = ("source", "label")
) -> pd.DataFrame:
    """Summarise metrics for each model, box, alteration and target: pooled and by group.

    Parameters
    ----------
    table : a per-case table, or several concatenated.
    metrics : columns to summarise.
    by : group columns besides the pooled rows; a case without a class is in a class of
        its own, never left out.

    Returns
    -------
    Columns model, box, altered, target, by ("all", "source", …), group, metric, empty (cases
    in which a mask is empty, whose values are set by policy), then those of ``Summary``.

    Raises
    ------
    DataError
        If the table has no such column.
    """
    lacking = [name for name in (*metrics, *by) if name not in table]
    if lacking:
        raise DataError(f"the per-case table has no column {', '.join(lacking)}")
    rows: list[dict[str, Any]] = []
    head = ["model", "box", "altered", "target"]
    for key, part in table.groupby(head, sort=False, dropna=False):
        for column, group, cases in _groups(part, by):
            for metric in metrics:
                row = dict(zip(head, key, strict=True))
                row |= {"by": column, "group": group, "metric": metric}
                row["empty"] = int((cases["status"].eq("ok") & cases["empty"].ne("no")).sum())
                rows.append(row | vars(summarize(cases[metric])))
    return pd.DataFrame(rows)


def _groups(table: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[str, str, pd.DataFrame]]:
    yield POOLED, POOLED, table
    for column in by:
        names = table[column].astype(object).where(table[column].notna(), NO_CLASS)
        for name in sorted(set(map(str, names))):
            yield column, name, table[names.astype(str) == name]
