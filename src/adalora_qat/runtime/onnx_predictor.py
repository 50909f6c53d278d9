"""One exported ONNX file as a predictor: NumPy in and NumPy out.

No torch, pandas, SciPy or OpenCV is imported here: the base install runs it.

Shapes: B images, N prompts of one image, T points of a prompt, S model side, L low-resolution
side, H W original pixels.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adalora_qat.errors import DataError
from adalora_qat.imaging.geometry import (
    FrameMap,
    boxes_to_model,
    check_box,
    image_to_model,
    logits_to_original,
    whole_box,
)
from adalora_qat.imaging.structure_passes import structure_passes
from adalora_qat.predictor import Prediction
from adalora_qat.runtime.assurance import Assurance
from adalora_qat.runtime.confidence import Calibration
from adalora_qat.runtime.digest import verified_sha256
from adalora_qat.runtime.engines import open_network
from adalora_qat.runtime.networks import (
    BOTTOM_RIGHT,
    INSIDE,
    NO_POINT,
    OUTSIDE,
    TOP_LEFT,
    Feeds,
    box_feeds,
)

# Prompts that the decoder takes in one run: its memory is then that of so many, about 30 MB each
# in LiteMedSAM.
BOXES_A_RUN = 8
MAX_BOXES = 10_000
# Of the masks and logits of one image.
MAX_BYTES = 4_000_000_000


class OnnxPredictor:
    """Segments images with one exported ONNX file.

    Safe to share between threads: nothing is changed after construction, and sessions run
    concurrently.

    Parameters
    ----------
    path : the file that ``adalora-qat export`` wrote.
    threads : worker threads, None for one per core.
    name : for tables; the file's stem if not given.
    low_memory : as in ``engines.open_network``.
    engine : what runs the file, one of ``engines.ENGINES``; not ``auto``, so that figures do not
        depend on what is installed.
    cache : as in ``engines.open_network``.

    Attributes
    ----------
    metadata, sha256 : what the file says about itself, and its hash.
    assurance : what it knows of its own limits.
    prompts_structures : whether it has learned prompts for structures.
    takes_points : whether it can be asked with points.
    engine, engine_reason : what runs it, with its version and threads, and why that.

    Raises
    ------
    CheckpointError
        If the file is missing, is not ONNX, or was not exported by this package.
    ConfigError
        If the engine is not known or not installed, or ``threads`` not positive.
    """

    def __init__(
        self,
        path: Path | str,
        threads: int | None = None,
        name: str | None = None,
        *,
        low_memory: bool = False,
        engine: str = "onnxruntime",
        cache: Path | None = None,
    ) -> None:
        self.path = Path(path)
        self._name = name or self.path.stem
        # Before a runtime sees the file: it says less of what is wrong with a damaged one.
        self.sha256 = verified_sha256(self.path)
        self._network, self.engine_reason = open_network(
            self.path, engine, threads, low_memory=low_memory, cache=cache
        )
        self.engine = f"{self._network.engine}, threads: {self._network.threads}"
        self.metadata = self._network.metadata
        self.assurance = Assurance.of(self.metadata, str(self.path))
        self.prompts_structures = "structures" in self._network.takes
        self.takes_points = "points" in self._network.takes and self.metadata.points is not False

    @property
    def name(self) -> str:
        """A short name for tables."""
        return self._name

    @property
    def structures(self) -> tuple[str, ...]:
        """Those with a learned prompt, which ``prompted(image).structures()`` finds."""
        return self.metadata.structures if self.prompts_structures else ()

    def predict(
        self, image: NDArray[np.generic], boxes_xyxy_original: NDArray[np.generic]
    ) -> Prediction:
        """Segment one image, one mask a box.

        Parameters
        ----------
        image : (H, W) or (H, W, 3), any real dtype.
        boxes_xyxy_original : (N, 4), (x0, y0, x1, y1) in pixels of the original.

        Raises
        ------
        DataError
            If the image is of one colour or not an image, a box does not fit it, or there are
            too many (``check_prompts``).
        """
        return self.prompted(image)(boxes_xyxy_original)

    def prompted(self, image: NDArray[np.generic]) -> EncodedImage:
        """Return a function of boxes for one image, encoded once; see ``EncodesOnce``."""
        return EncodedImage(self, image)

    def run(
        self, image: NDArray[np.float32], boxes: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Run the bare model in its own frame.

        Parameters
        ----------
        image : (1, 3, S, S) float32.
        boxes : (1, N, 4) float32, xyxy in the model frame.

        Returns
        -------
        logits (1, N, L, L) and predicted IoU (1, N).
        """
        return self.decode(self.encode(image), box_feeds(boxes[0]))

    def encode(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the encoder: image (1, 3, S, S) in the model frame → embeddings (E², D)."""
        return self._network.encode(image)

    def decode(
        self, embeddings: NDArray[np.float32], prompt: Feeds
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Run the decoder; see ``networks.Network``. Structures are −1 where none are given."""
        if self.prompts_structures and "structures" not in prompt:
            none = np.full(prompt["labels"].shape[:2], -1, dtype=np.int64)
            prompt = {**prompt, "structures": none}
        return self._network.decode(embeddings, prompt)

    @property
    def gives_embeddings(self) -> bool:
        """Whether what ``encode`` returns are embeddings; not in files of early versions."""
        return self._network.gives_embeddings

    def require_points(self) -> None:
        """Refuse points where the model takes none.

        Raises
        ------
        DataError
            If it does not.
        """
        if not self.takes_points:
            raise DataError(
                f"{self.path} takes boxes, no points; export its model again with this version of "
                "adalora-qat, from weights that know points"
            )

    def warm_up(self) -> None:
        """Run once on a blank frame, so that the first image is as fast as the next."""
        side = self.metadata.frame.side
        box = np.array([[[0, 0, side, side]]], dtype=np.float32)
        self.run(np.zeros((1, 3, side, side), dtype=np.float32), box)


class EncodedImage:
    """One image of a predictor: encoded at its first prompt, then prompted at will.

    Attributes
    ----------
    pixels : (3, S, S) float32, the image in the model frame.
    frame_map : the way back to its own pixels.

    Raises
    ------
    DataError
        If the image is of one colour or not an image.
    """

    def __init__(self, predictor: OnnxPredictor, image: NDArray[np.generic]) -> None:
        self._predictor = predictor
        self.pixels, self.frame_map = image_to_model(image, predictor.metadata.frame)

    @cached_property
    def _encoded(self) -> NDArray[np.float32]:
        return self._predictor.encode(self.pixels[None])

    @property
    def embeddings(self) -> NDArray[np.float32] | None:
        """Embeddings (E², D); None where the file, of an early version, keeps them to itself."""
        return self._encoded if self._predictor.gives_embeddings else None

    @property
    def prompts_structures(self) -> bool:
        """Whether the model has learned prompts for structures."""
        return self._predictor.prompts_structures

    def __call__(self, boxes_xyxy_original: NDArray[np.generic]) -> Prediction:
        """Segment the image given boxes (N, 4), (x0, y0, x1, y1) in pixels of the original.

        Raises
        ------
        DataError
            If a box does not fit the image, or there are too many (``check_prompts``).
        """
        boxes = check_box(boxes_xyxy_original, (self.frame_map.height, self.frame_map.width))
        return self._predict(box_feeds(boxes_to_model(boxes, self.frame_map)), boxes)

    def structures(self) -> Prediction:
        """Segment every structure that the model has a learned prompt for, without a box.

        Returns
        -------
        (N, H, W) masks in the order of the metadata's ``structures``; see ``structure_passes``.
        """
        metadata, size = self._predictor.metadata, (self.frame_map.height, self.frame_map.width)

        def ask(boxes: NDArray[np.float64], numbers: NDArray[np.int64]) -> Prediction:
            return self._predict(box_feeds(boxes_to_model(boxes, self.frame_map), numbers), boxes)

        return structure_passes(ask, size, metadata.structures, metadata.refine)

    def point_at(
        self,
        points: NDArray[np.generic],
        labels: NDArray[np.generic],
        box: NDArray[np.generic] | None = None,
    ) -> Prediction:
        """Segment one object that points show.

        Parameters
        ----------
        points : (T, 2), x and y in pixels of the original.
        labels : (T,), 1 for a point in the object, 0 for one outside it.
        box : (4,), pixels of the original; None for points alone.

        Raises
        ------
        DataError
            If the model takes no points, or a prompt does not fit the image.
        """
        self._predictor.require_points()
        size = (self.frame_map.height, self.frame_map.width)
        given, kinds = _points(points, labels, self.frame_map)
        if box is None:
            # As in training: a missing box is a point that is none.
            more, more_kinds = np.zeros((1, 2)), [NO_POINT]
        else:
            more = check_box(np.asarray(box)[None], size).reshape(2, 2)
            more_kinds = [TOP_LEFT, BOTTOM_RIGHT]
        scale = boxes_to_model(np.ones(4), self.frame_map)[:2]
        prompt: Feeds = {
            "points": (np.concatenate([given, more]) * scale).astype(np.float32)[None, None],
            "labels": np.concatenate([kinds, more_kinds]).astype(np.int64)[None, None],
        }
        shown = whole_box(*size) if box is None else np.asarray(box, dtype=np.float64)
        return self._predict(prompt, shown[None])

    def _predict(self, prompt: Feeds, boxes: NDArray[np.float64]) -> Prediction:
        """Prompt with a few at a time, so that memory does not grow with their number."""
        predictor = self._predictor
        count, side = len(boxes), predictor.metadata.low_res_side
        check_prompts(count, self.frame_map, side)
        logits = np.empty((count, side, side), dtype=np.float32)
        iou = np.empty(count, dtype=np.float32)
        for start in range(0, count, BOXES_A_RUN):
            some = slice(start, start + BOXES_A_RUN)
            feeds = {name: each[:, some] for name, each in prompt.items()}
            logits[some], iou[some] = (x[0] for x in predictor.decode(self._encoded, feeds))
        threshold, calibration = predictor.metadata.mask_threshold, predictor.assurance.confidence
        return to_prediction(logits, iou, boxes, self.frame_map, threshold, calibration)


def _points(
    points: NDArray[np.generic], labels: NDArray[np.generic], frame_map: FrameMap
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Check points (T, 2) and labels (T,) against the image."""
    given, kinds = np.asarray(points, dtype=np.float64), np.asarray(labels)
    if given.ndim != 2 or given.shape[1] != 2 or kinds.shape != (len(given),) or not len(given):
        raise DataError(
            f"points of shape {given.shape} and labels of shape {kinds.shape}: give (T, 2) and "
            "(T,), at least one"
        )
    if not np.isin(kinds, [OUTSIDE, INSIDE]).all():
        raise DataError(f"labels {kinds.tolist()}: each must be 1 (inside) or 0 (outside)")
    inside = (given >= 0).all() and (given <= [frame_map.width, frame_map.height]).all()
    if not inside:
        raise DataError(
            f"a point lies outside the image of {frame_map.width}x{frame_map.height} pixels"
        )
    return given, kinds.astype(np.int64)


def check_prompts(count: int, frame_map: FrameMap, low_res_side: int) -> None:
    """Refuse more prompts of one image than can be held in memory.

    Raises
    ------
    DataError
        If there are more than ``MAX_BOXES``, or their masks and logits take more than
        ``MAX_BYTES``; says how many there may be.
    """
    each = frame_map.height * frame_map.width + 4 * low_res_side**2
    most = min(MAX_BOXES, MAX_BYTES // each)
    if count > most:
        raise DataError(
            f"{count} boxes for one image of {frame_map.width}x{frame_map.height} pixels: at most "
            f"{most} at once, as each has a mask of the image's size; give them in several runs"
        )


def to_prediction(
    logits: NDArray[np.float32],
    iou: NDArray[np.float32],
    boxes: NDArray[np.float64],
    frame_map: FrameMap,
    threshold: float,
    calibration: Calibration | None = None,
) -> Prediction:
    """Bring logits back to the original size and cut them at the threshold.

    Parameters
    ----------
    logits : (N, L, L), in the model frame, padding included.
    iou : (N,), as the model predicts it.
    boxes : (N, 4), in pixels of the original.
    threshold : a pixel is foreground where its logit exceeds this.
    calibration : from predicted to expected IoU, where the model's file knows it.
    """
    masks = np.empty((len(logits), frame_map.height, frame_map.width), dtype=np.bool_)
    for mask, one in zip(masks, logits, strict=True):
        np.greater(logits_to_original(one, frame_map), threshold, out=mask)
    scores = iou if calibration is None else calibration(iou)
    return Prediction(
        masks=masks,
        scores=np.clip(scores, 0.0, 1.0).astype(np.float32),
        logits=logits,
        boxes_xyxy_original=boxes.astype(np.float32),
    )
