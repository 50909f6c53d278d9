"""The error that INT8 leaves in the weights, and whether it is what theory says (Fig. 3).

The paper calls FP32–INT8 weight error "approximately zero-mean Gaussian". Rounding to a
grid of step s errs uniformly in [−s/2, s/2], with standard deviation s/√12 (Bennett 1948,
Bell Syst Tech J 27:446); nothing in one layer is Gaussian. Layers have different steps, and
a mixture of uniforms of different widths is peaked with shrinking tails: it *looks* bell-
shaped over a whole model. So we report the Gaussian fit as the paper does, a normality
statistic that can fail, and beside it how far each layer is from the uniform it should be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from adalora_qat.errors import DataError
from adalora_qat.report.paper import WEIGHT_ERROR_MEAN, WEIGHT_ERROR_SD
from adalora_qat.report.style import BLUE, FAINT, ORANGE, VERMILION, canvas, house_style
from adalora_qat.report.tables import Column, Table, Value

Reals = NDArray[np.float64]

WHOLE: Final = "whole model"
SAMPLE: Final = 5000
"""Shapiro–Wilk is not defined far beyond this; at millions of weights any test rejects."""


@dataclass(frozen=True)
class LayerWeights:
    """One layer's weights before and after quantization.

    Attributes
    ----------
    name : the layer.
    fp32 : any shape.
    int8 : the same shape, integers times scale: what the INT8 model computes with.
    step : the grid's step (the scale), () per tensor or broadcastable against the weights.
    """

    name: str
    fp32: NDArray[np.floating[Any]]
    int8: NDArray[np.floating[Any]]
    step: NDArray[np.floating[Any]] | float

    def __post_init__(self) -> None:
        if self.fp32.shape != self.int8.shape:
            raise DataError(
                f"layer {self.name}: FP32 weights {self.fp32.shape}, INT8 weights "
                f"{self.int8.shape}; give the dequantized weights of the same layer"
            )

    @property
    def error(self) -> Reals:
        """INT8 − FP32, flat."""
        return np.asarray(self.int8, np.float64).ravel() - np.asarray(self.fp32, np.float64).ravel()

    @property
    def error_in_steps(self) -> Reals:
        """The error over the step, flat: uniform in [−½, ½] if rounding is all there is."""
        steps = np.broadcast_to(np.asarray(self.step, np.float64), self.fp32.shape).ravel()
        return self.error / steps


def weight_error_statistics(layers: Sequence[LayerWeights], seed: int = 0) -> pd.DataFrame:
    """Summarise the error of the whole model (first row) and of each layer.

    Returns
    -------
    Columns layer, n, mean, sd, expected_sd (s/√12, pooled over steps), correlation (Pearson,
    FP32 with INT8), excess_kurtosis (0 for a normal, −1.2 for a uniform), shapiro_w and
    shapiro_p (normality, on a sample of 5,000), ks_uniform (largest distance of the error in
    steps from the uniform distribution; 0 is exact), clipped (share of errors beyond half
    a step).

    Raises
    ------
    DataError
        If there is no layer.
    """
    if not layers:
        raise DataError("weight error needs at least one quantized layer")
    rng = np.random.default_rng(seed)
    rows = [_statistics(WHOLE, _pooled(layers), rng)]
    rows += [_statistics(layer.name, _pooled([layer]), rng) for layer in layers]
    return pd.DataFrame(rows)


def weight_error_table(statistics: pd.DataFrame, *, paper: bool = False) -> Table:
    """Return the statistics; ``paper`` sets its μ and σ beside the whole model's."""
    rows: list[tuple[Value, ...]] = []
    for row in statistics.to_dict("records"):
        whole = row["layer"] == WHOLE
        cells: list[Value] = [
            row["layer"], int(row["n"]), f"{row['mean']:.2e}", f"{row['sd']:.2e}",
            f"{row['expected_sd']:.2e}", row["correlation"], row["excess_kurtosis"],
            row["shapiro_w"], row["ks_uniform"],
        ]  # fmt: skip
        if paper:
            theirs = (WEIGHT_ERROR_MEAN, WEIGHT_ERROR_SD)
            cells += [f"{value:.1e}" if whole else None for value in theirs]
        rows.append(tuple(cells))
    columns = [
        Column("Layer"), Column("Weights"), Column("μ"), Column("σ"), Column("s/√12"),
        Column("r", 5), Column("Excess kurtosis", 2), Column("Shapiro W", 4),
        Column("KS to uniform", 3),
    ]  # fmt: skip
    if paper:
        columns += [Column("μ, paper", faint=True), Column("σ, paper", faint=True)]
    caption = (
        "Error = INT8 − FP32 weight. Rounding alone gives σ = s/√12, excess kurtosis −1.2 and "
        "KS 0 in every layer; a normal distribution gives kurtosis 0 and W = 1. σ follows the "
        "weights' scale, so it compares across models of one architecture only. Shapiro’s W on "
        f"{SAMPLE:,} weights drawn at random."
    )
    return Table("weight-error", "Quantization error of the weights", caption,
                 tuple(columns), tuple(rows), frozenset({0}))  # fmt: skip


def weight_error_figure(layers: Sequence[LayerWeights], seed: int = 0) -> Figure:
    """Draw (a) histogram with fitted normal, (b) FP32 against INT8, (c) error by magnitude,
    (d) normal Q–Q plot, of all layers together (give one layer for its own figure).
    """
    whole = _pooled(layers)
    drawn = np.random.default_rng(seed).permutation(len(whole.error))[:200_000]
    with house_style():
        figure = canvas(7.2, 5.6)
        panels = figure.subplots(2, 2)
        _histogram(panels[0, 0], whole)
        _scatter(panels[0, 1], whole, drawn)
        _by_magnitude(panels[1, 0], whole)
        _quantiles(panels[1, 1], whole, drawn)
    return figure


def weight_error_by_layer(statistics: pd.DataFrame, *, paper: bool = False) -> Figure:
    """Draw μ, σ (beside s/√12) and r of each layer in the model's order, and of the whole model.

    Parameters
    ----------
    statistics : as from ``weight_error_statistics``.
    paper : also draw the paper's μ and σ.
    """
    whole = statistics[statistics["layer"] == WHOLE].iloc[0]
    layers = statistics[statistics["layer"] != WHOLE].reset_index(drop=True)
    place = np.arange(1, len(layers) + 1)
    with house_style():
        figure = canvas(7.2, 5.4)
        mean, sd, r = figure.subplots(3, 1, sharex=True)
        mean.plot(place, layers["mean"], "o", color=BLUE, markersize=3)
        mean.axhline(whole["mean"], color=VERMILION, linewidth=1.1, linestyle="--",
                     label=f"whole model: {whole['mean']:.1e}")  # fmt: skip
        mean.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        sd.plot(place, layers["expected_sd"], color=ORANGE, linestyle=":", label="s/√12")
        sd.plot(place, layers["sd"], "o", color=BLUE, markersize=3)
        sd.axhline(whole["sd"], color=VERMILION, linewidth=1.1, linestyle="--",
                   label=f"whole model: {whole['sd']:.1e}")  # fmt: skip
        for axes, value in ((mean, WEIGHT_ERROR_MEAN), (sd, WEIGHT_ERROR_SD)):
            if paper:
                axes.axhline(value, color=FAINT, linewidth=1.0, linestyle=":",
                             label=f"paper, whole model: {value:.1e}")  # fmt: skip
        sd.set_yscale("log")
        r.plot(place, 1 - layers["correlation"], "o", color=BLUE, markersize=3)
        r.axhline(1 - whole["correlation"], color=VERMILION, linewidth=1.1, linestyle="--",
                  label=f"whole model: r = {whole['correlation']:.6f}")  # fmt: skip
        r.set_yscale("log")
        r.set_xlabel("Layer, in the model's order (names in the table)")
        labels = ("μ of the error", "σ of the error", "1 − r, FP32 with INT8")
        for axes, label in zip((mean, sd, r), labels, strict=True):
            axes.set_ylabel(label)
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=7.5)
    return figure


@dataclass(frozen=True)
class _Pool:
    fp32: Reals
    error: Reals
    in_steps: Reals
    # (step, number of weights with it): all the mixture of uniforms needs.
    steps: tuple[tuple[float, int], ...]


def _pooled(layers: Sequence[LayerWeights]) -> _Pool:
    steps: dict[float, int] = {}
    for layer in layers:
        # A step a weight (groups) would be millions of entries: count the distinct ones.
        values, times = np.unique(np.asarray(layer.step, np.float64), return_counts=True)
        weights = layer.fp32.size // int(times.sum())
        for value, count in zip(values.tolist(), times.tolist(), strict=True):
            steps[value] = steps.get(value, 0) + count * weights
    return _Pool(
        np.concatenate([np.asarray(layer.fp32, np.float64).ravel() for layer in layers]),
        np.concatenate([layer.error for layer in layers]),
        np.concatenate([layer.error_in_steps for layer in layers]),
        tuple(steps.items()),
    )


def _statistics(name: str, pool: _Pool, rng: np.random.Generator) -> dict[str, Any]:
    error, n = pool.error, len(pool.error)
    sample = error if n <= SAMPLE else rng.choice(error, SAMPLE, replace=False)
    varied = n >= 3 and float(np.ptp(sample)) > 0
    shapiro = stats.shapiro(sample) if varied else (math.nan, math.nan)
    weights = np.array([count for _, count in pool.steps], np.float64)
    squares = np.array([step for step, _ in pool.steps]) ** 2
    return {
        "layer": name,
        "n": n,
        "mean": float(error.mean()),
        "sd": float(error.std()),
        "expected_sd": math.sqrt(float((weights * squares).sum() / weights.sum()) / 12),
        "correlation": _correlation(pool),
        "excess_kurtosis": float(stats.kurtosis(error)) if varied else math.nan,
        "shapiro_w": float(shapiro[0]),
        "shapiro_p": float(shapiro[1]),
        "ks_uniform": _distance_to_uniform(pool.in_steps),
        # A float32 multiplication may land a hair beyond half a step.
        "clipped": float((np.abs(pool.in_steps) > 0.5 + 1e-3).mean()),
    }


def _correlation(pool: _Pool) -> float:
    int8 = pool.fp32 + pool.error
    if len(int8) < 2 or not float(np.ptp(int8)) or not float(np.ptp(pool.fp32)):
        return math.nan
    return float(np.corrcoef(pool.fp32, int8)[0, 1])


def _distance_to_uniform(in_steps: Reals) -> float:
    """Return the Kolmogorov–Smirnov distance to the uniform distribution on [−½, ½]."""
    found = np.sort(in_steps)
    expected = np.clip(found + 0.5, 0, 1)
    n = len(found)
    above = (np.arange(1, n + 1) / n - expected).max()
    below = (expected - np.arange(n) / n).max()
    return float(max(above, below))


def _histogram(axes: Axes, pool: _Pool) -> None:
    mean, sd = float(pool.error.mean()), float(pool.error.std())
    reach = max(float(np.quantile(np.abs(pool.error), 0.9995)), 1e-12)
    x = np.linspace(-reach, reach, 401)
    axes.hist(pool.error, bins=101, range=(-reach, reach), density=True, color=BLUE, alpha=0.35)
    axes.plot(x, stats.norm.pdf(x, mean, sd or 1.0), color=VERMILION, linestyle="--",
              label=f"normal fit: μ = {mean:.1e}, σ = {sd:.1e}")  # fmt: skip
    axes.plot(
        x, _mixture(x, pool), color="#1b2027", linewidth=1.1, label="rounding: mixture of uniforms"
    )
    axes.set(title="(a) Error", xlabel="INT8 − FP32", ylabel="Density")
    axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
    # Room above the curve for the legend.
    axes.set_ylim(0, axes.get_ylim()[1] * 1.28)
    axes.legend(loc="upper center", fontsize=7.5)


def _mixture(x: Reals, pool: _Pool) -> Reals:
    total = sum(count for _, count in pool.steps)
    density = np.zeros_like(x)
    for step, count in pool.steps:
        density += (np.abs(x) <= step / 2) * (count / total / step)
    return density


def _scatter(axes: Axes, pool: _Pool, drawn: NDArray[np.intp]) -> None:
    fp32, int8 = pool.fp32[drawn], (pool.fp32 + pool.error)[drawn]
    axes.hist2d(fp32, int8, bins=160, norm=LogNorm(), cmap="viridis", rasterized=True)
    ends = [float(fp32.min()), float(fp32.max())]
    axes.plot(ends, ends, color=FAINT, linewidth=0.7)
    axes.set(title="(b) Weights", xlabel="FP32", ylabel="INT8")
    text = f"r = {_correlation(pool):.5f}"
    axes.text(0.04, 0.94, text, transform=axes.transAxes, va="top")


def _by_magnitude(axes: Axes, pool: _Pool) -> None:
    magnitude = np.abs(pool.fp32)
    edges = np.unique(np.quantile(magnitude, np.linspace(0, 1, 21)))
    if len(edges) < 2:
        edges = np.array([0.0, max(float(magnitude.max()), 1e-12)])
    place = np.clip(np.searchsorted(edges, magnitude, side="right") - 1, 0, len(edges) - 2)
    groups = pd.Series(pool.error).groupby(place)
    middle = pd.Series(magnitude).groupby(place).median()
    low, high = groups.quantile(0.05), groups.quantile(0.95)
    axes.fill_between(middle, low, high, color=BLUE, alpha=0.2, label="5th to 95th percentile")
    axes.plot(middle, groups.mean(), color=BLUE, marker="o", markersize=3, label="mean")
    axes.axhline(0, color=FAINT, linewidth=0.7)
    axes.set(
        title="(c) Error by magnitude",
        xlabel="|FP32 weight| (20 equal groups)",
        ylabel="INT8 − FP32",
    )
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.legend(loc="best", fontsize=7.5)


def _quantiles(axes: Axes, pool: _Pool, drawn: NDArray[np.intp]) -> None:
    error = np.sort(pool.error[drawn])
    probability = np.concatenate([np.linspace(0.0005, 0.02, 60), np.linspace(0.02, 0.98, 200),
                                  np.linspace(0.98, 0.9995, 60)])  # fmt: skip
    normal = stats.norm.ppf(probability)
    found = np.quantile(error, probability)
    sd = float(pool.error.std()) or 1.0
    standard = (found - float(pool.error.mean())) / sd
    reach = [float(normal.min()), float(normal.max())]
    axes.plot(reach, reach, color=FAINT, linewidth=0.9, label="normal")
    uniform = (probability - 0.5) * math.sqrt(12)
    axes.plot(normal, uniform, color=ORANGE, linestyle=":", label="one uniform")
    axes.plot(normal, standard, ".", color=BLUE, markersize=3, label="weights")
    axes.set(title="(d) Q–Q plot", xlabel="Normal quantile", ylabel="Error quantile (σ)")
    axes.legend(loc="upper left", fontsize=7.5)
