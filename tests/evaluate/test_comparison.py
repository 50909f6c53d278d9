import math
from dataclasses import replace

import pytest

from adalora_qat.evaluate.comparison import Comparison, verdict
from adalora_qat.evaluate.paired_tests import SignedRank
from adalora_qat.evaluate.pairing import Dropped
from adalora_qat.evaluate.summaries import summarize

PLAIN = Comparison(
    model_a="int8", model_b="fp32", metric="dsc", higher_is_better=True, by="all", group="all",
    targets=("lung",), n=82, n_clusters=82, clustered_by="image", dropped=(),
    a=summarize([0.97]), b=summarize([0.97]), mean_difference=-0.0003, sd_difference=0.004,
    median_difference=0.0, confidence=0.95, ci_low=-0.0012, ci_high=0.0006,
    wilcoxon=SignedRank(82, 0, 1500.0, 0.41, -0.1), alpha=0.05, margin=0.005,
    tost_low=-0.001, tost_high=0.0004, tost_p=0.0002, noninferiority_p=0.0002,
    wilcoxon_p_holm=0.82, tost_p_holm=0.0004, noninferiority_p_holm=0.0004,
    wilcoxon_family=2, tost_family=2, cautions=(), notes=(),
)  # fmt: skip


def test_the_whole_verdict_reads() -> None:
    assert verdict(PLAIN) == (
        "DSC (lung), int8 against fp32: 82 cases, 0 dropped. Mean difference −0.0003 (95 % "
        "bootstrap interval −0.0012 to +0.0006). No difference was detected (Wilcoxon p = 0.410, "
        "Holm over 2 tests = 0.820; rank-biserial r = −0.10); that alone does not show there is "
        "none. Equivalence of the means within ±0.005 was shown (TOST p < 0.001, Holm over 2 "
        "tests < 0.001)."
    )


def test_the_family_decides_not_the_plain_p() -> None:
    near = replace(PLAIN, wilcoxon=replace(PLAIN.wilcoxon, p=0.03), wilcoxon_p_holm=0.06)
    assert not near.different and "No difference was detected" in verdict(near)
    near = replace(PLAIN, tost_p=0.03, tost_p_holm=0.06, noninferiority_p_holm=0.06)
    assert not near.equivalent and not near.noninferior
    assert "These cases do not decide." in verdict(near)


def test_no_p_shows_nothing() -> None:
    nan = math.nan
    none = replace(PLAIN, wilcoxon_p_holm=nan, tost_p_holm=nan, noninferiority_p_holm=nan)
    assert not (none.different or none.equivalent or none.noninferior)


def test_the_group_and_what_was_dropped_are_named() -> None:
    lost = (Dropped("a", "lung", "not in B"), Dropped("b", "lung", "not in B"))
    told = verdict(replace(PLAIN, by="source", group="jsrt", dropped=lost))
    assert "DSC (lung, source jsrt)" in told and "2 dropped (2 not in B)" in told


@pytest.mark.parametrize(
    ("higher", "rank", "word"),
    [(True, 0.5, "better"), (True, -0.5, "worse"), (False, 0.5, "worse"), (False, -0.5, "better")],
)
def test_direction(higher: bool, rank: float, word: str) -> None:
    found = replace(
        PLAIN,
        metric="dsc" if higher else "assd_px",
        higher_is_better=higher,
        mean_difference=rank / 100,
        wilcoxon=SignedRank(82, 0, 1.0, 1e-5, rank),
        wilcoxon_p_holm=1e-5,
    )
    assert f"by ranks int8 is {word} (Wilcoxon p < 0.001" in verdict(found)


def test_cautions_come_first_and_notes_last() -> None:
    told = verdict(replace(PLAIN, cautions=("other prompts",), notes=("so and so",)))
    assert told.startswith("Caution: other prompts. DSC") and told.endswith("Note: so and so.")
