"""Structural similarity maps of what two models cut out (the paper's Fig. 2).

The paper does not say which images its SSIM maps compare. Ours compare the image with
everything outside the *true* mask blackened against the same image with everything outside
the *predicted* mask blackened. Where both masks agree the map is 1; where one holds tissue
that the other does not, it falls, and the more so the more structure is there (a missed
vessel costs more than missed air). Comparing bare masks would ignore the image; comparing
whole images would compare an image with itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from adalora_qat.errors import DataError
from adalora_qat.report.style import BLUE, GREEN, VERMILION, bare, canvas, house_style

Mask = NDArray[np.bool_]
Map = NDArray[np.float32]

# scikit-image ships types without its functions being typed.
_similarity: Any = structural_similarity

SIGMA_PX: Final = 1.5
"""Gaussian window of Wang et al. 2004 (IEEE Trans Image Process 13:600), in pixels."""
CHANGE: Final = LinearSegmentedColormap.from_list("loss-gain", [VERMILION, "#f7f7f7", BLUE])
"""Losses vermilion, gains blue: the paper's red and green are one colour to some readers."""


@dataclass(frozen=True)
class SsimMap:
    """Local SSIM of a predicted against a true cut-out.

    Attributes
    ----------
    values : (H, W) float32 in [-1, 1].
    mean : over the whole image (mostly 1: the black outside agrees by construction).
    mean_inside : over the union of both masks, which is what can differ.
    """

    values: Map
    mean: float
    mean_inside: float


@dataclass(frozen=True)
class SsimCase:
    """One row of the figure.

    Attributes
    ----------
    id : name of the case.
    image : (H, W) grey.
    truth, baseline, quantized : (H, W) bool.
    """

    id: str
    image: NDArray[Any]
    truth: Mask
    baseline: Mask
    quantized: Mask


def ssim_map(image: NDArray[Any], truth: Mask, prediction: Mask) -> SsimMap:
    """Compare the cut-out of a predicted mask with that of the true one.

    Parameters
    ----------
    image : (H, W) grey, at least 11 pixels each way; its own range becomes [0, 1].
    truth, prediction : (H, W) bool.

    Raises
    ------
    DataError
        If sizes differ or the image is smaller than the window.
    """
    if not image.shape == truth.shape == prediction.shape or image.ndim != 2:
        raise DataError(
            f"SSIM needs one size: image {image.shape}, truth {truth.shape}, "
            f"prediction {prediction.shape}"
        )
    if min(image.shape) < 11:
        raise DataError(f"SSIM needs at least 11 × 11 pixels, got {image.shape}")
    grey = image.astype(np.float64)
    grey = (grey - grey.min()) / max(float(np.ptp(grey)), 1e-12)
    mean, values = _similarity(
        grey * truth,
        grey * prediction,
        data_range=1.0,
        gaussian_weights=True,
        sigma=SIGMA_PX,
        use_sample_covariance=False,
        full=True,
    )
    union = truth | prediction
    inside = float(values[union].mean()) if union.any() else 1.0
    return SsimMap(values.astype(np.float32), float(mean), inside)


def ssim_figure(
    cases: Sequence[SsimCase], baseline: str = "Baseline", quantized: str = "Quantized"
) -> Figure:
    """Draw input, truth, both SSIM maps and ΔSSIM (quantized − baseline), a row a case.

    Raises
    ------
    DataError
        If there is no case.
    """
    if not cases:
        raise DataError("the SSIM figure needs at least one case")
    heads = ("Input", "Truth", f"SSIM\n{baseline}", f"SSIM\n{quantized}", "ΔSSIM")
    pairs = [
        (ssim_map(c.image, c.truth, c.baseline), ssim_map(c.image, c.truth, c.quantized))
        for c in cases
    ]
    # One scale for all rows, or rows could not be compared; at least 0.1, or noise glows.
    limit = max(0.1, *(float(np.abs(q.values - b.values).max()) for b, q in pairs))
    with house_style():
        figure = canvas(9.2, 0.95 + 2.0 * len(cases))
        places = figure.add_gridspec(len(cases) + 1, 5, height_ratios=[1] * len(cases) + [0.06])
        for index, (case, (base, quant)) in enumerate(zip(cases, pairs, strict=True)):
            row = [figure.add_subplot(places[index, column]) for column in range(5)]
            _draw_row(row, case, base, quant, limit)
            if not index:
                for axes, head in zip(row, heads, strict=True):
                    axes.set_title(head)
        for picture, where, label in (
            (row[3].images[0], places[-1, 2:4], "SSIM (1: the same)"),
            (row[4].images[0], places[-1, 4], "loss     ΔSSIM     gain"),
        ):
            bar = figure.colorbar(
                picture, cax=figure.add_subplot(where), orientation="horizontal", label=label
            )
            bar.outline.set_visible(False)
    return figure


def _draw_row(row: Any, case: SsimCase, base: SsimMap, quant: SsimMap, limit: float) -> None:
    for axes in row:
        bare(axes)
    for axes in row[:2]:
        axes.imshow(case.image, cmap="gray")
    row[1].contour(case.truth, levels=[0.5], colors=[GREEN], linewidths=1.2)
    for axes, shown in ((row[2], base), (row[3], quant)):
        axes.imshow(shown.values, cmap="magma", vmin=0, vmax=1)
        axes.set_xlabel(f"mean {shown.mean:.4f}, in masks {shown.mean_inside:.4f}", fontsize=7)
    row[4].imshow(quant.values - base.values, cmap=CHANGE, vmin=-limit, vmax=limit)
    row[4].set_xlabel(f"mean in masks {quant.mean_inside - base.mean_inside:+.4f}", fontsize=7)
    row[0].set_ylabel(case.id, fontsize=7)
    row[0].set_xlabel(" ", fontsize=7)
    row[1].set_xlabel(" ", fontsize=7)
