import math

import numpy as np
import pytest
from scipy import stats

from adalora_qat.evaluate.paired_tests import (
    cluster_bootstrap,
    clustered_mean,
    holm,
    signed_rank,
    skewed_level,
)


def test_signed_rank_by_hand() -> None:
    found = signed_rank([1.0, 2.0, -3.0, 4.0])
    # Ranks 1 to 4, sums 7 and 3; of 16 sign patterns 5 have a sum of 3 or less.
    assert (found.n, found.n_zero, found.statistic) == (4, 0, 3)
    assert found.p == pytest.approx(2 * 5 / 16)
    assert found.rank_biserial == pytest.approx((7 - 3) / 10)


def test_signed_rank_as_scipy_with_zeros_and_ties() -> None:
    rng = np.random.default_rng(0)
    for n in (8, 30, 200):
        differences = np.round(rng.normal(0.3, 1, n), 1)
        differences[:2] = 0
        reference = stats.wilcoxon(differences, zero_method="wilcox")
        found = signed_rank(differences)
        assert found.n_zero == np.sum(differences == 0)
        assert (found.statistic, found.p) == pytest.approx((reference.statistic, reference.pvalue))


def test_signed_rank_at_its_edges() -> None:
    nothing = signed_rank([0.0, 0.0, 0.0])
    assert (nothing.p, nothing.rank_biserial, nothing.n_zero) == (1.0, 0.0, 3)
    for few in ([], [0.3]):
        found = signed_rank(few)
        assert found.n == len(few) and math.isnan(found.p)
    assert signed_rank([1.0, 1.0, 1.0]).rank_biserial == 1
    assert signed_rank([-1.0, 0.0]).rank_biserial == -1


def test_holm_by_hand() -> None:
    # 0.01·4, then max(0.04, 0.03·3), then 0.09 ≥ 0.04·2 stays, then 0.09 ≥ 0.05
    assert holm([0.03, 0.01, 0.05, 0.04]) == pytest.approx([0.09, 0.04, 0.09, 0.09])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    with_gap = holm([0.02, math.nan, 0.03])
    assert with_gap[0] == pytest.approx(0.04) and math.isnan(with_gap[1])
    assert with_gap[2] == pytest.approx(0.04)
    assert all(map(math.isnan, holm([math.nan, math.nan])))


def test_holm_as_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    rng = np.random.default_rng(0)
    for count in range(1, 21):
        p_values = np.round(rng.random(count) ** 3, 2)  # small ones, and ties
        reference = multitest.multipletests(p_values, method="holm")[1]
        assert holm(list(p_values)) == pytest.approx(list(reference))


def test_mean_of_independent_cases_as_the_paired_t_test() -> None:
    d = np.random.default_rng(1).normal(0.2, 1, 25)
    estimate = clustered_mean(d, np.arange(25))
    for bound in (-0.5, 0.0, 0.5):
        greater = stats.ttest_1samp(d, bound, alternative="greater")
        assert estimate.p_above(bound) == pytest.approx(greater.pvalue)
        assert estimate.p_below(bound) == pytest.approx(1 - greater.pvalue)
    reference = stats.ttest_1samp(d, 0).confidence_interval(0.9)
    assert estimate.interval(0.9) == pytest.approx(tuple(reference))


def test_two_one_sided_tests_as_statsmodels() -> None:
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    rng = np.random.default_rng(2)
    a, b = rng.normal(0.95, 0.02, 40), rng.normal(0.95, 0.02, 40)
    p, lower, upper = weightstats.ttost_paired(a, b, -0.005, 0.005)
    estimate = clustered_mean(a - b, np.arange(40))
    assert estimate.p_above(-0.005) == pytest.approx(lower[1])
    assert estimate.p_below(0.005) == pytest.approx(upper[1])
    assert max(lower[1], upper[1]) == pytest.approx(p)


def test_clustered_error_as_statsmodels() -> None:
    api = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(3)
    clusters = rng.integers(0, 12, 60)
    clusters[:12] = np.arange(12)
    d = rng.normal(0, 1, 12)[clusters] + rng.normal(0, 0.3, 60)
    fit = api.OLS(d, np.ones(60)).fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
    estimate = clustered_mean(d, clusters)
    assert estimate.mean == pytest.approx(fit.params[0])
    assert estimate.standard_error == pytest.approx(fit.bse[0])
    assert estimate.interval(0.95) == pytest.approx(tuple(fit.conf_int()[0]))
    assert estimate.degrees == 11


@pytest.mark.parametrize(
    ("d", "clusters"), [([], []), ([0.1], [0]), ([0.1, 0.2, 0.3], [0, 0, 0]), ([0.2, 0.2], [0, 1])]
)
def test_without_an_error_to_estimate_there_is_no_p(d: list[float], clusters: list[int]) -> None:
    estimate = clustered_mean(d, clusters)
    assert math.isnan(estimate.p_above(0)) and math.isnan(estimate.p_below(0))


def test_equal_differences_have_no_error_whatever_rounding_made_of_them() -> None:
    d = np.array([0.3, 0.4, 0.9]) - np.array([0.2, 0.3, 0.8])
    assert len(set(d)) > 1  # 0.1, three times
    assert clustered_mean(d, [0, 1, 2]).standard_error == 0
    low, high = cluster_bootstrap(d, [0, 1, 2])
    assert low == high == pytest.approx(0.1)


def test_skewness_costs_level_as_simulated() -> None:
    rng = np.random.default_rng(8)
    draws = (rng.gamma(4, 1, (20000, 80)) - 4) * 0.005  # skewness 1, true mean 0
    t = draws.mean(axis=1) / draws.std(axis=1, ddof=1) * np.sqrt(80)
    level = np.mean(t < stats.t.ppf(0.05, 79))
    exact = np.tile([-1.0, 1.0, 0.0], 27)[:80]
    assert skewed_level(exact, 0.05) == pytest.approx(0.05, abs=1e-3)
    assert np.mean([skewed_level(d, 0.05) for d in draws[:300]]) == pytest.approx(level, abs=0.005)
    assert skewed_level([0.1, 0.1, 0.1], 0.05) == skewed_level([1.0, 2.0], 0.05) == 0.05


def test_cautious_tests_keep_their_level_under_skewness() -> None:
    rng = np.random.default_rng(3)
    draws = (rng.gamma(4, 1, (3000, 80)) - 4) * 0.005 + 0.005  # skewed, the mean at the margin
    plain = cautious = 0
    for d in draws:
        estimate = clustered_mean(d, np.arange(80))
        plain += estimate.p_below(0.005) < 0.05
        cautious += estimate.cautious_p_below(0.005) < 0.05
        assert estimate.cautious_p_below(0.005) >= estimate.p_below(0.005)
    # Standard error of these rates: 0.004.
    assert plain / 3000 > 0.058
    assert cautious / 3000 < 0.058


def test_cautious_tests_are_plain_without_skewness() -> None:
    d = np.concatenate([np.linspace(-1, 1, 21), [0.5, -0.5]])
    estimate = clustered_mean(d, np.arange(23))
    assert estimate.cautious_p_above(-0.3) == pytest.approx(estimate.p_above(-0.3))
    assert estimate.cautious_p_below(0.3) == pytest.approx(estimate.p_below(0.3))
    alone = clustered_mean([0.1], [0])
    assert math.isnan(alone.cautious_p_above(0)) and math.isnan(alone.cautious_p_below(0))


def test_bootstrap_as_scipy() -> None:
    rng = np.random.default_rng(4)
    clusters = np.repeat(np.arange(40), rng.integers(1, 4, 40))
    d = rng.exponential(0.01, 40)[clusters] + rng.normal(0, 0.003, len(clusters))
    sums, sizes = np.bincount(clusters, weights=d), np.bincount(clusters).astype(float)
    # The level at which the normal quantile is as wide as the widened one of 40 clusters.
    wide = np.sqrt(40 / 39) * stats.t.ppf(0.975, 39)
    reference = stats.bootstrap(
        (sums, sizes),
        lambda s, n, axis=-1: s.sum(axis) / n.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=20000,
        confidence_level=2 * stats.norm.cdf(wide) - 1,
        method="BCa",
        rng=np.random.default_rng(0),
    )
    found = cluster_bootstrap(d, clusters, resamples=20000)
    # Both draw 20,000 resamples of their own: the ends agree to a few parts in a hundred.
    width = reference.confidence_interval.high - reference.confidence_interval.low
    assert found == pytest.approx(tuple(reference.confidence_interval), abs=0.02 * width)


def test_bootstrap_resamples_patients_not_images() -> None:
    d = np.random.default_rng(5).normal(0, 1, 30)
    once = cluster_bootstrap(d, np.arange(30))
    # The same image of each patient ten times over adds no information.
    assert cluster_bootstrap(np.repeat(d, 10), np.repeat(np.arange(30), 10)) == pytest.approx(once)
    narrow = cluster_bootstrap(np.repeat(d, 10), np.arange(300))
    assert narrow[1] - narrow[0] < 0.5 * (once[1] - once[0])


def test_bootstrap_repeats_with_its_seed() -> None:
    d, clusters = np.random.default_rng(6).normal(0, 1, 50), np.arange(50)
    assert cluster_bootstrap(d, clusters, seed=1) == cluster_bootstrap(d, clusters, seed=1)
    assert cluster_bootstrap(d, clusters, seed=1) != cluster_bootstrap(d, clusters, seed=2)


def test_bootstrap_at_its_edges() -> None:
    assert all(map(math.isnan, cluster_bootstrap([], [])))
    assert all(map(math.isnan, cluster_bootstrap([0.1, 0.2], [0, 0])))
    # Each patient's cases cancel out: every resample has the same mean.
    low, high = cluster_bootstrap([1.0, -1.0, 2.0, -2.0], [0, 0, 1, 1])
    assert low == high == 0


def test_calibration_in_brief() -> None:
    """200 studies without an effect; the benchmark runs the full simulation."""
    rng = np.random.default_rng(7)
    clusters = np.repeat(np.arange(30), 2)
    p, covered, falsely = [], 0, 0
    for number in range(200):
        d = 0.01 * (rng.normal(size=30)[clusters] + rng.normal(size=60))
        p.append(signed_rank(d.reshape(30, 2).mean(axis=1)).p)
        low, high = cluster_bootstrap(d, clusters, resamples=999, seed=number)
        covered += low <= 0 <= high
        shifted = clustered_mean(d + 0.005, clusters)  # at the margin: not equivalent
        falsely += max(shifted.p_above(-0.005), shifted.p_below(0.005)) < 0.05
    assert stats.kstest(p, "uniform").pvalue > 0.01
    # 99 % binomial bounds for 200 trials at 0.95, and at most 0.05.
    assert stats.binom.ppf(0.005, 200, 0.95) <= covered <= stats.binom.ppf(0.995, 200, 0.95)
    assert falsely <= stats.binom.ppf(0.99, 200, 0.05)
