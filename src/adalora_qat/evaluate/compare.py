"""Paired comparisons of models, from their per-case tables.

A comparison pairs two tables case by case and reports, side by side, what each method can
say. A Wilcoxon p above α does not show equality; equivalence is shown by two one-sided
tests against a stated margin, or not at all. Nothing is dropped without being counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from adalora_qat.errors import DataError
from adalora_qat.evaluate.comparison import Comparison, verdict
from adalora_qat.evaluate.metrics import METRICS
from adalora_qat.evaluate.paired_tests import (
    MeanEstimate,
    SignedRank,
    cluster_bootstrap,
    clustered_mean,
    holm,
    signed_rank,
    skewed_level,
)
from adalora_qat.evaluate.pairing import (
    Dropped,
    check_one,
    clusters_of,
    group_names,
    pair,
    select,
    unit_means,
)
from adalora_qat.evaluate.summaries import POOLED, Summary, summarize, summary_table

__all__ = [
    "DEFAULT_MARGIN",
    "POOLED",
    "Comparison",
    "Dropped",
    "Summary",
    "compare",
    "compare_groups",
    "holm_adjusted",
    "summarize",
    "summary_table",
    "verdict",
]

DEFAULT_MARGIN = 0.005
"""Half a Dice point; for scores on 0–1 only. A margin for distances must be stated."""


def compare(
    table_a: pd.DataFrame,
    table_b: pd.DataFrame,
    metric: str = "dsc",
    margin: float | None = None,
    *,
    by: str = POOLED,
    group: str = POOLED,
    targets: Sequence[str] | None = None,
    missing: Literal["error", "drop"] = "error",
    confidence: float = 0.95,
    alpha: float = 0.05,
    resamples: int = 9999,
    seed: int = 0,
) -> Comparison:
    """Compare model A with the baseline B, case by case.

    Parameters
    ----------
    table_a, table_b : per-case tables of one model and one box mode each.
    metric : a name in ``METRICS``.
    margin : of equivalence and non-inferiority, in the metric's unit; None takes 0.005 for
        scores on 0–1.
    by, group : compare only the cases whose column ``by`` ("source", "label") is ``group``.
    targets : compare only these; None pools all, an image's targets in one cluster.
    missing : what to do with a case that only one table lists: refuse, or drop and count.
    confidence, resamples, seed : of the bootstrap.
    alpha : level of every test.

    Raises
    ------
    DataError
        If a table holds several models or boxes, doubles a case, or the two were not made
        from the same truth at the same size; if no case is left; if a margin is needed.
    """
    margin = _margin(metric, margin)
    check_one(table_a, "A")
    check_one(table_b, "B")
    a, b = (select(table, by, group, targets) for table in (table_a, table_b))
    pairs, dropped = pair(a, b, metric, missing)
    if not len(pairs) and not dropped:
        raise DataError(f"no case to compare: {by}={group!r}, targets={targets}")
    d = (pairs["a"] - pairs["b"]).to_numpy(dtype=np.float64)
    clusters, clustered_by = clusters_of(pairs)
    n_clusters = len(set(clusters.tolist()))
    estimate = clustered_mean(d, clusters)
    better = METRICS[metric].higher_is_better
    units = unit_means(d, clusters)
    ranks = signed_rank(units)
    low, high = cluster_bootstrap(d, clusters, confidence, resamples, seed)
    tost_p, noninferiority_p = _equivalence(estimate, margin, better)
    name_a, name_b = _titles(table_a, table_b)
    tost_low, tost_high = estimate.interval(1 - 2 * alpha)
    return Comparison(
        model_a=name_a,
        model_b=name_b,
        metric=metric,
        higher_is_better=better,
        by=by,
        group=group,
        targets=tuple(sorted(set(pairs["target"]) | {case.target for case in dropped})),
        n=len(d),
        n_clusters=n_clusters,
        clustered_by=clustered_by,
        dropped=dropped,
        a=summarize(pairs["a"]),
        b=summarize(pairs["b"]),
        mean_difference=estimate.mean,
        sd_difference=float(d.std(ddof=1)) if len(d) > 1 else math.nan,
        median_difference=float(np.median(d)) if len(d) else math.nan,
        confidence=confidence,
        ci_low=low,
        ci_high=high,
        wilcoxon=ranks,
        alpha=alpha,
        margin=margin,
        tost_low=tost_low,
        tost_high=tost_high,
        tost_p=tost_p,
        noninferiority_p=noninferiority_p,
        wilcoxon_p_holm=ranks.p,
        tost_p_holm=tost_p,
        noninferiority_p_holm=noninferiority_p,
        wilcoxon_family=1,
        tost_family=1,
        cautions=_cautions(table_a, table_b),
        notes=_notes(pairs, estimate, n_clusters, ranks, alpha, skewed_level(units, alpha)),
    )


def compare_groups(
    table_a: pd.DataFrame,
    table_b: pd.DataFrame,
    metrics: Sequence[str] = ("dsc",),
    margins: Mapping[str, float] | None = None,
    by: Sequence[str] = ("source", "label"),
    **options: Any,
) -> tuple[Comparison, ...]:
    """Compare on several metrics, pooled and by group, Holm-adjusted over all of them.

    Parameters
    ----------
    margins : metric → margin; as for ``compare`` where a metric is not in it.
    by : group columns besides the pooled comparison; a case without a class is in a class
        of its own, and a column of one group adds nothing.
    options : passed on to ``compare``.
    """
    groups = [(POOLED, POOLED)]
    for column in by:
        names = {*group_names(table_a, column), *group_names(table_b, column)}
        # The only group of a column is the pooled comparison again, not another test.
        groups += [(column, name) for name in sorted(names) if len(names) > 1]
    found = [
        compare(
            table_a, table_b, metric, (margins or {}).get(metric), by=column, group=name, **options
        )
        for metric in metrics
        for column, name in groups
    ]
    return holm_adjusted(found)


def holm_adjusted(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """Return the comparisons as one family: each kind of test adjusted by Holm over them.

    A comparison whose test says nothing (NaN: too few cases, no variation) is no member.
    """
    wilcoxon = [c.wilcoxon.p for c in comparisons]
    tost = [c.tost_p for c in comparisons]
    one_sided = [c.noninferiority_p for c in comparisons]
    adjusted = zip(holm(wilcoxon), holm(tost), holm(one_sided), strict=True)
    return tuple(
        replace(
            c,
            wilcoxon_p_holm=w,
            tost_p_holm=t,
            noninferiority_p_holm=n,
            wilcoxon_family=sum(map(math.isfinite, wilcoxon)),
            tost_family=sum(map(math.isfinite, tost)),
        )
        for c, (w, t, n) in zip(comparisons, adjusted, strict=True)
    )


def _margin(metric: str, margin: float | None) -> float:
    if metric not in METRICS:
        raise DataError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
    if margin is None:
        if METRICS[metric].unit:
            raise DataError(
                f"{metric} is a distance: state the margin in {METRICS[metric].unit} up to which "
                "a difference does not matter"
            )
        return DEFAULT_MARGIN
    if not math.isfinite(margin) or margin <= 0:
        raise DataError(f"margin {margin} must be positive")
    return margin


def _equivalence(estimate: MeanEstimate, margin: float, better: bool) -> tuple[float, float]:
    above, below = estimate.cautious_p_above(-margin), estimate.cautious_p_below(margin)
    tost = math.nan if math.isnan(above) else max(above, below)
    return tost, above if better else below


def _only(table: pd.DataFrame, column: str) -> str:
    return str(table[column].iloc[0]) if column in table and len(table) else ""


def _titles(table_a: pd.DataFrame, table_b: pd.DataFrame) -> tuple[str, str]:
    """Return what to call the two: the model, and how it was asked where that tells them apart."""
    names = _only(table_a, "model"), _only(table_b, "model")
    for column in ("box", "altered"):
        asked = _only(table_a, column), _only(table_b, column)
        if names[0] == names[1] and asked[0] != asked[1]:
            names = f"{names[0]} ({asked[0]})", f"{names[1]} ({asked[1]})"
    return names


def _cautions(table_a: pd.DataFrame, table_b: pd.DataFrame) -> tuple[str, ...]:
    return tuple(
        f"the models were given different {what} (A {one}, B {other})"
        for column, what in (("box", "prompts"), ("altered", "images"))
        if (one := _only(table_a, column)) != (other := _only(table_b, column))
    )


def _notes(
    pairs: pd.DataFrame,
    estimate: MeanEstimate,
    n_clusters: int,
    ranks: SignedRank,
    alpha: float,
    level: float,
) -> tuple[str, ...]:
    notes = []
    if not len(pairs):
        notes.append("no case could be compared")
    elif n_clusters < 2:
        notes.append("one independent unit only: described, not tested")
    elif ranks.n == ranks.n_zero:
        notes.append("no difference to rank or to estimate an error from")
    elif estimate.standard_error == 0:
        notes.append("every difference is the same, so that no error of the mean can be estimated")
    elif ranks.n_zero:
        notes.append(f"{ranks.n_zero} of {ranks.n} differences are zero and carry no rank")
    if len(pairs) > n_clusters > 1:
        notes.append("Wilcoxon's test ranks the mean difference of each patient or image")
    if level > alpha + 0.01 and estimate.standard_error > 0:
        notes.append(
            f"the differences are skewed, so that plain t-tests at {100 * alpha:g} % would err in "
            f"about {100 * level:.0f} %: the tests against the margin are corrected for it"
        )
    empties = [int((pairs[c] != "no").sum()) for c in ("empty", "empty_b") if c in pairs]
    if any(empties):
        told = " and ".join(map(str, empties))
        notes.append(f"values set by the empty-mask policy in A and B: {told}")
    return tuple(notes)
