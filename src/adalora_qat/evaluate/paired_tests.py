"""Tests and intervals for paired differences whose cases may come in clusters (patients).

Legend: d (n,) differences of n cases, finite; clusters (n,) whole numbers 0…G−1, the patient
of each case. The mean is over cases; what varies from study to study are patients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Reals = NDArray[np.float64]

_SAME = 1e-12
"""Differences that vary by less are equal: what is left is the rounding of subtractions."""
_CHUNK = 2_000_000
"""Draws held at once while resampling: 16 MB, whatever the number of cases."""


@dataclass(frozen=True)
class SignedRank:
    """Wilcoxon's signed-rank test and its effect size.

    Attributes
    ----------
    n, n_zero : differences given, and how many of them are zero (left out, as by Wilcoxon).
    statistic : the smaller of the two rank sums; NaN without ranks.
    p : two-sided; 1 if every difference is zero, NaN for fewer than two differences.
    rank_biserial : (W₊ − W₋)/(W₊ + W₋), in [−1, 1]; 0 if every difference is zero.
    """

    n: int
    n_zero: int
    statistic: float
    p: float
    rank_biserial: float


def signed_rank(differences: ArrayLike) -> SignedRank:
    """Return Wilcoxon's signed-rank test (Wilcoxon 1945) of independent differences.

    SciPy decides between the exact and the normal distribution. The effect size is the
    matched-pairs rank-biserial correlation (Kerby 2014, Compr Psychol 3:1).
    """
    values = np.asarray(differences, dtype=np.float64)
    nonzero = values[values != 0]
    n, n_zero = values.size, int(values.size - nonzero.size)
    if n < 2 or not nonzero.size:
        return SignedRank(n, n_zero, math.nan, 1.0 if n > 1 else math.nan, 0.0 if n else math.nan)
    ranks = stats.rankdata(np.abs(nonzero))
    plus, minus = float(ranks[nonzero > 0].sum()), float(ranks[nonzero < 0].sum())
    found = stats.wilcoxon(nonzero)
    return SignedRank(
        n, n_zero, float(found.statistic), float(found.pvalue), (plus - minus) / (plus + minus)
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for the family (Holm 1979); NaN stays NaN and is no member."""
    p = np.asarray(p_values, dtype=np.float64)
    members = np.flatnonzero(np.isfinite(p))
    order = members[np.argsort(p[members], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted = p.copy()
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1) if order.size else steps
    return [float(value) for value in adjusted]


@dataclass(frozen=True)
class MeanEstimate:
    """A mean with its standard error and the degrees of freedom of its t distribution.

    ``skewness`` is that of the units (patients) whose variation the error comes from.
    """

    mean: float
    standard_error: float
    degrees: int
    skewness: float = 0.0

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return the two-sided t interval; NaN without degrees of freedom."""
        if self.degrees < 1:
            return math.nan, math.nan
        half = float(stats.t.ppf(0.5 + confidence / 2, self.degrees)) * self.standard_error
        return self.mean - half, self.mean + half

    def p_above(self, bound: float) -> float:
        """Return the one-sided p-value for "the mean is greater than ``bound``".

        NaN without degrees of freedom, or without any variation to test against.
        """
        if self.degrees < 1 or self.standard_error == 0:
            return math.nan
        return float(stats.t.sf((self.mean - bound) / self.standard_error, self.degrees))

    def p_below(self, bound: float) -> float:
        """Return the one-sided p-value for "the mean is less than ``bound``"."""
        return self._mirrored().p_above(-bound)

    def cautious_p_above(self, bound: float) -> float:
        """Return the larger of ``p_above`` and its value corrected for skewness.

        t̃ = t + γt²/(3√G) + γ²t³/(27G) + γ/(6√G) with the skewness γ of G units takes the first
        order of the skewness out of t (Hall 1992, J R Stat Soc B 54:221). Where differences
        are seldom large, plain tests at 5 % claim too much in 6 to 12 of 100 studies.
        """
        plain = self.p_above(bound)
        if math.isnan(plain):
            return plain
        t = (self.mean - bound) / self.standard_error
        g = self.skewness / math.sqrt(self.degrees + 1)
        corrected = t + g * t**2 / 3 + g**2 * t**3 / 27 + g / 6
        return max(plain, float(stats.t.sf(corrected, self.degrees)))

    def cautious_p_below(self, bound: float) -> float:
        """Return the larger of ``p_below`` and its value corrected for skewness."""
        return self._mirrored().cautious_p_above(-bound)

    def _mirrored(self) -> MeanEstimate:
        return MeanEstimate(-self.mean, self.standard_error, self.degrees, -self.skewness)


def clustered_mean(differences: ArrayLike, clusters: ArrayLike) -> MeanEstimate:
    """Return the mean over cases with a standard error that is robust to clusters.

    G/(G−1) · Σ_g (Σ_{i∈g} (d_i − d̄))² / n², G−1 degrees of freedom (Liang & Zeger 1986, with
    the small-sample factor of Cameron & Miller 2015, Eq. 12). With one case per cluster it
    is the paired t-test's.
    """
    d, groups = np.asarray(differences, np.float64), np.asarray(clusters, np.int64)
    if not d.size:
        return MeanEstimate(math.nan, math.nan, 0)
    mean = float(d.mean())
    # Equal differences have no error, not one of rounding their mean.
    residual = d - mean if np.ptp(d) > _SAME else np.zeros_like(d)
    sums = np.bincount(groups, weights=residual)
    count = len(sums)
    if count < 2:
        return MeanEstimate(mean, math.nan, 0)
    variance = count / (count - 1) * float(sums @ sums) / d.size**2
    skewness = float(stats.skew(sums)) if np.ptp(sums) > _SAME else 0.0
    return MeanEstimate(mean, math.sqrt(variance), count - 1, skewness)


def skewed_level(unit_means: ArrayLike, alpha: float) -> float:
    """Return about what level plain one-sided t-tests at ``alpha`` have in the worse direction.

    α + |γ|/(6√G) · (2z² + 1) φ(z), γ the skewness of the G units: the first term of the
    Edgeworth expansion of t (Hall 1992, The Bootstrap and Edgeworth Expansion, Sec. 2.6).
    """
    values = np.asarray(unit_means, dtype=np.float64)
    if values.size < 3 or np.ptp(values) <= _SAME:
        return alpha
    z = float(stats.norm.isf(alpha))
    skewness = abs(float(stats.skew(values)))
    excess = (2 * z**2 + 1) * float(stats.norm.pdf(z)) * skewness / (6 * math.sqrt(values.size))
    return alpha + excess


def cluster_bootstrap(
    differences: ArrayLike,
    clusters: ArrayLike,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the BCa bootstrap interval of the mean over cases, whole clusters resampled.

    Efron 1987 (J Am Stat Assoc 82:171), widened for few clusters as the expanded percentile
    interval (Hesterberg 2015, Am Stat 69:371): √(G/(G−1)) times the t quantile of
    G−1 degrees of freedom stands in for the normal quantile, without which 95 % intervals of
    20 cases cover 92 to 93 %. The mean is a ratio of cluster sums to cluster
    sizes, so the jackknife is closed: ``scipy.stats.bootstrap`` builds it from G² values,
    out of reach for thousands of patients. At equal nominal levels the two agree.

    Parameters
    ----------
    differences : (N,), one a case.
    clusters : (N,) integers from 0, the patient or image of each case.
    confidence : of the interval, between 0 and 1.
    resamples, seed : draws of clusters, and what they are drawn by.

    Returns
    -------
    (low, high); both the mean if all differences are equal, NaN for fewer than two clusters.
    """
    d, groups = np.asarray(differences, np.float64), np.asarray(clusters, np.int64)
    if not d.size or groups.max() < 1:
        return math.nan, math.nan
    if np.ptp(d) <= _SAME:
        return float(d[0]), float(d[0])
    sums = np.bincount(groups, weights=d).astype(np.float64)
    sizes = np.bincount(groups).astype(np.float64)
    count = len(sums)
    wide = math.sqrt(count / (count - 1)) * float(stats.t.ppf(0.5 + confidence / 2, count - 1))
    ends = np.array([-wide, wide])
    mean = float(sums.sum() / sizes.sum())
    means = _resampled_means(sums, sizes, resamples, np.random.default_rng(seed))
    left_out = (sums.sum() - sums) / (sizes.sum() - sizes)
    deviation = left_out.mean() - left_out
    spread = float((deviation**2).sum())
    if not spread:  # every cluster has the same mean
        low, high = np.quantile(means, stats.norm.cdf(ends))
        return float(low), float(high)
    acceleration = float((deviation**3).sum()) / (6 * spread**1.5)
    below = float(np.mean(means < mean) + np.mean(means == mean) / 2)
    below = min(max(below, 0.5 / resamples), 1 - 0.5 / resamples)
    bias = float(stats.norm.ppf(below))
    z = bias + ends
    low, high = np.quantile(means, stats.norm.cdf(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def _resampled_means(sums: Reals, sizes: Reals, resamples: int, rng: np.random.Generator) -> Reals:
    """Return (resamples,) means over cases of as many clusters, drawn with replacement."""
    count = len(sums)
    at_once = max(1, _CHUNK // count)
    means = np.empty(resamples)
    for begin in range(0, resamples, at_once):
        rows = min(at_once, resamples - begin)
        drawn = rng.integers(count, size=(rows, count), dtype=np.int32)
        total = sums[drawn].sum(axis=1)
        means[begin : begin + rows] = total / sizes[drawn].sum(axis=1)
    return means
