"""The automatic prompt: whole image → mask → its box → mask.

The first mask only serves to find the box. It is cleaned for that: of a pair of lungs the two
largest components remain, so that a speck in a corner does not open the box. The second mask
is the result, as the model gives it. NumPy only: the deployed runtime stands on this module.

Shapes: L low-resolution side, H W original pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adalora_qat.imaging.components import largest_components
from adalora_qat.imaging.geometry import FrameMap, boxes_to_original, mask_box_edges, whole_box
from adalora_qat.predictor import Prediction, Predictor, Prompted, prompted

# A pair of lungs; a single organ is one component and stays one.
COMPONENTS = 2
# Pixels of the low-resolution grid on each side: none, as the boxes of training are drawn
# close round the truth and jittered both ways.
MARGIN = 0


def predict_automatically(predictor: Predictor, image: NDArray[Any]) -> Prediction:
    """Segment an image without a prompt; a predictor that can do so encodes it once.

    Parameters
    ----------
    image : (H, W) or (H, W, 3), any real dtype.

    Returns
    -------
    One mask; ``boxes_xyxy_original`` is the box that was found, or the whole image where the
    first mask is empty.
    """
    return two_passes(prompted(predictor, image), (image.shape[0], image.shape[1]))[1]


def two_passes(ask: Prompted, size: tuple[int, int]) -> tuple[Prediction, Prediction]:
    """Prompt an image with its whole area, then with the box of what was found.

    Parameters
    ----------
    ask : boxes (N, 4) of the image to a prediction.
    size : (H, W) of the image.

    Returns
    -------
    The predictions of the first and the second pass, one mask each; where the first is empty,
    both are the same.
    """
    first = ask(whole_box(*size)[None])
    box = automatic_box(first, size)
    return first, first if box is None else ask(box[None])


def automatic_box(
    first: Prediction,
    size: tuple[int, int],
    margin: int = MARGIN,
    components: int = COMPONENTS,
) -> NDArray[np.float64] | None:
    """Return the box (4,) of a first mask, in pixels of the original of ``size`` = (H, W).

    Parameters
    ----------
    first : one mask, prompted with the whole image.
    margin : pixels of the model's low-resolution grid to add on each side.
    components : how many of the mask's largest components the box goes round.

    Returns
    -------
    None where the mask is empty: there is nothing to draw a box round.
    """
    # At low resolution: the box is as exact as the model's own grid, at any image size.
    grid = FrameMap(*size, side=first.logits.shape[-1])
    small = _reduced(first.masks[0], grid.valid_hw)
    if not small.any():
        return None
    edges = mask_box_edges(largest_components(small, components))
    edges += np.array([-margin, -margin, margin, margin])
    limits = whole_box(*size)[[2, 3, 2, 3]]
    return np.clip(boxes_to_original(edges, grid), 0, limits)


def _reduced(mask: NDArray[np.bool_], valid_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Take the pixel in the middle of each cell of an (h, w) grid."""
    rows, columns = (
        ((np.arange(cells) + 0.5) * length / cells).astype(np.int64)
        for cells, length in zip(valid_hw, mask.shape, strict=True)
    )
    return mask[np.ix_(rows, columns)]
