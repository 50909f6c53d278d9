"""Statistics of the weight error against what rounding must give."""

import math

import numpy as np
import pytest

from adalora_qat.errors import DataError
from adalora_qat.report.tables import latex
from adalora_qat.report.weight_error import (
    WHOLE,
    LayerWeights,
    weight_error_by_layer,
    weight_error_figure,
    weight_error_statistics,
    weight_error_table,
)


def layer(name: str, scale: float, seed: int = 0, clip: float = math.inf) -> LayerWeights:
    rng = np.random.default_rng(seed)
    fp32 = rng.normal(0, 40 * scale, (200, 300)).astype(np.float32)
    grid = np.clip(np.round(fp32 / np.float32(scale)), -clip, clip)
    return LayerWeights(name, fp32, (grid * np.float32(scale)).astype(np.float32), scale)


def test_rounding_is_uniform_in_each_layer() -> None:
    table = weight_error_statistics([layer("a", 0.01), layer("b", 0.04, seed=1)])
    one = table.set_index("layer").loc["a"]
    assert one["sd"] == pytest.approx(0.01 / math.sqrt(12), rel=0.01)
    assert one["expected_sd"] == pytest.approx(0.01 / math.sqrt(12))
    assert one["excess_kurtosis"] == pytest.approx(-1.2, abs=0.02)
    assert one["ks_uniform"] < 0.01
    assert one["shapiro_p"] < 1e-10
    assert one["clipped"] == 0
    assert one["n"] == 60_000


def test_whole_model_is_a_mixture_that_looks_more_normal() -> None:
    layers = [layer(f"l{i}", 0.002 * 1.5**i, seed=i) for i in range(6)]
    table = weight_error_statistics(layers).set_index("layer")
    whole, parts = table.loc[WHOLE], table.drop(WHOLE)
    assert whole["n"] == parts["n"].sum()
    assert whole["excess_kurtosis"] > parts["excess_kurtosis"].max() + 0.5
    pooled = math.sqrt(np.mean([(0.002 * 1.5**i) ** 2 for i in range(6)]) / 12)
    assert whole["expected_sd"] == pytest.approx(pooled)
    assert whole["sd"] == pytest.approx(pooled, rel=0.01)
    # In units of its own step, the whole model is uniform too.
    assert whole["ks_uniform"] < 0.01


def test_clipping_shows() -> None:
    row = weight_error_statistics([layer("a", 0.01, clip=60)]).iloc[1]
    assert row["clipped"] == pytest.approx(2 * 0.0668, abs=0.01)  # P(|z| > 1.5)
    assert row["ks_uniform"] > 0.05


def test_per_channel_steps() -> None:
    rng = np.random.default_rng(0)
    step = np.array([[0.01], [0.1]])
    fp32 = rng.normal(0, 1, (2, 5000))
    found = weight_error_statistics([LayerWeights("a", fp32, np.round(fp32 / step) * step, step)])
    assert found["ks_uniform"].iloc[1] < 0.02
    assert found["expected_sd"].iloc[1] == pytest.approx(math.sqrt((0.01**2 + 0.1**2) / 2 / 12))


def test_correlation_is_pearsons() -> None:
    one = layer("a", 0.5)
    expected = np.corrcoef(one.fp32.ravel().astype(float), one.int8.ravel().astype(float))[0, 1]
    assert weight_error_statistics([one])["correlation"].iloc[0] == pytest.approx(expected)


def test_exact_weights_and_single_weights_have_no_shape() -> None:
    zeros = LayerWeights("a", np.zeros((4, 4)), np.zeros((4, 4)), 0.1)
    row = weight_error_statistics([zeros]).iloc[0]
    assert row["sd"] == 0
    assert math.isnan(row["shapiro_w"])
    assert math.isnan(row["correlation"])
    weight_error_figure([zeros]).canvas.draw()


def test_table_sets_the_papers_figures_apart() -> None:
    table = weight_error_table(weight_error_statistics([layer("a", 0.01)]), paper=True)
    assert {c for c in latex(table) if ord(c) > 0x7F} <= set("’“”")
    faint = [i for i, column in enumerate(table.columns) if column.faint]
    assert [table.rows[0][i] for i in faint] == ["2.7e-05", "7.8e-03"]
    assert [table.rows[1][i] for i in faint] == [None, None]
    ours = weight_error_table(weight_error_statistics([layer("a", 0.01)]))
    assert [c.name for c in ours.columns] == [c.name for c in table.columns if not c.faint]


def test_figure_has_four_panels_with_their_numbers() -> None:
    layers = [layer("a", 0.01), layer("b", 0.02, seed=1)]
    figure = weight_error_figure(layers)
    figure.canvas.draw()
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["(a) Error", "(b) Weights", "(c) Error by magnitude", "(d) Q–Q plot"]
    mixture = next(line for line in figure.axes[0].lines if "mixture" in line.get_label())
    x, density = mixture.get_data()
    # Both layers hold as many weights: inside ±0.005 half of 1/0.01 and of 1/0.02.
    assert density[np.argmin(np.abs(x))] == pytest.approx(75)
    assert density[np.argmin(np.abs(x - 0.0075))] == pytest.approx(25)


def test_wrong_shapes_are_told() -> None:
    with pytest.raises(DataError, match=r"layer a: FP32 weights \(2,\), INT8 weights \(3,\)"):
        LayerWeights("a", np.zeros(2), np.zeros(3), 1.0)
    with pytest.raises(DataError, match="at least one"):
        weight_error_statistics([])


def test_layers_stand_in_order_beside_the_whole_and_the_paper() -> None:
    table = weight_error_statistics([layer("a", 0.01), layer("b", 0.04, seed=1)])
    mean, sd, r = weight_error_by_layer(table, paper=True).axes
    dots = next(line for line in sd.lines if line.get_marker() == "o")
    assert list(dots.get_xdata()) == [1, 2]
    assert list(dots.get_ydata()) == pytest.approx(
        [0.01 / math.sqrt(12), 0.04 / math.sqrt(12)], rel=0.02
    )
    assert {text.get_text() for text in mean.get_legend().get_texts()} >= {
        "paper, whole model: 2.7e-05"
    }
    assert "paper, whole model: 7.8e-03" in {t.get_text() for t in sd.get_legend().get_texts()}
    assert r.get_yscale() == "log"
    for axes in weight_error_by_layer(table).axes:
        assert not any("paper" in text.get_text() for text in axes.get_legend().get_texts())


def test_a_step_a_weight_counts_like_a_step_a_layer() -> None:
    one = layer("a", 0.01)
    each = LayerWeights("a", one.fp32, one.int8, np.full(one.fp32.shape, 0.01))
    first, second = (weight_error_statistics([given]).iloc[0] for given in (one, each))
    assert second["expected_sd"] == pytest.approx(first["expected_sd"])
