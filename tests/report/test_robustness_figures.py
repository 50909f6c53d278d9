"""What the robustness figures show, read back from their axes."""

import numpy as np
import pandas as pd
import pytest

from adalora_qat.errors import DataError
from adalora_qat.report.robustness_figures import degradation_figure, jitter_figure, sweep_table


def rows(model: str, dsc: list[float], **constant: str) -> pd.DataFrame:
    return pd.DataFrame(
        {"model": model, "dsc": dsc, "box": "oracle", "altered": "as-read"} | constant
    )


def test_jitter_means_with_t_intervals_and_no_prompt_aside() -> None:
    table = pd.concat(
        [
            rows("A", [0.9, 1.0]),
            rows("A", [0.7, 0.8], box="oracle+jitter10"),
            rows("A", [0.4, 0.5], box="whole-image"),
        ],
        ignore_index=True,
    )
    axes = jitter_figure(table).axes[0]
    line = next(line for line in axes.lines if line.get_label() == "A")
    assert list(line.get_xdata()) == [0, 10]
    assert list(line.get_ydata()) == pytest.approx([0.95, 0.75])
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "10", "no\nprompt"]
    # Student's t with one degree of freedom: 12.706 · 0.0707 / √2.
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(0.95 + 12.7062 * 0.05, rel=1e-4)


def test_a_panel_a_kind_and_the_image_as_read_in_each() -> None:
    table = pd.concat(
        [
            rows("A", [0.9, 0.9]),
            rows("A", [0.5, 0.5], altered="noise=0.1"),
            rows("A", [0.8, 0.8], altered="jpeg=50"),
            rows("A", [0.7, 0.7], altered="jpeg=5"),
            rows("A", [0.6, np.nan], altered="rotation=-10"),
        ],
        ignore_index=True,
    )
    shown = {
        axes.get_xlabel(): (
            [t.get_text() for t in axes.get_xticklabels()],
            list(next(line for line in axes.lines if line.get_label() == "A").get_ydata()),
        )
        for axes in degradation_figure(table).axes
    }
    assert shown == {
        "Noise, sd (share of grey range)": (["0", "0.1"], [0.9, 0.5]),
        "Rotation (degrees)": (["-10", "0"], [0.6, 0.9]),
        "JPEG quality": (["100", "50", "5"], [0.9, 0.8, 0.7]),
    }


def test_nothing_degraded_is_told() -> None:
    with pytest.raises(DataError, match="no degraded case"):
        degradation_figure(rows("A", [0.9]))


def test_the_number_of_cases_stands_in_the_figures() -> None:
    table = pd.concat(
        [
            rows("A", [0.9, 1.0]).assign(id=["a", "b"]),
            rows("A", [0.7, 0.8], altered="noise=0.1", box="oracle").assign(id=["a", "b"]),
        ],
        ignore_index=True,
    )
    assert jitter_figure(table).axes[0].get_title(loc="left") == "DSC and the box, n = 2 cases"
    assert degradation_figure(table).legends[0].get_title().get_text() == "n = 2 cases"


def test_intervals_do_not_stretch_the_axis_beyond_a_share() -> None:
    table = pd.concat(
        [rows("A", [0.1, 1.0]), rows("A", [0.0, 1.0], altered="noise=0.1")], ignore_index=True
    )
    low, high = degradation_figure(table).axes[0].get_ylim()
    assert low == 0
    assert high == 1.02


def test_a_sweep_as_a_table_counts_and_compares_with_its_first_row() -> None:
    table = pd.concat(
        [rows("A", [0.9, 1.0]), rows("A", [0.7, float("nan")], altered="noise=0.1")],
        ignore_index=True,
    )
    found = sweep_table(table, "sweep", "A sweep")
    first, second = found.rows
    assert first[:5] == ("A", "oracle", "as-read", 2, 0)
    assert second[:5] == ("A", "oracle", "noise=0.1", 1, 1)
    assert first[6] == pytest.approx(0)
    assert second[6] == pytest.approx(0.7 - 0.95)
