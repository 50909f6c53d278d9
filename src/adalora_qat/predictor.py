"""The interface of every segmenter.

NumPy only, so that the deployed runtime, the trained model and the baselines
can share it without importing each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Prediction:
    """Masks for one image, one per box.

    Attributes
    ----------
    masks : (N, H, W) bool, at the original size of the image.
    scores : (N,) float32, the model's own estimate of the IoU of each mask, in [0, 1].
    logits : (N, L, L) float32, in the model's frame, padding included.
    boxes_xyxy_original : (N, 4) float32, the boxes that were used, in pixels of the original.
    """

    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    logits: NDArray[np.float32]
    boxes_xyxy_original: NDArray[np.float32]


# What a mask is of: a word that can be part of the name of a column and of a file.
STRUCTURE_NAME = r"[a-z][a-z0-9_]{0,47}"


@runtime_checkable
class Predictor(Protocol):
    """Segments an image given boxes.

    One that looks at the image alone has an attribute ``uses_boxes`` that is False, so that no
    evaluation credits it with, or charges it for, boxes that it never saw: see ``uses_boxes``.
    """

    @property
    def name(self) -> str:
        """A short name for tables."""
        ...

    def predict(
        self, image: NDArray[np.generic], boxes_xyxy_original: NDArray[np.generic]
    ) -> Prediction:
        """Segment one image, one mask a box.

        There is no "no box" here: who means the whole image gives its box
        (``imaging.geometry.whole_box``), and finding one is a matter of two predictions
        (``imaging.automatic_prompt``).

        Parameters
        ----------
        image : (H, W) or (H, W, 3), any real dtype, grey or RGB.
        boxes_xyxy_original : (N, 4), (x0, y0, x1, y1) in continuous pixels of the original,
            N at least 1.

        Raises
        ------
        DataError
            If the image is not one or of one colour, or a box does not fit it.
        """
        ...


def uses_boxes(predictor: Predictor) -> bool:
    """Whether boxes change a predictor's masks; True unless the predictor says otherwise."""
    return bool(getattr(predictor, "uses_boxes", True))


class StructuresOf(Protocol):
    """One image, encoded once: a function that finds what it knows by name."""

    def structures(self) -> Prediction:
        """Segment every structure with a learned prompt, without a box; one mask each."""
        ...


@runtime_checkable
class FindsStructures(Protocol):
    """A predictor with learned prompts for structures, unless ``structures`` is empty."""

    @property
    def structures(self) -> tuple[str, ...]:
        """Their names, in the order of the masks."""
        ...

    def prompted(self, image: NDArray[np.generic]) -> StructuresOf:
        """Return an image that structures can be asked of."""
        ...


Prompted = Callable[[NDArray[np.generic]], Prediction]
"""Boxes (N, 4) of one image to what ``predict`` gives."""


@runtime_checkable
class EncodesOnce(Protocol):
    """A predictor that reuses what it computed from an image for further prompts."""

    def prompted(self, image: NDArray[np.generic]) -> Prompted:
        """Return a function of boxes that gives what ``predict`` gives for this image."""
        ...


def prompted(predictor: Predictor, image: NDArray[np.generic]) -> Prompted:
    """Return a function of boxes for one image, which is encoded once where possible."""
    if isinstance(predictor, EncodesOnce):
        return predictor.prompted(image)
    return partial(predictor.predict, image)
