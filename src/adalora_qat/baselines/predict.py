"""A trained baseline behind the ``Predictor`` protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from adalora_qat.baselines.crops import crop_window, cut, paste, resize_unit
from adalora_qat.baselines.model_file import described, load_net
from adalora_qat.baselines.networks import BaselineNet, frame_of
from adalora_qat.baselines.nnunet import NnunetAnswerer
from adalora_qat.config import BaselinesConfig
from adalora_qat.errors import CheckpointError
from adalora_qat.imaging.geometry import (
    FrameMap,
    check_box,
    logits_to_original,
    resize_grey,
    to_grey,
    to_input,
    unit_range,
    whole_box,
)
from adalora_qat.predictor import Prediction

Unit = NDArray[np.float32]


class Answerer(Protocol):
    """Gives the logits (S, S) of one resized channel (h, w) in 0–1; padding may hold anything."""

    def __call__(self, unit: Unit) -> NDArray[np.float32]:
        """Return the logits, in the frame of the network."""
        ...


class NetAnswerer:
    """Answers with a network, in float32."""

    def __init__(self, net: BaselineNet) -> None:
        self.net = net.eval()

    @torch.inference_mode()
    def __call__(self, unit: Unit) -> NDArray[np.float32]:
        """Return the logits, in the frame of the network."""
        device = next(self.net.parameters()).device
        pixels = torch.from_numpy(to_input(unit, self.net.frame))[None].to(device)
        answer: NDArray[np.float32] = self.net(pixels)[0, 0].float().cpu().numpy()
        return answer


class BaselinePredictor:
    """Segments the whole image whatever the boxes, or the crop to each of them.

    ``uses_boxes`` tells which: an evaluation of one that uses none says so of its prompt.
    """

    def __init__(self, answer: Answerer, config: BaselinesConfig, name: str) -> None:
        self.answer = answer
        self.config = config
        self.frame = frame_of(config)
        self.uses_boxes = config.input == "crop"
        self._name = name

    @property
    def name(self) -> str:
        """A short name for tables."""
        return self._name

    def predict(self, image: NDArray[Any], boxes_xyxy_original: NDArray[Any]) -> Prediction:
        """Segment one image; see ``Predictor.predict``.

        The score is the IoU that the probabilities expect of their own mask, since these
        networks predict none; logits are in the frame of the image or of each crop.

        Raises
        ------
        DataError
            If the image has one colour only, or a box is reversed, empty or outside.
        """
        height, width = image.shape[:2]
        boxes = check_box(boxes_xyxy_original, (height, width))
        if self.uses_boxes:
            answers = [self._crop(image, box) for box in boxes]
        else:
            # One answer, whatever is asked; the box that was used is none but the image.
            answers = [self._whole(image)] * len(boxes)
            boxes = np.tile(whole_box(height, width), (len(boxes), 1))
        masks, scores, logits = (np.stack(part) for part in zip(*answers, strict=True))
        return Prediction(masks, scores, logits, boxes.astype(np.float32))

    def _whole(self, image: NDArray[Any]) -> tuple[NDArray[np.bool_], np.float32, Unit]:
        grey = to_grey(image)
        frame_map = FrameMap(grey.shape[0], grey.shape[1], self.config.side)
        logits = self.answer(unit_range(resize_grey(grey, frame_map), self.frame))
        full = logits_to_original(logits, frame_map)
        return full > 0, expected_iou(full), logits

    def _crop(
        self, image: NDArray[Any], box: NDArray[Any]
    ) -> tuple[NDArray[np.bool_], np.float32, Unit]:
        unit = unit_range(to_grey(image), self.frame)
        size = unit.shape[0], unit.shape[1]
        window = crop_window(box, size, self.config.margin)
        part = cut(unit, window)
        frame_map = FrameMap(part.shape[0], part.shape[1], self.config.side)
        logits = self.answer(resize_unit(part, frame_map))
        full = logits_to_original(logits, frame_map)
        return paste(full, window, size), expected_iou(full), logits


def expected_iou(logits: NDArray[np.float32]) -> np.float32:
    """Return Σ_M p / (|M| + Σ_¬M p), M = p > ½: IoU of the mask and a truth drawn from p.

    A ratio of expectations, for independent pixels; 0 where the mask is empty.
    """
    probability = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -60, 60)))
    inside = logits > 0
    overlap = probability[inside].sum()
    return np.float32(overlap / max(1.0, inside.sum() + probability[~inside].sum()))


def open_baseline(path: Path, name: str | None = None, *, cpu: bool = True) -> BaselinePredictor:
    """Load a baseline's file as a predictor, on the GPU if there is one and it is wanted.

    Raises
    ------
    CheckpointError
        If the file holds no baseline, or does not fit its own description.
    UserError
        If the architecture's library is not installed.
    """
    said = described(path)
    if said is None:
        raise CheckpointError(f"{path} holds no baseline; evaluate it as any other model")
    device = torch.device("cuda" if not cpu and torch.cuda.is_available() else "cpu")
    answer: Answerer
    if said.config.architecture == "nnunet":
        answer = NnunetAnswerer(path, device)
    else:
        answer = NetAnswerer(load_net(path)[0].to(device))
    return BaselinePredictor(answer, said.config, name or said.title)
