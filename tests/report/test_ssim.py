"""SSIM maps of cut-outs."""

import numpy as np
import pytest

from adalora_qat.errors import DataError
from adalora_qat.phantom.phantom import phantom
from adalora_qat.report.ssim import SsimCase, ssim_figure, ssim_map

PHANTOM = phantom(1, side=96)
TRUTH = PHANTOM.masks["left_lung"] | PHANTOM.masks["right_lung"]


def test_equal_masks_are_one_everywhere() -> None:
    same = ssim_map(PHANTOM.image, TRUTH, TRUTH)
    assert same.mean == same.mean_inside == 1.0
    assert np.all(same.values == 1.0)


def test_only_the_neighbourhood_of_a_difference_falls() -> None:
    image = np.full((64, 64), 100, np.uint8)
    image[0, 0], image[0, 1] = 0, 255
    truth = np.zeros((64, 64), bool)
    truth[10:30, 10:30] = True
    wrong = truth.copy()
    wrong[20:24, 20:24] = False
    found = ssim_map(image, truth, wrong)
    assert found.values[21, 21] < 0.5
    # The window of σ 1.5 ends 5 pixels out (truncated at 3.5 σ).
    assert np.all(found.values[34:, 34:] == 1.0)
    assert found.mean_inside < found.mean < 1


def test_one_pixel_agrees_with_the_formula() -> None:
    """Wang et al. 2004, Eq. 13, with the window's sums written out."""
    rng = np.random.default_rng(0)
    image = rng.random((21, 21))
    image = (image - image.min()) / np.ptp(image)
    truth = rng.random((21, 21)) > 0.3
    guess = rng.random((21, 21)) > 0.3
    reach = np.arange(-5, 6)
    line = np.exp(-(reach**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    x, y = (image * truth)[5:16, 5:16], (image * guess)[5:16, 5:16]
    mx, my = (window * x).sum(), (window * y).sum()
    vx, vy = (window * x * x).sum() - mx**2, (window * y * y).sum() - my**2
    cov = (window * x * y).sum() - mx * my
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert ssim_map(image, truth, guess).values[10, 10] == pytest.approx(expected, abs=1e-6)


def test_both_empty_agree() -> None:
    empty = np.zeros_like(TRUTH)
    assert ssim_map(PHANTOM.image, empty, empty).mean_inside == 1.0


def test_sizes_must_agree() -> None:
    with pytest.raises(DataError, match=r"image \(96, 96\), truth \(8, 8\)"):
        ssim_map(PHANTOM.image, np.zeros((8, 8), bool), TRUTH)
    with pytest.raises(DataError, match="11 × 11"):
        ssim_map(np.ones((8, 8)), np.ones((8, 8), bool), np.ones((8, 8), bool))


def test_figure_has_five_pictures_a_row_and_one_scale() -> None:
    shifted = np.roll(TRUTH, 2, axis=1)
    cases = [SsimCase("p/1", PHANTOM.image, TRUTH, shifted, TRUTH),
             SsimCase("p/2", PHANTOM.image, TRUTH, TRUTH, TRUTH)]  # fmt: skip
    figure = ssim_figure(cases, "base", "INT8")
    figure.canvas.draw()
    pictures = [axes for axes in figure.axes if axes.images]
    assert len(pictures) == 10
    assert [axes.get_title(loc="left") for axes in pictures[:5]] == [
        "Input", "Truth", "SSIM\nbase", "SSIM\nINT8", "ΔSSIM",
    ]  # fmt: skip
    assert pictures[4].images[0].get_clim() == pictures[9].images[0].get_clim()
    gained = pictures[4].images[0].get_array()
    assert gained.min() >= 0
    assert gained.max() > 0.1
    with pytest.raises(DataError, match="at least one case"):
        ssim_figure([])
