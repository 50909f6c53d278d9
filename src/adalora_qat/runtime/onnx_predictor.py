"""One exported ONNX file as a predictor: NumPy in and NumPy out.

No torch, pandas, SciPy or OpenCV is imported here: the base install runs it.

Shapes: B images, N boxes, S model side, L low-resolution side, H W original pixels.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from adalora_qat.errors import CheckpointError, ConfigError, DataError
from adalora_qat.imaging.geometry import (
    FrameMap,
    boxes_to_model,
    check_box,
    image_to_model,
    logits_to_original,
    whole_box,
)
from adalora_qat.predictor import Prediction
from adalora_qat.runtime.assurance import Assurance
from adalora_qat.runtime.confidence import Calibration
from adalora_qat.runtime.digest import verified_sha256
from adalora_qat.runtime.metadata import ModelMetadata, Part
from adalora_qat.runtime.session import inference_session, session_options

# Boxes that the decoder takes in one run: its memory is then that of so many, about 30 MB each
# in LiteMedSAM.
BOXES_A_RUN = 8
MAX_BOXES = 10_000
# Of the masks and logits of one image.
MAX_BYTES = 4_000_000_000


def open_session(
    path: Path, threads: int | None = None, *, low_memory: bool = False
) -> ort.InferenceSession:
    """Open an ONNX file on the CPU.

    Parameters
    ----------
    threads : worker threads, None for one per core; at most ``session.available_cpus``.
    low_memory : give memory back between operators instead of keeping an arena; slower.
        The process holds less between images, and at its peak little less.

    Raises
    ------
    CheckpointError
        If the file is missing, or is not an ONNX model that this runtime can run.
    ConfigError
        If ``threads`` is not positive.
    """
    if threads is not None and threads < 1:
        raise ConfigError(f"threads={threads}: give at least 1, or none for one per core")
    if not path.is_file():
        raise CheckpointError(f"model file {path} does not exist")
    options = session_options(threads)
    options.enable_cpu_mem_arena = not low_memory
    # Planned memory is one block of the whole network's, made beside what the first run
    # already holds: half as much memory again, and slower than blocks that stay in the cache.
    options.enable_mem_pattern = False
    try:
        session = inference_session(path, options)
    # ONNX Runtime's exceptions share no base class but Exception.
    except Exception as error:
        cause = str(error).splitlines()[0][:200]
        raise CheckpointError(
            f"{path} is not an ONNX model that can be run ({cause}); "
            "write one with `adalora-qat export`"
        ) from error
    _give_memory_back()
    return session


def _give_memory_back() -> None:
    """Return to the system what was freed: loading a model needs much more than it keeps."""
    # Only glibc has the function.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def read_metadata(
    session: ort.InferenceSession, origin: str, part: Part | None = None
) -> ModelMetadata:
    """Read a session's self-description.

    Parameters
    ----------
    origin : what to call the file in errors.
    part : what it must be, whole or one half; None takes any.

    Raises
    ------
    CheckpointError
        If this package did not export the file, its description is damaged or of another graph,
        or it is another part.
    """
    metadata = ModelMetadata.of(session, origin)
    if part is not None and metadata.part != part:
        raise CheckpointError(f"{origin} holds the {metadata.part} part, not the {part} model")
    return metadata


class OnnxPredictor:
    """Segments images with one exported ONNX file.

    Safe to share between threads: nothing is changed after construction, and ONNX Runtime
    sessions run concurrently.

    Parameters
    ----------
    path : the file that ``adalora-qat export`` wrote.
    threads : worker threads, None for one per core.
    name : for tables; the file's stem if not given.
    low_memory : less memory between images, slower.
    session : the file, where it is open already.

    Raises
    ------
    CheckpointError
        If the file is missing, is not ONNX, or was not exported by this package.
    """

    def __init__(
        self,
        path: Path | str,
        threads: int | None = None,
        name: str | None = None,
        *,
        low_memory: bool = False,
        session: ort.InferenceSession | None = None,
    ) -> None:
        self.path = Path(path)
        self._name = name or self.path.stem
        # Before ONNX Runtime sees the file: it says less of what is wrong with a damaged one.
        self.sha256 = verified_sha256(self.path)
        self._session = session or open_session(self.path, threads, low_memory=low_memory)
        self._low_memory = low_memory
        self.metadata = read_metadata(self._session, str(self.path), "whole")
        self.assurance = Assurance.of(self.metadata, str(self.path))
        given = {output.name for output in self._session.get_outputs()}
        self._gives_embeddings = "embeddings" in given
        asked = {each.name for each in self._session.get_inputs()}
        self.prompts_structures = "structures" in asked

    @property
    def name(self) -> str:
        """A short name for tables."""
        return self._name

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

    def prompted(self, image: NDArray[np.generic]) -> PromptedImage:
        """Return a function of boxes for one image, encoded once; see ``EncodesOnce``."""
        return PromptedImage(self, image)

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
        logits, iou = self._session.run(["logits", "iou"], self._feeds(image, boxes, None))
        self._done()
        return logits, iou

    def run_once_encoded(
        self,
        image: NDArray[np.float32],
        boxes: NDArray[np.float32],
        embeddings: NDArray[np.float32] | None,
        structures: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
        """Run the bare model as ``run`` does, but not its encoder if ``embeddings`` are given.

        ``structures`` (1, N) says which of the file's structures each mask shall be, −1 for
        what the box holds; None for that throughout. Only where ``prompts_structures``.

        Returns
        -------
        logits (1, N, L, L), predicted IoU (1, N) and the embeddings (E², D); None where the
        file, of an earlier version, keeps them to itself.
        """
        if not self._gives_embeddings:
            return *self.run(image, boxes), None
        feeds = self._feeds(image, boxes, structures)
        if embeddings is not None:
            feeds["known_embeddings"] = embeddings
        logits, iou, found = self._session.run(["logits", "iou", "embeddings"], feeds)
        self._done()
        return logits, iou, found

    def _feeds(
        self,
        image: NDArray[np.float32],
        boxes: NDArray[np.float32],
        structures: NDArray[np.int64] | None,
    ) -> dict[str, NDArray[Any]]:
        feeds: dict[str, NDArray[Any]] = {"image": image, "boxes": boxes}
        if self.prompts_structures:
            none = np.full(boxes.shape[:2], -1, dtype=np.int64)
            feeds["structures"] = none if structures is None else structures
        return feeds

    def _done(self) -> None:
        if self._low_memory:
            _give_memory_back()

    def prediction(
        self,
        logits: NDArray[np.float32],
        iou: NDArray[np.float32],
        boxes: NDArray[np.float64],
        frame_map: FrameMap,
    ) -> Prediction:
        """Turn logits (N, L, L) and predicted IoU (N,) into a prediction."""
        threshold, calibration = self.metadata.mask_threshold, self.assurance.confidence
        return to_prediction(logits, iou, boxes, frame_map, threshold, calibration)

    def warm_up(self) -> None:
        """Run once on a blank frame, so that the first image is as fast as the next."""
        side = self.metadata.frame.side
        box = np.array([[[0, 0, side, side]]], dtype=np.float32)
        self.run(np.zeros((1, 3, side, side), dtype=np.float32), box)


class PromptedImage:
    """One image of a predictor: encoded at its first prompt, then prompted at will.

    Attributes
    ----------
    pixels : (3, S, S) float32, the image in the model frame.
    frame_map : the way back to its own pixels.
    embeddings : (E², D) float32, None before the first prompt.

    Raises
    ------
    DataError
        If the image is of one colour or not an image.
    """

    def __init__(self, predictor: OnnxPredictor, image: NDArray[np.generic]) -> None:
        self._predictor = predictor
        self.pixels, self.frame_map = image_to_model(image, predictor.metadata.frame)
        self.embeddings: NDArray[np.float32] | None = None

    def __call__(self, boxes_xyxy_original: NDArray[np.generic]) -> Prediction:
        """Segment the image given boxes (N, 4), (x0, y0, x1, y1) in pixels of the original.

        Raises
        ------
        DataError
            If a box does not fit the image, or there are too many (``check_prompts``).
        """
        boxes = check_box(boxes_xyxy_original, (self.frame_map.height, self.frame_map.width))
        model_boxes = boxes_to_model(boxes, self.frame_map).astype(np.float32)
        side = self._predictor.metadata.low_res_side
        check_prompts(len(boxes), self.frame_map, side)
        logits, iou = in_runs(self._run, model_boxes, side)
        return self._predictor.prediction(logits, iou, boxes, self.frame_map)

    def structures(self) -> Prediction:
        """Segment every structure that the model has a learned prompt for, without a box.

        Returns
        -------
        (N, H, W) masks in the order of the metadata's ``structures``; their boxes are the image.
        """
        count = len(self._predictor.metadata.structures)
        boxes = np.repeat(whole_box(self.frame_map.height, self.frame_map.width)[None], count, 0)
        logits, iou, self.embeddings = self._predictor.run_once_encoded(
            self.pixels[None],
            boxes_to_model(boxes, self.frame_map).astype(np.float32)[None],
            self.embeddings,
            np.arange(count)[None],
        )
        return self._predictor.prediction(logits[0], iou[0], boxes, self.frame_map)

    @property
    def prompts_structures(self) -> bool:
        """Whether the model has learned prompts for structures."""
        return self._predictor.prompts_structures

    def _run(
        self, model_boxes: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        logits, iou, self.embeddings = self._predictor.run_once_encoded(
            self.pixels[None], model_boxes[None], self.embeddings
        )
        return logits[0], iou[0]


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


def in_runs(
    run: Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.float32]]],
    model_boxes: NDArray[np.float32],
    low_res_side: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Prompt with a few boxes at a time, so that memory does not grow with their number.

    Parameters
    ----------
    run : boxes (n, 4) in the model frame, n at most ``BOXES_A_RUN``, to logits (n, L, L) and
        predicted IoU (n,).
    model_boxes : (N, 4).

    Returns
    -------
    logits (N, L, L) and predicted IoU (N,).
    """
    count = len(model_boxes)
    logits = np.empty((count, low_res_side, low_res_side), dtype=np.float32)
    iou = np.empty(count, dtype=np.float32)
    for start in range(0, count, BOXES_A_RUN):
        some = slice(start, start + BOXES_A_RUN)
        logits[some], iou[some] = run(model_boxes[some])
    return logits, iou


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
