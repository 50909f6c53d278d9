"""Whether an image is like those the model was trained on: two checks of its embeddings.

A linear classifier tells how a chest was turned or degraded before it got here; it was fitted on
the training radiographs and on what was done to them: rotated, inverted, cut up, replaced by
noise and drawings. A distance tells how far an image lies from all training images, whatever
the reason: the Mahalanobis distance under probabilistic PCA (Tipping and Bishop, 1999).

Both look at the mean of the embeddings over each quarter of the image. NumPy only: what they
need is in the model's file.

Shapes: E side of the embeddings, D width, F = 4·D features, C classes, K components.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adalora_qat.chest.caution import Caution as Caution
from adalora_qat.errors import DataError
from adalora_qat.imaging.geometry import FrameMap

Real = NDArray[np.float32]

UPRIGHT = "upright"
# Class → code of the warning, and its words.
CLASSES = {
    UPRIGHT: ("", ""),
    "turned_left": ("rotated", "looks rotated by 90 degrees to the left"),
    "upside_down": ("rotated", "looks upside down"),
    "turned_right": ("rotated", "looks rotated by 90 degrees to the right"),
    "inverted": ("inverted", "looks inverted (black bones); give it with white bones"),
    "other": ("not_a_chest", "does not look like a whole, upright frontal chest radiograph"),
}
# How many limits of distance away a turned or inverted chest may lie to be called one.
_NEAR = 1.5
UNLIKE = "unlike_training_data"
# Codes after which the masks are of nothing in particular.
FOREIGN = frozenset({"rotated", "not_a_chest"})


@dataclass(frozen=True)
class InputCheck:
    """What was learnt about the training images.

    Attributes
    ----------
    mean, scale : (F,), standardise the features.
    weights, bias : (C, F) and (C,), the classifier, in the order of ``CLASSES``.
    axes, variances : (K, F) and (K,), principal axes of upright images and variances on them.
    noise : variance on each other axis.
    certainty : an image counts as upright unless another class has at least this probability
        together with all others but upright.
    distance : the largest distance without a warning.
    """

    mean: Real
    scale: Real
    weights: Real
    bias: Real
    axes: Real
    variances: Real
    noise: float
    certainty: float
    distance: float

    def __post_init__(self) -> None:
        arrays = (self.mean, self.scale, self.weights, self.bias, self.axes, self.variances)
        F, K, C = len(self.mean), len(self.axes), len(CLASSES)
        if [np.shape(one) for one in arrays] != [(F,), (F,), (C, F), (C,), (K, F), (K,)]:
            raise DataError("the tables of the input check do not fit each other")
        numbers = (self.noise, self.certainty, self.distance)
        finite = all(np.isfinite(one).all() for one in (*arrays, *numbers))
        if not finite or min(*self.scale, *self.variances, self.noise) <= 0:
            raise DataError("the input check needs finite values and scales above 0")

    def look(self, embeddings: Real, frame_map: FrameMap) -> list[Caution]:
        """Return what is odd about an image, given its embeddings (E², D)."""
        features = (pooled(embeddings, frame_map) - self.mean) / self.scale
        chances = self.chances(features)
        odd, distance = 1 - float(chances[0]), self.distance_of(features)
        if odd >= self.certainty:
            name = list(CLASSES)[1 + int(chances[1:].argmax())]
            # A photograph falls into some class, too; a chest that was turned is still near.
            code, words = CLASSES[name if distance <= _NEAR * self.distance else "other"]
            return [Caution(code, words, odd, self.certainty)]
        if distance > self.distance:
            words = "is unlike the radiographs that the model was trained on"
            return [Caution(UNLIKE, words, distance, self.distance)]
        return []

    def chances(self, features: Real) -> NDArray[np.float64]:
        """Return the probability of each class, (C,), for standardised features (F,)."""
        logits = (self.weights @ features + self.bias).astype(np.float64)
        powers = np.exp(logits - logits.max())
        result: NDArray[np.float64] = powers / powers.sum()
        return result

    def distance_of(self, features: Real) -> float:
        """Return the distance of standardised features (F,), 1 for a typical training image."""
        along = self.axes @ features
        across = float(features @ features - along @ along)
        square = float((along**2 / self.variances).sum()) + across / self.noise
        return float(np.sqrt(max(square, 0.0) / len(features)))

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the model's metadata; arrays as base64 of float16."""
        values = vars(self)
        return {k: _packed(v) if isinstance(v, np.ndarray) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> InputCheck:
        """Read what ``to_json`` gave."""
        values: dict[str, Any] = {
            k: _unpacked(v) if isinstance(v, dict) else v for k, v in given.items()
        }
        return cls(**values)


def pooled(embeddings: Real, frame_map: FrameMap) -> Real:
    """Return the means (F,) of embeddings (E², D) over the quarters of the image proper."""
    side = round(len(embeddings) ** 0.5)
    h, w = (max(2, round(length * side / frame_map.side)) for length in frame_map.valid_hw)
    grid = embeddings.reshape(side, side, -1)[:h, :w]
    rows, columns = (slice(0, h // 2), slice(h // 2, h)), (slice(0, w // 2), slice(w // 2, w))
    means = [grid[r, c].mean(axis=(0, 1)) for r in rows for c in columns]
    return np.concatenate(means).astype(np.float32)


def _packed(array: Real) -> dict[str, Any]:
    # Half precision: the numbers decide a warning, not a mask, and the file is to stay small.
    data = base64.b64encode(array.astype("<f2").tobytes()).decode("ascii")
    return {"shape": list(array.shape), "float16": data}


def _unpacked(given: dict[str, Any]) -> Real:
    flat = np.frombuffer(base64.b64decode(given["float16"]), dtype="<f2")
    return flat.reshape(given["shape"]).astype(np.float32)
