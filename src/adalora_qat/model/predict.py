"""A trained segmenter behind the ``Predictor`` protocol: NumPy in, NumPy out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adalora_qat.data.geometry import (
    boxes_to_model,
    check_box,
    image_to_model,
    logits_to_original,
    whole_box,
)
from adalora_qat.model.sam import Segmenter
from adalora_qat.predictor import Prediction


class TorchPredictor:
    """Segments with PyTorch, one image at a time, in float32 unless autocast is on outside."""

    def __init__(self, segmenter: Segmenter, name: str) -> None:
        self.segmenter = segmenter.eval()
        self._name = name

    @property
    def name(self) -> str:
        """A short name for tables."""
        return self._name

    @torch.inference_mode()
    def predict(self, image: NDArray[Any], boxes_xyxy_original: NDArray[Any] | None) -> Prediction:
        """Segment one image; see ``Predictor.predict``.

        Raises
        ------
        DataError
            If the image has one colour only, or a box is reversed, empty or outside.
        """
        height, width = image.shape[:2]
        boxes = (
            whole_box(height, width)[None]
            if boxes_xyxy_original is None
            else check_box(boxes_xyxy_original, (height, width))
        )
        pixels, frame_map = image_to_model(image, self.segmenter.variant.frame)
        device = next(self.segmenter.parameters()).device
        model_boxes = torch.from_numpy(boxes_to_model(boxes, frame_map).astype(np.float32))
        logits, iou = self.segmenter(
            torch.from_numpy(pixels)[None].to(device), model_boxes[None].to(device)
        )
        low_res = logits[0].float().cpu().numpy()
        masks = np.stack([logits_to_original(each, frame_map) > 0 for each in low_res])
        scores = iou[0].float().clamp(0, 1).cpu().numpy()
        return Prediction(masks, scores, low_res, boxes.astype(np.float32))
