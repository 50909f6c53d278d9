"""Interactive segmentation: one image encoded once, then many prompts.

No torch is imported here. Shapes: N prompts of one image, T points of a prompt, E side of the
embeddings, D width, L low-resolution side, H W original pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adalora_qat.errors import CheckpointError, DataError
from adalora_qat.imaging.geometry import (
    FrameMap,
    boxes_to_model,
    check_box,
    image_to_model,
    whole_box,
)
from adalora_qat.predictor import Prediction
from adalora_qat.runtime.assurance import Assurance
from adalora_qat.runtime.digest import verified_sha256
from adalora_qat.runtime.onnx_predictor import (
    check_prompts,
    in_runs,
    open_session,
    read_metadata,
    to_prediction,
)

# The labels of points, as Segment Anything numbers them.
OUTSIDE, INSIDE, TOP_LEFT, BOTTOM_RIGHT, NO_POINT = 0, 1, 2, 3, -1


@dataclass(frozen=True)
class EncodedImage:
    """An image as the decoder sees it, to be prompted at will.

    Attributes
    ----------
    embeddings : (E², D) float32.
    frame_map : the way back to its own pixels.
    predictor : whose encoder it went through.
    """

    embeddings: NDArray[np.float32]
    frame_map: FrameMap
    predictor: InteractivePredictor = field(repr=False)

    def __call__(self, boxes_xyxy_original: NDArray[np.generic]) -> Prediction:
        """Segment the image given boxes (N, 4), (x0, y0, x1, y1) in pixels of the original.

        Raises
        ------
        DataError
            If a box does not fit the image.
        """
        return self.predictor.decode_boxes(self, boxes_xyxy_original)


class InteractivePredictor:
    """Segments with an encoder file and a decoder file; safe to share between threads.

    Parameters
    ----------
    encoder, decoder : the two files that ``adalora-qat export --split`` wrote.
    threads : worker threads, None for one per core.
    name : for tables; the stem of the encoder's file if not given.
    low_memory : less memory between images, slower.

    Raises
    ------
    CheckpointError
        If a file is missing, is not ONNX, or the two are not halves of one model.
    """

    def __init__(
        self,
        encoder: Path | str,
        decoder: Path | str,
        threads: int | None = None,
        name: str | None = None,
        *,
        low_memory: bool = False,
    ) -> None:
        self.path, self.decoder_path = Path(encoder), Path(decoder)
        self.sha256, self.decoder_sha256 = map(verified_sha256, (self.path, self.decoder_path))
        self._encoder = open_session(self.path, threads, low_memory=low_memory)
        self._decoder = open_session(self.decoder_path, threads, low_memory=low_memory)
        self.metadata = read_metadata(self._encoder, str(encoder), "encoder")
        other = read_metadata(self._decoder, str(decoder), "decoder")
        if (self.metadata.sources, self.metadata.policy) != (other.sources, other.policy):
            raise CheckpointError(f"{encoder} and {decoder} are not halves of one model")
        self._name = name or self.path.stem
        self.assurance = Assurance.of(self.metadata, str(encoder))

    @property
    def name(self) -> str:
        """A short name for tables."""
        return self._name

    def encode(self, image: NDArray[np.generic]) -> EncodedImage:
        """Encode an image (H, W) or (H, W, 3), the slow half of the work.

        Raises
        ------
        DataError
            If it is not an image, or of one colour.
        """
        pixels, frame_map = image_to_model(image, self.metadata.frame)
        (embeddings,) = self._encoder.run(["embeddings"], {"image": pixels[None]})
        return EncodedImage(embeddings, frame_map, self)

    def prompted(self, image: NDArray[np.generic]) -> EncodedImage:
        """Return a function of boxes for one image, encoded once; see ``EncodesOnce``."""
        return self.encode(image)

    def decode(
        self,
        encoded: EncodedImage,
        *,
        box: NDArray[np.generic] | None = None,
        points: NDArray[np.generic] | None = None,
        labels: NDArray[np.generic] | None = None,
        earlier: NDArray[np.float32] | None = None,
    ) -> Prediction:
        """Segment one object.

        Parameters
        ----------
        box : (4,), pixels of the original.
        points : (T, 2), x and y in pixels of the original.
        labels : (T,), 1 for a point in the object, 0 for one outside it.
        earlier : (L, L) logits of an earlier prediction, to be improved on.

        Raises
        ------
        DataError
            If there is no prompt, or one does not fit the image.
        """
        frame_map = encoded.frame_map
        size = (frame_map.height, frame_map.width)
        given, kinds = _points(points, labels, frame_map)
        if box is not None:
            corners = check_box(np.asarray(box)[None], size).reshape(-1, 2)
            given = np.concatenate([given, corners])
            kinds = np.concatenate([kinds, [TOP_LEFT, BOTTOM_RIGHT]])
        elif len(given):
            # As in training: a missing box is a point that is none.
            given = np.concatenate([given, np.zeros((1, 2))])
            kinds = np.concatenate([kinds, [NO_POINT]])
        else:
            raise DataError("no prompt: give a box or points")
        scale = boxes_to_model(np.ones(4), frame_map)[:2]
        logits, iou = self._run(encoded, given * scale, kinds, earlier)
        shown = whole_box(*size) if box is None else np.asarray(box, dtype=np.float64)
        return self._prediction(logits[0], iou[0], shown[None], frame_map)

    def decode_boxes(
        self, encoded: EncodedImage, boxes_xyxy_original: NDArray[np.generic]
    ) -> Prediction:
        """Segment one object for each of several boxes (N, 4), in pixels of the original.

        Raises
        ------
        DataError
            If a box does not fit the image, or there are too many (``check_prompts``).
        """
        frame_map, side = encoded.frame_map, self._side()
        boxes = check_box(boxes_xyxy_original, (frame_map.height, frame_map.width))
        check_prompts(len(boxes), frame_map, side)

        def run(some: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            feeds = {"embeddings": encoded.embeddings, **box_prompt(some, side)}
            logits, iou = self._decoder.run(["logits", "iou"], feeds)
            return logits[0], iou[0]

        model_boxes = boxes_to_model(boxes, frame_map).astype(np.float32)
        return self._prediction(*in_runs(run, model_boxes, side), boxes, frame_map)

    def predict(
        self, image: NDArray[np.generic], boxes_xyxy_original: NDArray[np.generic]
    ) -> Prediction:
        """Segment one image given boxes; see ``Predictor.predict``."""
        return self.decode_boxes(self.encode(image), boxes_xyxy_original)

    def warm_up(self) -> None:
        """Run both halves once on a blank frame, so that the first image is as fast as the next."""
        side = self.metadata.frame.side
        blank = np.zeros((1, 3, side, side), dtype=np.float32)
        (embeddings,) = self._encoder.run(["embeddings"], {"image": blank})
        box = np.array([[0, 0, side, side]], dtype=np.float32)
        prompt = box_prompt(box, self._side())
        self._decoder.run(["logits", "iou"], {"embeddings": embeddings, **prompt})

    def _run(
        self,
        encoded: EncodedImage,
        points: NDArray[np.float64],
        labels: NDArray[np.int64],
        earlier: NDArray[np.float32] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        side = self._side()
        if earlier is not None and earlier.shape != (side, side):
            raise DataError(
                f"earlier logits of shape {earlier.shape}: give the ({side}, {side}) logits of a "
                "prediction"
            )
        masks = np.zeros((side, side), np.float32) if earlier is None else earlier
        feeds = {
            "embeddings": encoded.embeddings,
            "points": points[None, None].astype(np.float32),
            "labels": labels[None, None],
            "masks": masks[None, None].astype(np.float32),
            "has_mask": np.full((1, 1), earlier is not None, dtype=np.float32),
        }
        logits, iou = self._decoder.run(["logits", "iou"], feeds)
        return logits, iou

    def _prediction(
        self,
        logits: NDArray[np.float32],
        iou: NDArray[np.float32],
        boxes: NDArray[np.float64],
        frame_map: FrameMap,
    ) -> Prediction:
        threshold, calibration = self.metadata.mask_threshold, self.assurance.confidence
        return to_prediction(logits, iou, boxes, frame_map, threshold, calibration)

    def _side(self) -> int:
        return self.metadata.low_res_side


def box_prompt(boxes: NDArray[np.float32], low_res_side: int) -> dict[str, NDArray[np.generic]]:
    """Return the decoder's inputs for boxes (N, 4) in the model frame."""
    count = len(boxes)
    return {
        "points": boxes.reshape(1, count, 2, 2),
        "labels": np.tile(np.array([TOP_LEFT, BOTTOM_RIGHT], dtype=np.int64), (1, count, 1)),
        "masks": np.zeros((1, count, low_res_side, low_res_side), dtype=np.float32),
        "has_mask": np.zeros((1, count), dtype=np.float32),
    }


def _points(
    points: NDArray[np.generic] | None, labels: NDArray[np.generic] | None, frame_map: FrameMap
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Check points (T, 2) and labels (T,) against the image."""
    if points is None:
        return np.zeros((0, 2)), np.zeros(0, dtype=np.int64)
    given, kinds = np.asarray(points, dtype=np.float64), np.asarray(labels)
    if given.ndim != 2 or given.shape[1] != 2 or kinds.shape != (len(given),):
        raise DataError(
            f"points of shape {given.shape} and labels of shape {kinds.shape}: give (T, 2) and (T,)"
        )
    if not np.isin(kinds, [OUTSIDE, INSIDE]).all():
        raise DataError(f"labels {kinds.tolist()}: each must be 1 (inside) or 0 (outside)")
    inside = (given >= 0).all() and (given <= [frame_map.width, frame_map.height]).all()
    if not inside:
        raise DataError(
            f"a point lies outside the image of {frame_map.width}x{frame_map.height} pixels"
        )
    return given, kinds.astype(np.int64)
