"""A trained segmenter behind the ``Predictor`` protocol: NumPy in, NumPy out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adalora_qat.imaging.geometry import (
    FrameMap,
    boxes_to_model,
    check_box,
    image_to_model,
    logits_to_original,
)
from adalora_qat.imaging.structure_passes import structure_passes
from adalora_qat.model.sam import Segmenter
from adalora_qat.predictor import Prediction


class TorchPredictor:
    """Segments with PyTorch, one image at a time, in float32 unless autocast is on outside.

    ``encode`` replaces the segmenter's own encoder: ``fast_encoder(segmenter)`` is the fastest
    for a SAM ViT on a GPU, in bfloat16.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        name: str,
        encode: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.segmenter = segmenter.eval()
        self._name = name
        self.encode = encode or self.segmenter.encode

    @property
    def name(self) -> str:
        """A short name for tables."""
        return self._name

    def predict(self, image: NDArray[Any], boxes_xyxy_original: NDArray[Any]) -> Prediction:
        """Segment one image; see ``Predictor.predict``.

        Parameters
        ----------
        image : (H, W) or (H, W, 3), any real dtype.
        boxes_xyxy_original : (N, 4), pixels of the original; None takes the whole image.

        Raises
        ------
        DataError
            If the image has one colour only, or a box is reversed, empty or outside.
        """
        return self.prompted(image)(boxes_xyxy_original)

    @property
    def structures(self) -> tuple[str, ...]:
        """Those with a learned prompt, which ``prompted(image).structures()`` finds."""
        return self.segmenter.structures

    @torch.inference_mode()
    def prompted(self, image: NDArray[Any]) -> EncodedRadiograph:
        """Encode an image, (H, W) or (H, W, 3), and return a function of its boxes (N, 4).

        See ``EncodesOnce``; errors are those of ``predict``.
        """
        pixels, frame_map = image_to_model(image, self.segmenter.variant.frame)
        device = next(self.segmenter.parameters()).device
        embeddings = self.encode(torch.from_numpy(pixels)[None].to(device)).to(torch.float32)
        return EncodedRadiograph(self.segmenter, embeddings, frame_map)


@dataclass(frozen=True)
class EncodedRadiograph:
    """One image, encoded: a function of its boxes, as ``EncodesOnce`` wants it.

    Attributes
    ----------
    embeddings : (1, D, E, E) float32.
    frame_map : from the image to the model frame and back.
    """

    segmenter: Segmenter
    embeddings: Tensor
    frame_map: FrameMap

    def __call__(self, boxes_xyxy_original: NDArray[Any]) -> Prediction:
        """Segment the image given boxes (N, 4); see ``Predictor.predict``."""
        return self._decode(boxes_xyxy_original, None)

    def structures(self) -> Prediction:
        """Segment every structure with a learned prompt, without a box: ``structure_passes``."""
        segmenter, size = self.segmenter, (self.frame_map.height, self.frame_map.width)
        return structure_passes(self._decode, size, segmenter.structures, segmenter.refine)

    @torch.inference_mode()
    def _decode(
        self, boxes_xyxy_original: NDArray[Any], numbers: NDArray[np.int64] | None
    ) -> Prediction:
        frame_map, device = self.frame_map, self.embeddings.device
        boxes = check_box(boxes_xyxy_original, (frame_map.height, frame_map.width))
        model_boxes = torch.from_numpy(boxes_to_model(boxes, frame_map).astype(np.float32))
        named = None if numbers is None else torch.from_numpy(numbers)[None].to(device)
        logits, iou = self.segmenter.decode(self.embeddings, model_boxes[None].to(device), named)
        low_res = logits[0].float().cpu().numpy()
        masks = np.stack([logits_to_original(each, frame_map) > 0 for each in low_res])
        scores = iou[0].float().clamp(0, 1).cpu().numpy()
        return Prediction(masks, scores, low_res, boxes.astype(np.float32))
