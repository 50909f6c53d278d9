"""The box as a crop: what a baseline sees that is given a box, in training and after it.

A crop is the box with a margin on every side, clipped to the image, in whole pixels of the
plane it is cut from. It is resized as any image is: longest side to S, padding right and below.
In training it is cut from planes of twice the model side, so that enlarging costs no detail
that the test image, cut at its original size, would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from adalora_qat.config import DataConfig
from adalora_qat.corpus.records import Record
from adalora_qat.imaging.geometry import Frame, FrameMap, mask_to_model, to_channels, unit_range
from adalora_qat.samples.augment import augment
from adalora_qat.samples.cache import PlaneCache
from adalora_qat.samples.dataset import Sample, SegmentationDataset
from adalora_qat.samples.streams import stream

Window = tuple[int, int, int, int]
SOURCE_FACTOR = 2
"""Side of the planes that training crops are cut from, in model sides."""


def crop_window(box_xyxy: NDArray[Any], size_hw: tuple[int, int], margin: float) -> Window:
    """Return (x0, y0, x1, y1) in whole pixels: the box, ``margin`` of its sides added all round.

    At least one pixel wide and high, and inside the image.
    """
    x0, y0, x1, y1 = (float(edge) for edge in box_xyxy)
    dx, dy = margin * (x1 - x0), margin * (y1 - y0)
    left, right = _clipped(x0 - dx, x1 + dx, size_hw[1])
    top, bottom = _clipped(y0 - dy, y1 + dy, size_hw[0])
    return left, top, right, bottom


def resize_unit(unit: NDArray[np.float32], frame_map: FrameMap) -> NDArray[np.float32]:
    """Resize a channel (H, W) in 0–1 to the valid extent (h, w), bilinear."""
    h, w = frame_map.valid_hw
    resized = Image.fromarray(unit).resize((w, h), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32).clip(0, 1)


def cut(plane: NDArray[Any], window: Window) -> NDArray[Any]:
    """Return the window of a plane (H, W)."""
    x0, y0, x1, y1 = window
    return np.ascontiguousarray(plane[y0:y1, x0:x1])


def paste(
    logits: NDArray[np.float32], window: Window, size_hw: tuple[int, int]
) -> NDArray[np.bool_]:
    """Return the mask (H, W) of a crop's logits: nothing outside of the window."""
    x0, y0, x1, y1 = window
    mask = np.zeros(size_hw, dtype=np.bool_)
    mask[y0:y1, x0:x1] = logits > 0
    return mask


class BoxCropDataset(SegmentationDataset):
    """Samples that are crops to the box: jittered in training, exact otherwise.

    ``jitter_px`` of the prompt is in pixels of the model side, as for every other model.

    Parameters
    ----------
    frame : of the network; the planes have twice its side.
    margin : see ``crop_window``.
    cache : of planes with side ``SOURCE_FACTOR`` × ``frame.side``.
    """

    def __init__(
        self,
        records: Sequence[Record],
        config: DataConfig,
        frame: Frame,
        margin: float,
        *,
        seed: int = 0,
        train: bool = True,
        cache: PlaneCache | None = None,
    ) -> None:
        prompt = config.prompt
        wider = prompt.model_copy(update={"jitter_px": SOURCE_FACTOR * prompt.jitter_px})
        source = Frame(SOURCE_FACTOR * frame.side, frame.normalize)
        scaled = config.model_copy(update={"prompt": wider})
        super().__init__(records, scaled, source, seed=seed, train=train, cache=cache)
        self.crop_frame = frame
        self.margin = margin

    def __getitem__(self, index: int) -> Sample:
        record, name = self.records[index], self.streams[index]
        planes = self._planes(record)
        unit, masks = unit_range(planes.grey, self.frame), planes.masks
        epoch = self.epoch if self.train else 0
        if self.train and self.config.augment.enabled:
            rng = stream("augment", self.seed, epoch, name)
            unit, masks = augment(unit, masks, self.config.augment, rng)
        box = self._box(masks[0], stream("prompt", self.seed, epoch, name))
        window = crop_window(box, (unit.shape[0], unit.shape[1]), self.margin)
        return self._sample(cut(unit, window), cut(masks[0], window), box, window, record.id)

    def _sample(
        self,
        unit: NDArray[np.float32],
        mask: NDArray[np.bool_],
        box: NDArray[np.float32],
        window: Window,
        name: str,
    ) -> Sample:
        frame_map = FrameMap(unit.shape[0], unit.shape[1], self.crop_frame.side)
        channels = to_channels(resize_unit(unit, frame_map), self.crop_frame)
        moved = (box - np.array([*window[:2], *window[:2]])) * frame_map.scale_xyxy
        return Sample(
            image=torch.from_numpy(channels).expand(3, -1, -1),
            boxes=torch.from_numpy(moved.astype(np.float32))[None],
            masks=torch.from_numpy(mask_to_model(mask, frame_map).astype(np.uint8))[None],
            valid=frame_map.valid_hw,
            id=name,
        )


def _clipped(start: float, stop: float, length: int) -> tuple[int, int]:
    first = min(max(int(np.floor(start)), 0), length - 1)
    return first, max(min(int(np.ceil(stop)), length), first + 1)
