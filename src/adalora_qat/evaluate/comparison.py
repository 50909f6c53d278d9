"""The result of one paired comparison, and its verdict in words."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from adalora_qat.evaluate.metrics import METRICS
from adalora_qat.evaluate.paired_tests import SignedRank
from adalora_qat.evaluate.pairing import Dropped
from adalora_qat.evaluate.summaries import POOLED, Summary


@dataclass(frozen=True)
class Comparison:
    """Model A against the baseline B on one metric: every difference is A − B.

    Attributes
    ----------
    model_a, model_b, metric, higher_is_better : what is compared.
    by, group : "all" or the column ("source", "label", …) and its value.
    targets : the targets pooled in it.
    n, n_clusters, clustered_by : cases compared; independent units among them; what these are.
    dropped : cases left out, with reasons.
    a, b : summaries of the n compared cases.
    mean_difference, sd_difference, median_difference : over cases.
    confidence, ci_low, ci_high : BCa bootstrap interval of the mean difference, by cluster.
    wilcoxon : over clusters' mean differences where a cluster has several cases.
    alpha, margin : level of every test; largest difference that does not matter.
    tost_low, tost_high : the 1 − 2α t interval; equivalence is that it lies inside ±margin.
    tost_p : two one-sided tests, cluster-robust t (Schuirmann 1987, J Pharmacokinet
        Biopharm 15:657): the larger p.
    noninferiority_p : that one of the two which says A is not worse by the margin or more.
        Both p are NaN without variation to test against.
    wilcoxon_p_holm, tost_p_holm, noninferiority_p_holm : adjusted over the tests of their
        kind in the family; ``wilcoxon_family`` and ``tost_family`` count them.
    cautions : terms on which the models do not compare (other prompts, other images); said
        before any number.
    notes : what else a reader must know.
    """

    model_a: str
    model_b: str
    metric: str
    higher_is_better: bool
    by: str
    group: str
    targets: tuple[str, ...]
    n: int
    n_clusters: int
    clustered_by: str
    dropped: tuple[Dropped, ...]
    a: Summary
    b: Summary
    mean_difference: float
    sd_difference: float
    median_difference: float
    confidence: float
    ci_low: float
    ci_high: float
    wilcoxon: SignedRank
    alpha: float
    margin: float
    tost_low: float
    tost_high: float
    tost_p: float
    noninferiority_p: float
    wilcoxon_p_holm: float
    tost_p_holm: float
    noninferiority_p_holm: float
    wilcoxon_family: int
    tost_family: int
    cautions: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """Whether both models score exactly alike on every case."""
        return self.n > 0 and self.wilcoxon.n == self.wilcoxon.n_zero and not self.sd_difference > 0

    @property
    def different(self) -> bool:
        """Whether Wilcoxon's test finds a difference at ``alpha``, family-wise."""
        return self.wilcoxon_p_holm < self.alpha

    @property
    def equivalent(self) -> bool:
        """Whether equivalence within ±margin is shown at ``alpha``, family-wise."""
        return self.tost_p_holm < self.alpha

    @property
    def noninferior(self) -> bool:
        """Whether A is shown not to be worse by the margin or more, family-wise."""
        return self.noninferiority_p_holm < self.alpha


def verdict(comparison: Comparison) -> str:
    """Say in words what the comparison shows, and no more.

    Tests are judged by their family-wise p. "No difference was detected" is always followed
    by whether equivalence was shown, since the first does not imply the second.
    """
    c = comparison
    where = "" if c.by == POOLED else f", {c.by} {c.group}"
    parts = [f"Caution: {caution}." for caution in c.cautions]
    parts += [
        f"{METRICS[c.metric].title} ({', '.join(c.targets)}{where}), {c.model_a} against "
        f"{c.model_b}: {_counted(c)}."
    ]
    if c.identical:
        parts.append(f"The two score exactly alike on {'every case' if c.n > 1 else 'it'}.")
    elif c.n:
        parts.append(f"Mean difference {_signed(c, c.mean_difference)}{_interval(c)}.")
        parts += [*_on_difference(c), *_on_margin(c)]
    parts += [f"Note: {note}." for note in c.notes]
    return " ".join(parts)


def _counted(c: Comparison) -> str:
    cases = f"{c.n} case{'s' * (c.n != 1)}"
    if c.n_clusters != c.n:
        cases += f" of {c.n_clusters} units ({c.clustered_by})"
    reasons = Counter(case.reason for case in c.dropped)
    told = "; ".join(f"{n} {reason}" for reason, n in reasons.items())
    return f"{cases}, {len(c.dropped)} dropped" + (f" ({told})" if told else "")


def _interval(c: Comparison) -> str:
    if math.isnan(c.ci_low):
        return ""
    low, high = _signed(c, c.ci_low), _signed(c, c.ci_high)
    return f" ({100 * c.confidence:g} % bootstrap interval {low} to {high})"


def _on_difference(c: Comparison) -> list[str]:
    if math.isnan(c.wilcoxon.p):
        return []
    r = f"rank-biserial r = {c.wilcoxon.rank_biserial:+.2f}".replace("r = -", "r = −")
    told = f"Wilcoxon {_p(c.wilcoxon.p, c.wilcoxon_p_holm, c.wilcoxon_family)}; {r}"
    if not c.different:
        return [f"No difference was detected ({told}); that alone does not show there is none."]
    upward = c.wilcoxon.rank_biserial > 0
    better = "better" if upward == c.higher_is_better else "worse"
    words = [f"A difference was detected: by ranks {c.model_a} is {better} ({told})."]
    if c.wilcoxon.rank_biserial * c.mean_difference < 0:
        words.append("The mean points the other way: few large differences against many small.")
    return words


def _on_margin(c: Comparison) -> list[str]:
    if math.isnan(c.tost_p):
        return []
    margin = f"{c.margin:g}{_unit(c)}"
    tost = _p(c.tost_p, c.tost_p_holm, c.tost_family)
    one = _p(c.noninferiority_p, c.noninferiority_p_holm, c.tost_family)
    if c.equivalent:
        rest = " The detected difference is, on average, smaller than that." * c.different
        return [f"Equivalence of the means within ±{margin} was shown (TOST {tost}).{rest}"]
    if c.noninferior:
        return [
            f"Non-inferiority was shown: on average {c.model_a} is not worse by {margin} or more "
            f"({one}). Equivalence within ±{margin} was not shown (TOST {tost})."
        ]
    rest = " These cases do not decide." * (not c.different)
    return [
        f"Neither equivalence within ±{margin} (TOST {tost}) nor non-inferiority ({one}) was "
        f"shown.{rest}"
    ]


def _unit(c: Comparison) -> str:
    unit = METRICS[c.metric].unit
    return f" {unit}" if unit else ""


def _signed(c: Comparison, value: float) -> str:
    return f"{value:+.{3 if METRICS[c.metric].unit else 4}f}{_unit(c)}".replace("-", "−")


def _p(p: float, adjusted: float, family: int) -> str:
    told = f"p {_number(p)}"
    return f"{told}, Holm over {family} tests {_number(adjusted)}" if family > 1 else told


def _number(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
