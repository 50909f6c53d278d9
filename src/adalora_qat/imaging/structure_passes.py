"""Structures by their learned prompts: the whole image for each, then a box of its own for some.

The first pass asks for every structure with the whole image as its box. A second pass of the
decoder, on the same embeddings, asks again for those that a model names in ``refine``, each with
the box of its first mask: some structures gain by it and others lose, which validation images
decide. NumPy only: the deployed runtime stands on this module.

Shapes: N structures, H W original pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from adalora_qat.imaging.automatic_prompt import automatic_box
from adalora_qat.imaging.geometry import whole_box
from adalora_qat.predictor import Prediction

Ask = Callable[[NDArray[np.float64], NDArray[np.int64]], Prediction]
"""Boxes (N, 4) in pixels of the original and the number of each one's structure (N,) to masks."""


def structure_passes(
    ask: Ask, size: tuple[int, int], structures: Sequence[str], refine: Sequence[str] = ()
) -> Prediction:
    """Segment every structure of an image.

    Parameters
    ----------
    ask : the image's decoder; its encoder runs once, whatever is asked.
    size : (H, W) of the image.
    structures : N names, in the order of the model's prompts.
    refine : those of them that get a second pass.

    Returns
    -------
    (N, H, W) masks in the order of ``structures``. Boxes are those of the second pass, and the
    whole image where there was none: an empty first mask stays as it is.
    """
    count = len(structures)
    first = ask(np.repeat(whole_box(*size)[None], count, axis=0), np.arange(count))
    boxes = {
        index: box
        for index, name in enumerate(structures)
        # One organ is one piece: a speck in a corner must not open its box.
        if name in refine
        and (box := automatic_box(_only(first, index), size, components=1)) is not None
    }
    if not boxes:
        return first
    asked = np.array(list(boxes), dtype=np.int64)
    second = ask(np.stack(list(boxes.values())), asked)
    parts = {}
    for name in ("masks", "scores", "logits", "boxes_xyxy_original"):
        parts[name] = getattr(first, name).copy()
        parts[name][asked] = getattr(second, name)
    return Prediction(**parts)


def _only(prediction: Prediction, index: int) -> Prediction:
    one = slice(index, index + 1)
    return Prediction(
        prediction.masks[one],
        prediction.scores[one],
        prediction.logits[one],
        prediction.boxes_xyxy_original[one],
    )
