"""Does a model know how good its masks are? Its predicted IoU against the true one.

Read from per-case tables: ``score`` is what the model said, ``iou`` what it was.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from adalora_qat.errors import DataError

BINS = 10
_NO_SCORE = "no case has both a score and an IoU; evaluate a model that scores its masks"


def reliability(table: pd.DataFrame, bins: int = BINS) -> pd.DataFrame:
    """Group cases by predicted IoU, as many in each group, and compare the means.

    Groups of equal size, not of equal width: nearly all scores lie in the last tenth.

    Returns
    -------
    Columns ``predicted`` and ``true`` (means), ``low`` and ``high`` (quartiles of the true
    IoU), ``n``; by rising prediction.

    Raises
    ------
    DataError
        If the table has no case with a score.
    """
    known = table[["score", "iou"]].dropna().sort_values("score", kind="stable")
    if known.empty:
        raise DataError(_NO_SCORE)
    groups = np.array_split(np.arange(len(known)), min(bins, len(known)))
    rows = []
    for group in groups:
        part = known.iloc[group]
        low, high = part["iou"].quantile([0.25, 0.75])
        row = {"predicted": part["score"].mean(), "true": part["iou"].mean()}
        rows.append({**row, "low": low, "high": high, "n": len(part)})
    return pd.DataFrame(rows)


def expected_calibration_error(table: pd.DataFrame, bins: int = BINS) -> float:
    """Return the mean distance of predicted and true IoU over the groups, by their size.

    Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian
    binning" (2015), with a share of overlap in the place of a probability.
    """
    grouped = reliability(table, bins)
    gaps = (grouped["predicted"] - grouped["true"]).abs()
    return float((gaps * grouped["n"]).sum() / grouped["n"].sum())


def calibration_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return, for each model, box and alteration, how well it knows its masks.

    Returns
    -------
    Columns model, box, altered, n, ``predicted`` and ``true`` (mean IoU), ``ece``,
    ``mean_error`` (mean of \\|predicted − true\\|), ``rank_correlation`` (Spearman).
    """
    rows = []
    for key, part in table.groupby(["model", "box", "altered"], sort=False):
        known = part[["score", "iou"]].dropna()
        if known.empty:
            continue
        rows.append(
            {
                **dict(zip(("model", "box", "altered"), key, strict=True)),
                "n": len(known),
                "predicted": known["score"].mean(),
                "true": known["iou"].mean(),
                "ece": expected_calibration_error(known),
                "mean_error": (known["score"] - known["iou"]).abs().mean(),
                "rank_correlation": known["score"].rank().corr(known["iou"].rank()),
            }
        )
    if not rows:
        raise DataError(
            "no case of the tables has a score and an IoU; evaluate a model that scores"
        )
    return pd.DataFrame(rows)
