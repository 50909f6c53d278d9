"""Fitting the look at the input: a classifier of views, and the spread of upright radiographs.

Shapes: n views, F features, C classes, K components.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from adalora_qat.errors import DataError
from adalora_qat.runtime.input_check import CLASSES, UPRIGHT, InputCheck, Real

# Weight of the squared norm of the classifier, in units of the mean loss; of 0.003, 0.01 and
# 0.03 all do, as the classes lie far apart.
_RIDGE = 0.01
_COMPONENTS = 24
# Of held-out upright radiographs, one in 200 may be warned of for each reason.
QUANTILE = 0.995
# The limit of distance is this much wider: hospitals differ more than images of one do. When it
# was chosen, radiographs of other sources were looked at and lay below it, photographs and turned
# radiographs above: how often such images are warned of is no independent result.
_OTHER_HOSPITALS = 1.5


def fit_input_check(
    features: Real, classes: Sequence[str], held_out: Real, quantile: float = QUANTILE
) -> InputCheck:
    """Fit on views of training images, and set the limits on views of held-out ones.

    Parameters
    ----------
    features : (n, F), pooled embeddings.
    classes : (n,), names out of ``CLASSES``; each must occur.
    held_out : (m, F), upright views of other images.
    quantile : share of held-out views that a limit leaves without a warning.

    Raises
    ------
    DataError
        If a class is missing, or there are too few upright views.
    """
    names = list(CLASSES)
    labels = np.array([names.index(name) for name in classes])
    counts = np.bincount(labels, minlength=len(names))
    if counts.min() == 0 or counts[names.index(UPRIGHT)] < _COMPONENTS + 2 or not len(held_out):
        raise DataError(f"views {dict(zip(names, counts.tolist(), strict=True))}: too few to fit")
    upright = features[labels == names.index(UPRIGHT)]
    mean, scale = upright.mean(axis=0), upright.std(axis=0) + 1e-6
    weights, bias = _classifier((features - mean) / scale, labels, len(names))
    axes, variances, noise = _spread((upright - mean) / scale)
    check = InputCheck(mean, scale, weights, bias, axes, variances, noise, 0.5, 1.0)
    # As the file will hold it: rounding belongs to what the limits are set for.
    check = InputCheck.from_json(check.to_json())
    standard = [(row - check.mean) / check.scale for row in held_out]
    odd = np.quantile([1 - check.chances(row)[0] for row in standard], quantile)
    far = np.quantile([check.distance_of(row) for row in standard], quantile)
    # More likely upright than not is upright, whatever the held-out images say.
    limits = {
        "certainty": max(0.5, round(float(odd), 4)),
        "distance": round(_OTHER_HOSPITALS * float(far), 4),
    }
    return InputCheck(**{**vars(check), **limits})


def _classifier(features: Real, labels: NDArray[Any], count: int) -> tuple[Real, Real]:
    """Fit multinomial logistic regression, each class with the same weight."""
    n, width = features.shape
    truth = np.eye(count)[labels]
    weight = (1 / np.bincount(labels, minlength=count))[labels] / count
    # The scale of a feature is 1 and there are many: their sum is brought to order 1.
    x = np.hstack([features / np.sqrt(width), np.ones((n, 1))]).astype(np.float64)

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        table = flat.reshape(count, width + 1)
        logits = x @ table.T
        logs = logits - logsumexp(logits, axis=1, keepdims=True)
        value = -(weight[:, None] * truth * logs).sum()
        slope = (weight[:, None] * (np.exp(logs) - truth)).T @ x
        slope[:, :-1] += _RIDGE / width * table[:, :-1]
        return value + 0.5 * _RIDGE / width * float((table[:, :-1] ** 2).sum()), slope.ravel()

    optimum = minimize(loss, np.zeros(count * (width + 1)), jac=True, method="L-BFGS-B")
    table = optimum.x.reshape(count, width + 1)
    return (table[:, :-1] / np.sqrt(width)).astype(np.float32), table[:, -1].astype(np.float32)


def _spread(standard: Real) -> tuple[Real, Real, float]:
    """Return axes (K, F), variances on them (K,), and the mean variance on all others."""
    n, width = standard.shape
    kept = min(_COMPONENTS, width // 2)
    _, values, axes = np.linalg.svd(standard, full_matrices=False)
    variances = values**2 / n
    noise = float(variances[kept:].sum() / (width - kept))
    return axes[:kept], variances[:kept].astype(np.float32), noise
