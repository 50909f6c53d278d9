import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import ArrayLike
from scipy import stats

from adalora_qat.errors import DataError
from adalora_qat.evaluate.case_table import case_table
from adalora_qat.evaluate.compare import (
    DEFAULT_MARGIN,
    compare,
    compare_groups,
    holm_adjusted,
    verdict,
)

BASE = np.random.default_rng(0).beta(40, 3, 60)


def table(dsc: ArrayLike, model: str = "a", **facts: Any) -> pd.DataFrame:
    values = np.asarray(dsc, dtype=float)
    columns: dict[str, Any] = {
        "id": [f"s/{i:03}" for i in range(len(values))], "source": "s", "target": "lung",
        "model": model, "box": "oracle", "altered": "as-read", "status": "ok", "empty": "no",
        "height": 64, "width": 64, "truth_area_px": 100, "truth_resized": 0,
    } | facts  # fmt: skip
    return case_table(pd.DataFrame({**columns, "dsc": values}).to_dict("records"))  # type: ignore[arg-type]


def shifted(shift: float, noise: float, seed: int = 1) -> np.ndarray:
    return BASE + shift + np.random.default_rng(seed).normal(0, noise, len(BASE))


def test_numbers_are_scipys_for_independent_cases() -> None:
    # Symmetric differences, for which the tests against the margin are the plain ones.
    spread = 0.01 * stats.norm.ppf((np.arange(60) + 0.5) / 60)
    a = BASE + 0.001 + np.random.default_rng(5).permutation(spread)
    found = compare(table(a), table(BASE, "b"))
    t = stats.ttest_rel(a, BASE)
    assert found.mean_difference == pytest.approx(np.mean(a - BASE))
    assert found.sd_difference == pytest.approx(np.std(a - BASE, ddof=1))
    assert found.wilcoxon.p == pytest.approx(stats.wilcoxon(a, BASE).pvalue)
    lower = stats.ttest_1samp(a - BASE, -DEFAULT_MARGIN, alternative="greater").pvalue
    upper = stats.ttest_1samp(a - BASE, DEFAULT_MARGIN, alternative="less").pvalue
    assert found.tost_p == pytest.approx(max(lower, upper))
    assert found.noninferiority_p == pytest.approx(lower)
    assert (found.tost_low, found.tost_high) == pytest.approx(tuple(t.confidence_interval(0.9)))
    assert (found.n, found.n_clusters, found.clustered_by, found.dropped) == (60, 60, "image", ())
    assert found.a.mean == pytest.approx(a.mean()) and found.b.median == np.median(BASE)
    assert found.ci_low < found.mean_difference < found.ci_high


def test_the_order_of_rows_does_not_matter() -> None:
    a, b = table(shifted(0, 0.01)), table(BASE, "b")
    shuffled = a.sample(frac=1, random_state=0)
    assert compare(a, b) == compare(shuffled, b.iloc[::-1])


def test_patients_are_the_units() -> None:
    a = np.repeat(shifted(0, 0.01)[:20], 3)
    facts = {"patient": [f"p{i // 3}" for i in range(60)]}
    found = compare(table(a, **facts), table(np.repeat(BASE[:20], 3), "b", **facts))
    assert (found.n, found.n_clusters, found.clustered_by) == (60, 20, "patient")
    assert found.wilcoxon.n == 20
    # Three copies of each patient's image say what one says.
    once = compare(table(a[::3]), table(BASE[:20], "b"))
    assert found.tost_p == pytest.approx(once.tost_p)
    assert (found.ci_low, found.ci_high) == pytest.approx((once.ci_low, once.ci_high))
    assert "20 units (patient)" in verdict(found)


def test_one_patient_number_in_two_data_sets_is_two_patients() -> None:
    facts: dict[str, Any] = {"patient": ["1"] * 60, "source": ["x"] * 30 + ["y"] * 30}
    assert compare(table(BASE, **facts), table(BASE, "b", **facts)).n_clusters == 2


def test_images_stand_in_where_patients_are_unknown() -> None:
    facts = {"patient": ["p"] * 10 + [None] * 50}
    found = compare(table(shifted(0, 0.01), **facts), table(BASE, "b", **facts))
    assert (found.n_clusters, found.clustered_by) == (51, "patient where known, else image")


def test_two_targets_of_an_image_are_one_unit() -> None:
    lungs = {"id": [f"s/{i // 2}" for i in range(60)], "target": ["lung", "heart"] * 30}
    found = compare(table(shifted(0, 0.01), **lungs), table(BASE, "b", **lungs))
    assert (found.n, found.n_clusters, found.targets) == (60, 30, ("heart", "lung"))
    only = compare(table(BASE, **lungs), table(BASE, "b", **lungs), targets=["heart"])
    assert (only.n, only.targets) == (30, ("heart",))


def test_a_missing_case_is_an_error_or_counted() -> None:
    a, b = table(BASE).iloc[1:], table(BASE, "b").iloc[:-2]
    with pytest.raises(DataError, match=r"3 cases are in one table only, the first is s/000"):
        compare(a, b)
    found = compare(a, b, missing="drop")
    assert found.n == 57
    assert [(d.id, d.reason) for d in found.dropped] == [
        ("s/000", "not in A"),
        ("s/058", "not in B"),
        ("s/059", "not in B"),
    ]
    assert "57 cases, 3 dropped (1 not in A; 2 not in B)" in verdict(found)


def test_what_is_not_a_number_is_dropped_with_its_reason() -> None:
    a, b = BASE.copy(), BASE.copy()
    a[3], b[5], b[6] = np.nan, np.nan, np.inf
    first = table(a)
    first.loc[3, "status"] = "no oracle box: the truth is empty"
    found = compare(first, table(b, "b"))
    assert found.n == 57
    assert [(d.id, d.reason) for d in found.dropped] == [
        ("s/003", "no oracle box: the truth is empty (A)"),
        ("s/005", "dsc of B is not a number"),
        ("s/006", "dsc of B is not a number"),
    ]


def test_nothing_but_nan_is_stated() -> None:
    found = compare(table([np.nan] * 3), table([0.5] * 3, "b"))
    assert found.n == 0 and len(found.dropped) == 3 and not found.equivalent
    assert "0 cases of 0" not in verdict(found)
    assert "no case could be compared" in verdict(found)


def test_one_case_is_described_not_tested() -> None:
    found = compare(table([0.9]), table([0.8], "b"))
    assert found.mean_difference == pytest.approx(0.1)
    for value in (found.ci_low, found.wilcoxon.p, found.tost_p, found.noninferiority_p):
        assert math.isnan(value)
    assert not (found.different or found.equivalent or found.noninferior)
    told = verdict(found)
    assert "described, not tested" in told and "detected" not in told and "shown" not in told


def test_equal_scores_are_called_alike_not_equivalent() -> None:
    found = compare(table(BASE), table(BASE, "b"))
    assert found.identical and not found.equivalent and found.wilcoxon.p == 1
    assert (found.ci_low, found.ci_high) == (0, 0)
    told = verdict(found)
    assert "score exactly alike on every case" in told and "quivalence" not in told


def test_one_and_the_same_difference_has_no_error() -> None:
    found = compare(table(BASE + 0.001), table(BASE, "b"))
    assert not found.identical and math.isnan(found.tost_p)
    assert (found.ci_low, found.ci_high) == pytest.approx((0.001, 0.001))
    assert "every difference is the same" in verdict(found)


@pytest.mark.parametrize(
    ("a", "different", "equivalent", "noninferior", "told"),
    [
        (shifted(0, 0.005), False, True, True,
         ["No difference was detected", "does not show there is none",
          "Equivalence of the means within ±0.005 was shown"]),
        (shifted(0.003, 0.002), True, True, True,
         ["by ranks a is better", "was shown", "on average, smaller than that"]),
        (shifted(0.02, 0.01), True, False, True,
         ["by ranks a is better", "Non-inferiority was shown", "within ±0.005 was not shown"]),
        (shifted(-0.02, 0.01), True, False, False,
         ["by ranks a is worse", "Neither equivalence"]),
        (shifted(0, 0.08), False, False, False,
         ["No difference was detected", "Neither equivalence", "These cases do not decide."]),
    ],
)  # fmt: skip
def test_the_verdict_says_what_was_shown_and_no_more(
    a: np.ndarray, different: bool, equivalent: bool, noninferior: bool, told: list[str]
) -> None:
    found = compare(table(a), table(BASE, "b"))
    assert (found.different, found.equivalent, found.noninferior) == (
        different, equivalent, noninferior,
    )  # fmt: skip
    words = verdict(found)
    assert all(part in words for part in told), words
    assert "60 cases, 0 dropped" in words
    assert "same" not in words and "proves" not in words and "significant" not in words


def test_mean_and_ranks_that_disagree_are_pointed_out() -> None:
    d = np.full(60, 0.001) + np.linspace(0, 1e-4, 60)
    d[:3] = -0.2
    assert "The mean points the other way" in verdict(compare(table(BASE + d), table(BASE, "b")))


def test_skewed_differences_are_pointed_out() -> None:
    d = np.random.default_rng(4).normal(0, 0.001, 60)
    assert "skewed" not in verdict(compare(table(BASE + d), table(BASE, "b")))
    d[:2] = -0.1
    told = verdict(compare(table(BASE + d), table(BASE, "b")))
    assert "plain t-tests at 5 % would err in about 12 %" in told
    assert "the tests against the margin are corrected for it" in told


def test_for_a_distance_lower_is_better_and_the_margin_is_stated() -> None:
    far = np.random.default_rng(2).gamma(3, 1, 60)
    near = far - 1 + np.random.default_rng(3).normal(0, 0.2, 60)
    a, b = table(BASE, hd95_px=near), table(BASE, "b", hd95_px=far)
    with pytest.raises(DataError, match="state the margin in px"):
        compare(a, b, "hd95_px")
    found = compare(a, b, "hd95_px", margin=0.5)
    assert found.mean_difference < 0 and found.noninferior and not found.equivalent
    assert "by ranks a is better" in verdict(found) and "0.5 px" in verdict(found)


def test_other_terms_are_said_first() -> None:
    found = compare(table(BASE), table(BASE - 0.01, "b", box="whole-image"))
    assert verdict(found).startswith("Caution: the models were given different prompts (A oracle,")


def test_one_model_asked_in_two_ways_has_two_names() -> None:
    found = compare(table(shifted(0, 0.01)), table(BASE, box="whole-image"))
    assert (found.model_a, found.model_b) == ("a (oracle)", "a (whole-image)")


def test_values_set_by_policy_are_counted() -> None:
    a = shifted(0, 0.01)
    a[0] = 0
    found = compare(table(a, empty=["prediction"] + ["no"] * 59), table(BASE, "b"))
    assert "values set by the empty-mask policy in A and B: 1 and 0" in verdict(found)


def test_groups_are_one_family_under_holm() -> None:
    facts = {"source": ["x"] * 30 + ["y"] * 30, "label": ["ill", None] * 30}
    a, b = table(shifted(0.002, 0.01), **facts), table(BASE, "b", **facts)
    found = compare_groups(a, b)
    assert [(c.by, c.group) for c in found] == [
        ("all", "all"), ("source", "x"), ("source", "y"),
        ("label", "(no class given)"), ("label", "ill"),
    ]  # fmt: skip
    assert found[1].n + found[2].n == found[3].n + found[4].n == found[0].n == 60
    plain = sorted(c.wilcoxon.p for c in found)
    first = min(c.wilcoxon_p_holm for c in found)
    assert first == pytest.approx(min(1, 5 * plain[0]))
    assert {c.wilcoxon_family for c in found} == {5} == {c.tost_family for c in found}
    assert "Holm over 5 tests" in verdict(found[0])


def test_a_column_of_one_group_is_no_further_test() -> None:
    assert len(compare_groups(table(shifted(0, 0.01)), table(BASE, "b"))) == 1


def test_what_cannot_be_tested_is_no_member_of_the_family() -> None:
    a = shifted(0, 0.01)
    facts = {"source": ["x"] * 59 + ["y"]}
    found = compare_groups(table(a, **facts), table(BASE, "b", **facts), by=("source",))
    assert [c.wilcoxon_family for c in found] == [2, 2, 2] and math.isnan(found[2].wilcoxon_p_holm)
    assert holm_adjusted([]) == ()


@pytest.mark.parametrize(
    ("a", "b", "options", "told"),
    [
        (table([]), table(BASE), {}, "table A has no case"),
        (pd.concat([table(BASE), table(BASE, "c")]), table(BASE), {}, "several values of model"),
        (
            table(BASE),
            pd.concat([table(BASE), table(BASE)]),
            {},
            "table B lists s/000 / lung twice",
        ),
        (table(BASE), table(BASE, height=128), {}, "height=64 in A and 128 in B"),
        (table(BASE), table(BASE, truth_area_px=99), {}, "truth_area_px=100 in A and 99 in B"),
        (table(BASE), table(BASE), {"metric": "dice"}, "unknown metric 'dice'"),
        (table(BASE), table(BASE), {"margin": 0.0}, "must be positive"),
        (table(BASE), table(BASE), {"margin": math.nan}, "must be positive"),
        (table(BASE), table(BASE), {"by": "source", "group": "z"}, "no case to compare"),
        (table(BASE), table(BASE), {"by": "sex", "group": "f"}, "no column 'sex'"),
        (table(BASE), table(BASE).drop(columns="dsc"), {}, "table B has no column 'dsc'"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    a: pd.DataFrame, b: pd.DataFrame, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        compare(a, b, **options)
