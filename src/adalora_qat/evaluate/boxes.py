"""The boxes a model is evaluated with, named for what they are.

A box drawn from the truth is an oracle's: no reader of an unknown radiograph has it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adalora_qat.errors import DataError
from adalora_qat.imaging.geometry import mask_box_inclusive


@dataclass(frozen=True)
class BoxPrompt:
    """How each case's box is made.

    Attributes
    ----------
    kind : ``oracle``, the box of the true mask; ``whole``, no prompt; ``automatic``, the box
        that the model finds from the whole image (``imaging.automatic_prompt``); ``none``, what a
        model is given that looks at the image alone.
    jitter_px : each edge of an oracle box moves by its own uniform integer in ±jitter_px, in
        pixels of the original, clipped to the image.
    seed : of the jitter; the draw depends on (seed, id, target) only, and scales with
        ``jitter_px`` so that a larger jitter is the same disturbance, further out.
    """

    kind: Literal["oracle", "whole", "automatic", "none"] = "oracle"
    jitter_px: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.jitter_px < 0 or (self.kind != "oracle" and self.jitter_px):
            raise DataError(
                f"box jitter of {self.jitter_px} px with kind {self.kind!r}: the jitter moves "
                "oracle boxes and must not be negative"
            )

    @property
    def name(self) -> str:
        """Return ``oracle``, ``oracle+jitter5``, ``whole-image``, ``automatic`` or ``none``."""
        if self.kind != "oracle":
            return "whole-image" if self.kind == "whole" else self.kind
        return f"oracle+jitter{self.jitter_px}" if self.jitter_px else "oracle"

    def box(self, truth: NDArray[np.bool_], *key: str) -> NDArray[np.float64] | None:
        """Return the box of one case, None if there is no foreground.

        A mask one pixel wide has an empty box; it is widened by one pixel, so that a
        prompt is never refused for the truth's sake.

        Parameters
        ----------
        truth : (H, W) bool, at the original size.
        key : names the case (id, target) and decides the jitter.

        Returns
        -------
        (4,) xyxy, edges in pixels of the original.
        """
        if not truth.any():
            return None
        height, width = truth.shape
        box = mask_box_inclusive(truth)
        if self.jitter_px:
            digest = hashlib.sha256("\0".join((str(self.seed), *key)).encode()).digest()
            draw = np.random.default_rng(np.frombuffer(digest, np.uint32)).random(4)
            shift = np.floor(draw * (2 * self.jitter_px + 1)) - self.jitter_px
            box = np.clip(box + shift, 0, [width, height, width, height])
        for low, size in ((0, width), (1, height)):
            first, last = sorted((box[low], box[low + 2]))
            last = max(last, min(first + 1, size))
            box[low], box[low + 2] = min(first, last - 1), last
        return box


def parse_box(given: str | int | BoxPrompt, seed: int = 0) -> BoxPrompt:
    """Read a mode: ``oracle``, ``oracle+jitter5`` (5), ``whole-image`` (``whole``), ``automatic``.

    Raises
    ------
    DataError
        If it is none of these.
    """
    if isinstance(given, BoxPrompt):
        return given
    if isinstance(given, int):
        return BoxPrompt("oracle", given, seed)
    if given in ("whole", "whole-image"):
        return BoxPrompt("whole", 0, seed)
    if given == "automatic":
        return BoxPrompt("automatic", 0, seed)
    found = re.fullmatch(r"oracle(?:\+jitter(\d+))?", given)
    if not found:
        raise DataError(
            f"box mode {given!r}: give oracle, oracle+jitter5, whole-image or automatic"
        )
    return BoxPrompt("oracle", int(found[1] or 0), seed)


def stack_boxes(boxes: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Return N boxes (4,) xyxy as (N, 4) float32, as predictors take them."""
    return np.stack(boxes).astype(np.float32)
