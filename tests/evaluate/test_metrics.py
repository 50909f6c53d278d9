import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import directed_hausdorff

from adalora_qat.errors import DataError
from adalora_qat.evaluate.contours import contour_distances
from adalora_qat.evaluate.metrics import METRICS, band_px, case_metrics, dice

Mask = NDArray[np.bool_]
H, R2, TRI = math.sqrt(0.5), math.sqrt(2), math.sqrt(3) / 8
NSD, MED, HD, ASSD, BIOU = (
    "nsd_deepmind2d_2px",
    "nsd_medsam_2px",
    "hd95_px",
    "assd_px",
    "boundary_iou",
)


def drawn(text: str) -> Mask:
    return np.array([[c == "#" for c in row] for row in text.split("/")])


def bar(start: int, length: int, width: int, height: int = 1) -> str:
    row = "." * start + "#" * length + "." * (width - start - length)
    return "/".join([row] * height)


PERFECT = dict.fromkeys(("dsc", "iou", "precision", "recall", NSD, MED, BIOU), 1.0) | {
    HD: 0.0,
    ASSD: 0.0,
}
FAILED = dict.fromkeys(("dsc", "iou", "precision", "recall", NSD, MED, BIOU), 0.0)
BOX = "####/####/####/####"
INNER = "..../.##./.##./...."

# (truth, prediction, expectation worked out by hand on squared paper: contour elements lie on
# pixel corners, √½ long at a corner of the shape and 1 along an edge).
HAND: dict[str, tuple[str, str, dict[str, float]]] = {
    "one pixel, found": ("#", "#", PERFECT),
    "whole image, found": ("###/###/###", "###/###/###", PERFECT),
    "square, found": (INNER, INNER, PERFECT),
    "two components, found": ("#.#/...", "#.#/...", PERFECT),
    "ring, found": ("###/#.#/###", "###/#.#/###", PERFECT),
    "both empty": (".../...", ".../...", PERFECT),
    "truth empty": ("..../..../....", "..../.#../....", FAILED | {HD: 5.0, ASSD: 5.0}),
    "prediction empty": ("..../.#../....", "..../..../....", FAILED | {HD: 5.0, ASSD: 5.0}),
    "half of two pixels": (
        "##", "#.",
        {"dsc": 2 / 3, "iou": 1 / 2, "precision": 1, "recall": 1 / 2, NSD: 1, HD: 1,
         # two corners of √½ each lie one pixel off; contours 4·√½ + 2 and 4·√½ long
         ASSD: 2 * H / (8 * H + 2)},
    ),
    "twice one pixel": (
        "#.", "##",
        {"dsc": 2 / 3, "iou": 1 / 2, "precision": 1 / 2, "recall": 1, HD: 1,
         ASSD: 2 * H / (8 * H + 2)},
    ),
    "apart by one": (
        "#..", "..#",
        {"dsc": 0, "iou": 0, "precision": 0, "recall": 0, NSD: 1, MED: 0, HD: 2, ASSD: 1.5,
         BIOU: 0},
    ),
    "apart by two": ("#...", "...#", {"dsc": 0, NSD: 0.5, MED: 0, HD: 3, ASSD: 2.5}),
    "apart by three": ("#....", "....#", {"dsc": 0, NSD: 0, MED: 0, HD: 4, ASSD: 3.5}),
    "apart by four rows": (
        "#/././././.", "./././././#", {"dsc": 0, "iou": 0, NSD: 0, HD: 5, ASSD: 4.5},
    ),
    "opposite diagonals": (
        "#./.#", ".#/#.",
        # of 6 corners √½ and a centre 2·√½, two corners lie one pixel off: a quarter
        {"dsc": 0, "iou": 0, NSD: 1, HD: 1, ASSD: 0.25},
    ),
    "a corner missing": (
        "##/#.", "##/##",
        {"dsc": 6 / 7, "iou": 3 / 4, "precision": 3 / 4, "recall": 1, NSD: 1, HD: 1,
         ASSD: 2 * H / ((6 * H + 2) + (4 * H + 4))},
    ),
    "a corner too much": (
        "##/##", "##/#.",
        {"dsc": 6 / 7, "iou": 3 / 4, "precision": 1, "recall": 3 / 4, HD: 1,
         ASSD: 2 * H / ((6 * H + 2) + (4 * H + 4))},
    ),
    "core of a square": (
        BOX, INNER,
        {"dsc": 2 * 4 / 20, "iou": 1 / 4, "precision": 1, "recall": 1 / 4, NSD: 1, MED: 1,
         HD: R2, ASSD: (12 + 4 * H * R2 + 4 * H + 4) / ((4 * H + 12) + (4 * H + 4)),
         BIOU: 0},  # bands: the ring of 12 and the core of 4
    ),
    "square round a core": (INNER, BOX, {"dsc": 0.4, "precision": 1 / 4, "recall": 1, HD: R2}),
    "hole filled": (
        "###/#.#/###", "###/###/###",
        # the hole's four corners are √½ each; each lies one pixel from the outer contour
        {"dsc": 16 / 17, "iou": 8 / 9, "precision": 8 / 9, "recall": 1, NSD: 1, HD: 1,
         ASSD: 4 * H / ((8 * H + 8) + (4 * H + 8)), BIOU: 1.0},
    ),
    "hole missed": ("###/###/###", "###/#.#/###", {"dsc": 16 / 17, "recall": 8 / 9, HD: 1}),
    "a speck far off": (
        "##......./##.......", "##......#/##.......",
        {"dsc": 8 / 9, "iou": 4 / 5, "precision": 4 / 5, "recall": 1,
         # speck: 4 corners √½, at 6 and 7 px; the rest 4·√½ + 4 on both sides agrees
         NSD: 2 * (4 * H + 4) / (2 * (4 * H + 4) + 4 * H), HD: 7,
         ASSD: 2 * H * (6 + 7) / (2 * (4 * H + 4) + 4 * H)},
    ),
    "bar of ten, first three": (
        bar(0, 10, 10), bar(0, 3, 10),
        {"dsc": 6 / 13, "iou": 3 / 10, "precision": 1, "recall": 3 / 10,
         # per side of the bar: truth √½ + 9 + √½, of which √½ + 5 within 2; prediction all
         NSD: (H + 5 + 2 * H + 2) / (2 * H + 9 + 2 * H + 2),
         # one-slice volume: triangle at the ends, √½ along the side
         MED: (TRI + 5 * H + 2 * TRI + 2 * H) / (4 * TRI + 11 * H), HD: 7},
    ),
    "DSC just at the MedSAM threshold": (bar(0, 9, 9), bar(0, 1, 9), {"dsc": 0.2, MED: 0}),
    "DSC just above it": (
        bar(0, 8, 8), bar(0, 1, 8),
        {"dsc": 2 / 9, MED: (TRI + 3 * H + 2 * TRI) / (4 * TRI + 7 * H)},
    ),
    "square moved by 1": (
        bar(0, 4, 8, 4), bar(1, 4, 8, 4),
        # left edge 3 + 2·√½ and right edge 3 of a contour of 12 + 4·√½ lie one pixel off
        {"dsc": 3 / 4, "iou": 12 / 20, "precision": 3 / 4, "recall": 3 / 4, NSD: 1, HD: 1,
         ASSD: (6 + 2 * H) / (12 + 4 * H)},
    ),
    "square moved by 2": (bar(0, 4, 8, 4), bar(2, 4, 8, 4), {"dsc": 1 / 2, "iou": 8 / 24, HD: 2}),
    "square moved by 3": (bar(0, 4, 8, 4), bar(3, 4, 8, 4), {"dsc": 1 / 4, "iou": 4 / 28, HD: 3}),
    "square moved by 4": (bar(0, 4, 8, 4), bar(4, 4, 8, 4), {"dsc": 0, "iou": 0, MED: 0, HD: 4}),
    "three of four rows": (
        "####/####/####/####", "####/####/####/....",
        {"dsc": 24 / 28, "iou": 3 / 4, "precision": 1, "recall": 3 / 4, NSD: 1, HD: 1},
    ),
    "nothing in common, touching": (
        "##../##..", "..##/..##", {"dsc": 0, "iou": 0, MED: 0, HD: 2, NSD: 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HAND)
def test_by_hand(name: str) -> None:
    truth, prediction, expected = HAND[name]
    found = case_metrics(drawn(truth), drawn(prediction))
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-12)


def test_there_are_thirty_by_hand() -> None:
    assert len(HAND) >= 30


def pairs(count: int, seed: int = 0) -> Iterator[tuple[Mask, Mask]]:
    """Blobs, specks and near misses up to 40 pixels, many touching the edge of the image."""
    rng = np.random.default_rng(seed)
    while count:
        size = rng.integers(2, 40, 2)
        fields = [ndimage.gaussian_filter(rng.random(size), rng.uniform(0.1, 3)) for _ in "tp"]
        truth, prediction = (f > np.quantile(f, rng.uniform(0.2, 0.9)) for f in fields)
        if rng.random() < 0.5:
            prediction = truth ^ (rng.random(size) < rng.uniform(0, 0.1))
        if truth.any() and prediction.any():
            count -= 1
            yield truth, prediction


def test_overlap_of_a_thousand_random_pairs_by_sets_of_pixels() -> None:
    for truth, prediction in pairs(1000):
        t, p = ({*zip(*np.nonzero(m), strict=True)} for m in (truth, prediction))
        found = case_metrics(truth, prediction)
        assert found["dsc"] == dice(truth, prediction) == 2 * len(t & p) / (len(t) + len(p))
        assert found["iou"] == len(t & p) / len(t | p)
        assert found["precision"] == len(t & p) / len(p)
        assert found["recall"] == len(t & p) / len(t)


def test_distances_of_a_thousand_random_pairs_as_surface_distance() -> None:
    reference = pytest.importorskip("surface_distance")
    rng = np.random.default_rng(1)
    for number, (truth, prediction) in enumerate(pairs(1000, seed=1)):
        spacing = (1.0, 1.0) if number % 2 else (rng.uniform(0.2, 2), rng.uniform(0.2, 2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            flat = reference.compute_surface_distances(truth, prediction, spacing)
            slab = reference.compute_surface_distances(
                truth[..., None], prediction[..., None], (1, 1, 1)
            )
        found = case_metrics(truth, prediction, spacing)
        names = ("nsd_deepmind2d_2mm", "hd95_mm", "assd_mm", MED)
        ours = tuple(found[name] for name in names)
        lengths = flat["surfel_areas_gt"], flat["surfel_areas_pred"]
        total = flat["distances_gt_to_pred"] @ lengths[0]
        total += flat["distances_pred_to_gt"] @ lengths[1]
        solid = reference.compute_surface_dice_at_tolerance(slab, 2)
        theirs = (
            reference.compute_surface_dice_at_tolerance(flat, 2),
            reference.compute_robust_hausdorff(flat, 95),
            total / (lengths[0].sum() + lengths[1].sum()),
            solid if reference.compute_dice_coefficient(truth, prediction) > 0.2 else 0.0,
        )
        assert ours == pytest.approx(theirs, abs=1e-6)


def corners(mask: Mask) -> NDArray[np.intp]:
    """Pixel corners between foreground and background, found one by one."""
    padded = np.pad(mask, 1)
    rows, columns = (range(n - 1) for n in padded.shape)
    return np.array(
        [(r, c) for r in rows for c in columns if 0 < padded[r : r + 2, c : c + 2].sum() < 4]
    )


def test_hausdorff_as_scipy_on_the_contour_points() -> None:
    for truth, prediction in pairs(100, seed=2):
        t, p = corners(truth), corners(prediction)
        expected = max(directed_hausdorff(t, p)[0], directed_hausdorff(p, t)[0])
        assert contour_distances(truth, prediction).hausdorff(100) == pytest.approx(expected)


def test_monai_agrees_in_subvoxel_mode_and_by_a_pixel_or_so_else() -> None:
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.metrics")
    gaps = []
    for truth, prediction in pairs(60, seed=3):
        t, p = (torch.from_numpy(m)[None, None].float() for m in (truth, prediction))
        common: dict[str, Any] = {"include_background": True}
        theirs = monai.compute_surface_dice(p, t, [2.0], use_subvoxels=True, **common)
        found = case_metrics(truth, prediction)
        assert found[NSD] == pytest.approx(theirs.item(), abs=1e-6)
        assert found["dsc"] == pytest.approx(monai.compute_dice(p, t, **common).item(), abs=1e-6)
        assert found["iou"] == pytest.approx(monai.compute_iou(p, t, **common).item(), abs=1e-6)
        mean = monai.compute_average_surface_distance(p, t, symmetric=True, **common)
        far = monai.compute_hausdorff_distance(p, t, percentile=95, **common)
        gaps.append((found[ASSD] - mean.item(), found[HD] - far.item()))
    # Other contour points (pixels, not corners), no lengths, an interpolated percentile.
    largest = np.abs(gaps).max(axis=0)
    assert 0.01 < largest[0] < 1.5
    assert 0.01 < largest[1] < 3


def test_the_two_nsd_are_not_comparable() -> None:
    rows, columns = np.mgrid[:256, :256] - 127.5
    truth = (rows / 110) ** 2 + (columns / 70) ** 2 <= 1
    shrunk = (rows / 104) ** 2 + (columns / 66) ** 2 <= 1
    found = case_metrics(truth, shrunk)
    assert found[NSD] < 0.1
    assert found[MED] > 0.95


def test_boundary_iou_by_counting() -> None:
    # 100 × 100 pixels: diagonal 141.4, band 3. Squares of 20 and of 20 moved by 1: rings of
    # 20² − 14² = 204 pixels; the overlap is counted column by column.
    truth, prediction = np.zeros((100, 100), bool), np.zeros((100, 100), bool)
    truth[10:30, 10:30] = True
    prediction[10:30, 11:31] = True
    assert band_px((100, 100)) == 3
    # Columns 11–12 and 28–29: full (20); 10 and 30 in one only. Column 13: truth rim only
    # top and bottom (6), prediction full; 27: the other way round; 14–26: 6 each.
    shared = 4 * 20 + 2 * 6 + 13 * 6
    assert case_metrics(truth, prediction)[BIOU] == shared / (2 * 204 - shared)


def test_boundary_iou_takes_the_image_edge_as_contour() -> None:
    truth = np.ones((6, 6), bool)
    prediction = truth.copy()
    prediction[2:4, 2:4] = False  # bands: outer ring of 20 and, of the ring, all 32
    assert case_metrics(truth, prediction)[BIOU] == 20 / 32


def test_millimetres_come_with_a_spacing_only() -> None:
    truth, prediction = drawn("#...."), drawn("....#")
    assert not [name for name in case_metrics(truth, prediction) if name.endswith("mm")]
    found = case_metrics(truth, prediction, (2.0, 0.5))
    assert (found["hd95_mm"], found["assd_mm"]) == (2.0, 1.75)
    assert (found["nsd_deepmind2d_2mm"], found["nsd_deepmind2d_2px"]) == (1.0, 0.0)
    found = case_metrics(truth.T.copy(), prediction.T.copy(), (2.0, 0.5))
    assert (found["hd95_mm"], found["assd_mm"], found["nsd_deepmind2d_2mm"]) == (8.0, 7.0, 0.0)
    assert tuple(found) == tuple(METRICS)


def test_an_empty_mask_costs_the_diagonal_in_millimetres() -> None:
    nothing, something = np.zeros((3, 4), bool), np.ones((3, 4), bool)
    for pair in ((nothing, something), (something, nothing)):
        found = case_metrics(*pair, (2.0, 2.0))
        assert (found["hd95_mm"], found["assd_mm"], found["nsd_deepmind2d_2mm"]) == (10, 10, 0)


def test_cropping_and_scaling_change_nothing() -> None:
    for truth, prediction in pairs(20, seed=4):
        found = case_metrics(truth, prediction, (0.7, 0.7))
        for unit, spacing in (("px", (1.0, 1.0)), ("mm", (0.7, 0.7))):
            whole = contour_distances(truth, prediction, spacing)
            assert found[f"nsd_deepmind2d_2{unit}"] == pytest.approx(whole.nsd(2), abs=1e-12)
            assert found[f"hd95_{unit}"] == pytest.approx(whole.hausdorff(95), abs=1e-12)
            assert found[f"assd_{unit}"] == pytest.approx(whole.mean(), abs=1e-12)


masks = hnp.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@settings(max_examples=60, deadline=None)
@given(masks, st.randoms(use_true_random=False))
def test_metrics_do_not_depend_on_order_flips_or_surroundings(truth: Mask, random: Any) -> None:
    flips = np.array([[random.random() < 0.2 for _ in row] for row in truth])
    prediction = truth ^ flips
    found = case_metrics(truth, prediction)
    swapped = case_metrics(prediction, truth)
    swapped["precision"], swapped["recall"] = swapped["recall"], swapped["precision"]
    assert found == pytest.approx(swapped, abs=1e-12)
    turned = case_metrics(np.rot90(truth).copy(), np.rot90(prediction).copy())
    assert found == pytest.approx(turned, abs=1e-12)
    if truth.any() and prediction.any():
        wider = case_metrics(np.pad(truth, (0, 3)), np.pad(prediction, (0, 3)))
        assert found == pytest.approx(wider, abs=1e-12)


@pytest.mark.parametrize(
    ("truth", "prediction", "told"),
    [
        (np.zeros((2, 3), bool), np.zeros((3, 2), bool), "2x3 and prediction 3x2"),
        (np.zeros((2, 3), np.uint8), np.zeros((2, 3), bool), "truth must be an array"),
        (np.zeros((2, 3), bool), np.zeros((2, 3), float), "prediction must be an array"),
        (np.zeros((1, 2, 3), bool), np.zeros((1, 2, 3), bool), "(1, 2, 3)"),
        (np.zeros((0, 3), bool), np.zeros((0, 3), bool), "(0, 3)"),
        ([[True]], [[True]], "list"),
    ],
)
def test_refuses_masks_that_do_not_fit(truth: Any, prediction: Any, told: str) -> None:
    for function in (case_metrics, dice):
        with pytest.raises(DataError, match=told.replace("(", r"\(").replace(")", r"\)")):
            function(truth, prediction)


@pytest.mark.parametrize("spacing", [(0.0, 1.0), (1.0, -1.0), (math.nan, 1.0), (1.0,)])
def test_refuses_a_spacing_that_is_none(spacing: Any) -> None:
    with pytest.raises(DataError, match="two positive numbers"):
        case_metrics(np.ones((2, 2), bool), np.ones((2, 2), bool), spacing)
