"""What the figures of cases show, read back from their axes."""

import numpy as np
import pandas as pd
import pytest

from adalora_qat.errors import DataError
from adalora_qat.phantom.phantom import phantom
from adalora_qat.report.case_figures import (
    OutlinedCase,
    agreement,
    dice_by_area,
    dice_by_group,
    outlines,
    reliability,
    worst_ids,
)


@pytest.fixture
def cases() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n = 30
    part = pd.DataFrame(
        {
            "id": [f"c/{i:02d}" for i in range(n)],
            "label": ["normal", "tuberculosis", None] * (n // 3),
            "dsc": rng.uniform(0.8, 1, n),
            "iou": rng.uniform(0.7, 0.95, n),
            "truth_area_px": rng.integers(100, 3000, n),
            "height": 100,
            "width": 100,
        }
    )
    part["score"] = part["iou"] + 0.05
    return pd.concat([part.assign(model="A"), part.assign(model="B", score=0.9)], ignore_index=True)


def labels(axes: object) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]  # type: ignore[attr-defined]


def test_every_case_is_a_point_and_no_class_is_a_group(cases: pd.DataFrame) -> None:
    axes = dice_by_group(cases).axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == [
        "no class\nn = 10", "normal\nn = 10", "tuberculosis\nn = 10",
    ]  # fmt: skip
    points = [line for line in axes.lines if line.get_marker() == "."]
    assert sum(len(line.get_xdata()) for line in points) == len(cases)


def test_area_is_a_share_of_the_image(cases: pd.DataFrame) -> None:
    axes = dice_by_area(cases).axes[0]
    points = next(line for line in axes.lines if line.get_marker() == ".")
    assert np.allclose(points.get_xdata(), cases["truth_area_px"][:30] / 100)
    mean_line = next(line for line in axes.lines if line.get_label() == "A")
    assert len(mean_line.get_xdata()) == 5


def test_worst_first_and_failures_before_all(cases: pd.DataFrame) -> None:
    cases.loc[(cases["id"] == "c/07") & (cases["model"] == "A"), "dsc"] = np.nan
    cases.loc[(cases["id"] == "c/20") & (cases["model"] == "A"), "dsc"] = 0.1
    assert worst_ids(cases, "A", count=2) == ["c/07", "c/20"]
    assert len(worst_ids(cases, "B")) == 10
    with pytest.raises(DataError, match="no case of model 'C'; the table has A, B"):
        worst_ids(cases, "C")


def test_outlines_of_empty_and_full_masks_are_left_out() -> None:
    p = phantom(0, side=64)
    truth = p.masks["heart"]
    empty, full = np.zeros_like(truth), np.ones_like(truth)
    drawn = [
        OutlinedCase("p/0", "DSC 0", p.image, truth, {"A": empty, "B": full}),
        OutlinedCase("p/1", "DSC 1", p.image, truth, {"A": truth, "B": truth}),
    ]
    figure = outlines(drawn)
    figure.canvas.draw()
    first, second = figure.axes
    assert (len(first.collections), len(second.collections)) == (1, 3)
    assert (first.get_title(loc="left"), first.get_xlabel()) == ("0", "DSC 0")


def test_agreement_draws_bias_and_limits() -> None:
    truth = np.array([1.0, 2, 3, 4])
    axes = agreement(truth, np.array([1.5, 3.5, 3.5, 5.5]), "area").axes[0]
    sd = np.std([0.5, 1.5, 0.5, 1.5], ddof=1)
    heights = [line.get_ydata()[0] for line in axes.lines[1:]]
    assert heights == pytest.approx([1, 1 + 1.96 * sd, 1 - 1.96 * sd])
    assert axes.get_title(loc="left") == "Agreement, n = 4"
    with pytest.raises(DataError, match="no pair of finite values"):
        agreement([np.nan], [1.0], "area")


def test_reliability_tells_distance_and_order(cases: pd.DataFrame) -> None:
    told = labels(reliability(cases).axes[0])
    assert told[0] == "A: off by 0.050, ρ = 1.00"
    # A constant score sorts nothing.
    assert told[1].endswith("ρ = nan")
