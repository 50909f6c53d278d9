"""Teaching an exported model its own limits: threshold, confidence, input check, plausibility.

Everything is fitted with the exported file in ONNX Runtime, as it will be used. The limits come
from the validation images: no weight of the run was fitted on them, but a recipe with ``patience``
chooses its epoch by them, and the published weights that it began with may have seen them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError
from adalora_qat.evaluate.boxes import BoxPrompt
from adalora_qat.evaluate.mask_files import load_truth
from adalora_qat.evaluate.robustness import DEGRADATIONS
from adalora_qat.imaging.automatic_prompt import two_passes
from adalora_qat.imaging.geometry import load_image, logits_to_original, whole_box
from adalora_qat.progress import Progress
from adalora_qat.release.fit_input_check import fit_input_check
from adalora_qat.release.views import upright_views, views
from adalora_qat.runtime.assurance import Assurance
from adalora_qat.runtime.confidence import Calibration
from adalora_qat.runtime.input_check import UPRIGHT, Real, pooled
from adalora_qat.runtime.onnx_predictor import OnnxPredictor
from adalora_qat.runtime.plausibility import Plausibility, agreement, balance

Mask = NDArray[np.bool_]
Views = Callable[[NDArray[Any], np.random.Generator], Iterator[tuple[str, NDArray[Any]]]]

# Candidates for the cut of the logits; 0 is what training cuts at.
THRESHOLDS = np.arange(-10, 11) / 10
# Degradation → strengths, for validation images whose masks come out poor.
_DEGRADED = {
    "noise": (0.1, 0.2),
    "blur": (4, 8),
    "contrast": (0.1, 0.25, 4),
    "jpeg": (10, 5),
    "resolution": (8, 16),
}
# One degraded view an image gives two masks beside four of the image as it is. With a larger
# share of poor masks than there is in use, the table would expect too little of good ones.
_DEGRADED_VIEWS = 1
# Boxes that are off, in shares of the image's longer side.
_JITTERS = (0.02, 0.08)
# As many steps of the table of confidence as it takes to follow a curve, each of enough masks to
# mean something.
_BINS = 16
_FEWEST = 20
# How far beyond the worst thousandth of the training masks a mask must lie to be warned of.
_SLACK = 1.5


@dataclass(frozen=True)
class _Limits:
    """What plausibility is set from: one value a validation image."""

    agreements: list[float]
    scores: list[float]


def fit_threshold(
    predictor: OnnxPredictor,
    records: Sequence[Record],
    target: str,
    progress: Progress | None = None,
) -> tuple[float, dict[float, float]]:
    """Return the cut of the logits with the best mean Dice, and the mean Dice at each.

    Parameters
    ----------
    predictor : the exported file.
    records : validation images, each with a mask of the target.
    target : the mask's kind.
    progress : is told of each image.

    Returns
    -------
    The best of ``THRESHOLDS``, of equals the one nearest 0, and cut → mean Dice. The prompt is
    the automatic one.
    """
    dice = np.zeros((len(records), len(THRESHOLDS)))
    for row, (_, image, truth) in enumerate(_cases(records, target, progress, "threshold")):
        ask = predictor.prompted(image)
        _, second = two_passes(ask, truth.shape)
        logits = logits_to_original(second.logits[0], ask.frame_map)
        for column, threshold in enumerate(THRESHOLDS):
            mask = logits > threshold
            both = int(mask.sum()) + int(truth.sum())
            dice[row, column] = 2 * int((mask & truth).sum()) / max(1, both)
    means = dice.mean(axis=0)
    best = max(range(len(means)), key=lambda i: (round(means[i], 5), -abs(THRESHOLDS[i])))
    return float(THRESHOLDS[best]), dict(zip(THRESHOLDS.tolist(), means.tolist(), strict=True))


def fit_assurance(
    predictor: OnnxPredictor,
    train: Sequence[Record],
    validation: Sequence[Record],
    target: str,
    seed: int = 0,
    progress: Progress | None = None,
) -> Assurance:
    """Fit all parts with an exported model that is not calibrated yet.

    Parameters
    ----------
    predictor : the exported file.
    train : images of the input check and masks of the plausibility.
    validation : sets every limit, and the table of confidence.
    target : the mask's kind.
    seed : of views, boxes and degradations.
    progress : is told of each image.

    Raises
    ------
    DataError
        If the file keeps its embeddings to itself, is calibrated already, or there are too few
        images.
    """
    if predictor.assurance != Assurance():
        raise DataError(f"{predictor.path} is calibrated already; export it again")
    predicted, true, limits = _confidences(predictor, validation, target, seed, progress)
    confidence = fit_calibration(predicted, true)
    features, classes = _features(predictor, train, views, seed, progress, "training views")
    held_out, _ = _features(predictor, validation, _upright, seed, progress, "validation views")
    check = fit_input_check(features, classes, held_out)
    expected = confidence(np.array(limits.scores))
    return Assurance(confidence, check, _plausibility(train, target, limits, expected))


def fit_calibration(predicted: ArrayLike, true: ArrayLike) -> Calibration:
    """Fit a table of expected IoU by isotonic regression on validation masks.

    Masks are first put in up to 16 groups of equal size by their predicted IoU, so that one
    odd mask makes no step; the groups' means are then made monotone (Barlow et al.,
    "Statistical Inference under Order Restrictions", 1972).

    Parameters
    ----------
    predicted, true : (n,) the model's own estimate and the IoU with the truth, of n masks.

    Raises
    ------
    DataError
        If there are fewer than 20 masks, or values are not finite.
    """
    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < _FEWEST:
        raise DataError(f"{x.size} masks are too few to calibrate with; give at least {_FEWEST}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("a predicted or true IoU is not finite")
    order = np.argsort(x, kind="stable")
    groups = np.array_split(order, min(_BINS, len(x) // 10))
    means = np.array([[x[group].mean(), y[group].mean()] for group in groups])
    # Groups of one and the same prediction become one knot.
    knots, first = np.unique(means[:, 0], return_index=True)
    weights = np.add.reduceat([float(len(group)) for group in groups], first)
    totals = np.add.reduceat([y[group].sum() for group in groups], first)
    fitted = isotonic_regression(totals / weights, weights=weights).x
    return Calibration(tuple(knots.tolist()), tuple(fitted.tolist()), len(x))


def _confidences(
    predictor: OnnxPredictor,
    records: Sequence[Record],
    target: str,
    seed: int,
    progress: Progress | None,
) -> tuple[list[float], list[float], _Limits]:
    """Return predicted and true IoUs of masks, and what masks of undegraded images look like.

    The masks: both passes of the automatic prompt, boxes that are off, and both passes on a
    degraded image.
    """
    predicted: list[float] = []
    true: list[float] = []
    limits = _Limits([], [])
    for index, (record, image, truth) in enumerate(_cases(records, target, progress, "confidence")):
        rng = np.random.default_rng([seed, index])
        ask = predictor.prompted(image)
        first, second = two_passes(ask, truth.shape)
        limits.agreements.append(agreement(first.masks[0], second.masks[0]))
        limits.scores.append(float(second.scores[0]))
        pairs = [(first, truth), (second, truth)]
        pairs += [(ask(box[None]), truth) for box in _boxes(truth, record.id, rng)]
        for kind in rng.choice(list(_DEGRADED), _DEGRADED_VIEWS, replace=False):
            change = DEGRADATIONS[kind].at(float(rng.choice(_DEGRADED[kind])))
            degraded = predictor.prompted(change.image(image, rng))
            pairs += [(one, truth) for one in two_passes(degraded, truth.shape)]
        predicted += [float(one.scores[0]) for one, _ in pairs]
        true += [agreement(one.masks[0], mask) for one, mask in pairs]
    return predicted, true, limits


def _boxes(truth: Mask, name: str, rng: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """Yield boxes that are a little off, and much off."""
    height, width = truth.shape
    for share in _JITTERS:
        pixels = max(1, round(share * max(height, width)))
        box = BoxPrompt("oracle", pixels, int(rng.integers(2**31))).box(truth, name)
        if box is not None:
            yield box


def _upright(image: NDArray[Any], rng: np.random.Generator) -> Iterator[tuple[str, NDArray[Any]]]:
    yield from ((UPRIGHT, view) for view in upright_views(image, rng))


def _features(
    predictor: OnnxPredictor,
    records: Sequence[Record],
    make: Views,
    seed: int,
    progress: Progress | None,
    what: str,
) -> tuple[Real, list[str]]:
    """Return pooled embeddings (n, F) of the views of records, and their classes."""
    rows: list[Real] = []
    classes: list[str] = []
    for index, record in enumerate(records):
        for name, view in make(load_image(record.image), np.random.default_rng([seed, index])):
            if view.min() == view.max():
                continue
            ask = predictor.prompted(view)
            ask(whole_box(*view.shape[:2])[None])
            if ask.embeddings is None:
                raise DataError(f"{predictor.path} gives no embeddings; export it again")
            rows.append(pooled(ask.embeddings, ask.frame_map))
            classes.append(name)
        if progress is not None:
            progress(index + 1, len(records), what)
    return np.stack(rows), classes


def _plausibility(
    train: Sequence[Record], target: str, limits: _Limits, expected: NDArray[np.float32]
) -> Plausibility:
    """Set the limits on masks of the target.

    Parameters
    ----------
    train : the training images, whose true masks give area and balance.
    target : the structure.
    limits : agreement of both passes on validation images.
    expected : (n,) expected IoU of the masks of undegraded validation images.
    """
    masks = [truth for _, _, truth in _cases(train, target, None, "")]
    areas = [float(mask.mean()) for mask in masks]
    low, high = np.quantile(areas, [0.001, 0.999])
    return Plausibility(
        least_area=float(low / _SLACK),
        most_area=float(np.minimum(1.0, high * _SLACK)),
        least_balance=float(np.quantile([balance(m) for m in masks], 0.001) / _SLACK),
        # Twice as far from 1 as the worst in a hundred.
        least_agreement=max(0.0, 2 * float(np.quantile(limits.agreements, 0.01)) - 1),
        least_confidence=max(0.0, 2 * float(np.quantile(expected, 0.01)) - 1),
    )


def _cases(
    records: Sequence[Record], target: str, progress: Progress | None, what: str
) -> Iterator[tuple[Record, NDArray[Any], Mask]]:
    for done, record in enumerate(records, start=1):
        image = load_image(record.image)
        truth, _ = load_truth(record, target, image.shape[:2])
        yield record, image, truth
        if progress is not None:
            progress(done, len(records), what)
