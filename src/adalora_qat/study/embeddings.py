"""Encode an image once for all the boxes that a sweep tries on it.

The image encoder takes nearly all of a model's time and does not see the box.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from torch import Tensor

from adalora_qat.model.predict import TorchPredictor
from adalora_qat.model.sam import Segmenter


class RememberingEncoder:
    """A segmenter's encoder that keeps the embeddings of the images it saw last.

    Parameters
    ----------
    segmenter : in eval mode; answers are the same to the bit.
    most : embeddings kept (4 MB each for LiteMedSAM); the oldest goes first.
    """

    def __init__(self, segmenter: Segmenter, most: int) -> None:
        self.segmenter = segmenter
        self.most = most
        self.encoded = 0
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, images: Tensor) -> Tensor:
        """Map (B, 3, S, S) to embeddings (B, D, E, E)."""
        key = hashlib.sha256(images.cpu().numpy().tobytes()).hexdigest()
        if key not in self._kept:
            self._kept[key] = self.segmenter.encode(images)
            self.encoded += 1
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)
        return self._kept[key]


def remembering(segmenter: Segmenter, name: str, most: int) -> TorchPredictor:
    """Return a predictor that encodes each of ``most`` images once."""
    return TorchPredictor(segmenter, name, RememberingEncoder(segmenter, most))
