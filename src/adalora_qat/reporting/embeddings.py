"""Encode an image once for all the boxes that a sweep tries on it.

The image encoder takes nearly all of a model's time and does not see the box.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import cast

from torch import Tensor, nn

from adalora_qat.model.predict import TorchPredictor
from adalora_qat.model.sam import Segmenter


class RememberingSegmenter(nn.Module):
    """A segmenter that keeps the embeddings of the images it saw last.

    Parameters
    ----------
    segmenter : in eval mode; answers are the same to the bit.
    most : embeddings kept (4 MB each for LiteMedSAM); the oldest goes first.
    """

    def __init__(self, segmenter: Segmenter, most: int) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.variant = segmenter.variant
        self.most = most
        self.encoded = 0
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def forward(self, images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Segment: images (B, 3, S, S), boxes (B, N, 4) → logits (B, N, L, L), IoU (B, N)."""
        key = hashlib.sha256(images.cpu().numpy().tobytes()).hexdigest()
        if key not in self._kept:
            self._kept[key] = self.segmenter.encode(images)
            self.encoded += 1
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)
        return self.segmenter.decode(self._kept[key], boxes)


def remembering(segmenter: Segmenter, name: str, most: int) -> TorchPredictor:
    """Return a predictor that encodes each of ``most`` images once."""
    # It has what the predictor asks of a segmenter, and nothing of what training does.
    return TorchPredictor(cast(Segmenter, RememberingSegmenter(segmenter, most)), name)
