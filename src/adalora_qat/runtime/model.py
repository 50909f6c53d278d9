"""The Python front door: load a model, call it with a radiograph, get a result.

No torch, pandas, SciPy or OpenCV is imported here: the base install runs it.

Shapes: N boxes of one image, T points, H W original pixels.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adalora_qat.ahead import in_order
from adalora_qat.errors import CheckpointError, ConfigError, DataError
from adalora_qat.imaging.automatic_prompt import two_passes
from adalora_qat.imaging.radiograph import ImageLike, Radiograph, read_radiograph
from adalora_qat.predictor import Prediction
from adalora_qat.runtime.input_check import Caution
from adalora_qat.runtime.interactive import INSIDE, EncodedImage, InteractivePredictor
from adalora_qat.runtime.metadata import ModelMetadata
from adalora_qat.runtime.onnx_predictor import OnnxPredictor, open_session, read_metadata
from adalora_qat.runtime.packaged import packaged_predictor
from adalora_qat.runtime.result import PromptKind, Result

# Enough that the next image is there when a mask is done; more would only fill memory.
_READERS = 2


def load(path: str | os.PathLike[str] | None = None, *, threads: int | None = None) -> Model:
    """Load a model to segment with.

    Parameters
    ----------
    path : a file that ``adalora-qat export`` wrote; of ``export --split``, the encoder's
        (``<stem>-encoder.onnx``, its decoder beside it). The packaged model of both lungs if
        not given.
    threads : worker threads, None for one per core.

    Returns
    -------
    A model, to be called with images.

    Raises
    ------
    CheckpointError
        If a file is missing, damaged, or was not exported by this package.
    ConfigError
        If ``threads`` is not positive.
    """
    if path is None:
        return Model(packaged_predictor(threads))
    file = Path(path)
    session = open_session(file, threads)
    part = read_metadata(session, str(file)).part
    if part == "whole":
        return Model(OnnxPredictor(file, session=session))
    if part == "decoder":
        raise CheckpointError(f"{file} is the decoder of a split model; load its encoder")
    decoder = file.with_name(f"{file.stem.removesuffix('encoder')}decoder{file.suffix}")
    if not decoder.is_file():
        raise CheckpointError(
            f"{file} is the encoder of a split model, and its decoder {decoder} is not there; put "
            "both files of `adalora-qat export --split` into one folder"
        )
    return Model(InteractivePredictor(file, decoder, threads))


class Model:
    """A loaded model: call it with a radiograph.

    Safe to share between threads, and needs no closing.

    Parameters
    ----------
    predictor : what runs the files; ``load`` finds it.
    """

    def __init__(self, predictor: OnnxPredictor | InteractivePredictor) -> None:
        self._predictor = predictor

    @property
    def name(self) -> str:
        """The name of the model's file, without suffix."""
        return self._predictor.name

    @property
    def metadata(self) -> ModelMetadata:
        """What the model's file says about itself."""
        return self._predictor.metadata

    def __repr__(self) -> str:
        return f"<Model {self._predictor.path}: {self.metadata.variant}, {self.metadata.policy}>"

    def __call__(
        self,
        image: ImageLike,
        *,
        box: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        spacing_mm: tuple[float, float] | None = None,
    ) -> Result:
        """Segment one radiograph.

        Without a prompt the model finds a box itself: it segments the whole image, and then
        the box of what it found (``imaging.automatic_prompt``).

        Parameters
        ----------
        image : the path of an image or DICOM file; an array (H, W) or (H, W, 3), grey or RGB,
            of any real dtype, bones bright; a PIL image; a pydicom dataset.
        box : (4,), (x0, y0, x1, y1) in continuous pixels of the image, from the outer corner
            of its top left pixel: the box of a whole image is (0, 0, W, H).
        boxes : (N, 4), several such, each of an object of its own.
        points : (T, 2), (x, y) in the same pixels, on one object or beside it; alone or with
            one ``box``. Needs a split model.
        labels : (T,), 1 for a point on the object, 0 for one beside it; all 1 if not given.
        spacing_mm : (row, column) size of a pixel, for areas in mm²; that of the DICOM header
            if not given.

        Returns
        -------
        One mask per box, one in all for points or without a prompt.

        Raises
        ------
        DataError
            If the image or the prompt cannot be used, or the model takes no points; names the
            file, if there is one.
        """
        prompt, spacing = _prompt(box, boxes, points, labels), _spacing(spacing_mm)
        if prompt.points is not None and not isinstance(self._predictor, InteractivePredictor):
            raise DataError(
                f"{self._predictor.path} takes boxes, no points; write a model that takes them "
                "with `adalora-qat export --split` and load its encoder file"
            )
        return self._segment(read_radiograph(image), prompt, spacing)

    def map(
        self,
        images: Iterable[ImageLike],
        *,
        boxes: Iterable[ArrayLike | None] | None = None,
        spacing_mm: tuple[float, float] | None = None,
        ahead: int = 4,
    ) -> Generator[Result, None, None]:
        """Segment many radiographs, in order, while the next ones are being read.

        Nothing is kept: memory does not grow with the number of images. Closing the generator
        ends its threads, as leaving a loop over it does.

        Parameters
        ----------
        images : as ``__call__`` takes them; taken one by one, so a generator will do.
        boxes : for each image its box (4,) or boxes (N, 4), or None to find one.
        spacing_mm : (row, column) size of a pixel, the same for all.
        ahead : how many images may be read before they are asked for, at least 1.

        Yields
        ------
        What ``__call__`` returns for each image.

        Raises
        ------
        DataError
            As ``__call__``, when the turn of that image comes; names the file, or else the
            place in ``images``, counted from 0.
        ConfigError
            If ``ahead`` is not positive.
        """
        if ahead < 1:
            raise ConfigError(f"ahead={ahead}: give at least 1 image to read ahead")
        return self._mapped(_asked(images, boxes), _spacing(spacing_mm), ahead)

    def _mapped(
        self, asked: Iterable[_Asked], spacing_mm: tuple[float, float] | None, ahead: int
    ) -> Generator[Result, None, None]:
        pool = ThreadPoolExecutor(_READERS, thread_name_prefix="adalora-qat-read")
        try:
            for radiograph, prompt, place in in_order(pool, _read, asked, ahead):
                yield self._segment(radiograph, prompt, spacing_mm, place)
        finally:
            pool.shutdown(cancel_futures=True)

    def _segment(
        self,
        radiograph: Radiograph,
        prompt: _Prompt,
        spacing_mm: tuple[float, float] | None,
        place: str = "",
    ) -> Result:
        """Predict, and say what came of it: the one path of every result."""
        started, path = time.perf_counter(), radiograph.path
        try:
            prediction, cautions = self._predict(radiograph.pixels, prompt)
        except DataError as error:
            raise _naming(error, str(path or place)) from error
        confidence, means = self._confidence(prediction)
        return Result(
            name="image" if path is None else path.name,
            image=radiograph.pixels,
            masks=prediction.masks,
            boxes=prediction.boxes_xyxy_original,
            scores=prediction.scores,
            confidence=confidence,
            confidence_means=means,
            warnings=tuple(cautions),
            prompt=prompt.kind,
            spacing_mm=spacing_mm or radiograph.spacing_mm,
            seconds={"read": radiograph.seconds, "predict": time.perf_counter() - started},
            model=self._described(),
            file_sha256=radiograph.sha256,
            structures=self._structures(len(prediction.masks)),
        )

    def _predict(
        self, pixels: NDArray[Any], prompt: _Prompt
    ) -> tuple[Prediction, Sequence[Caution]]:
        ask, first = self._predictor.prompted(pixels), None
        if prompt.points is not None and isinstance(ask, EncodedImage):
            box = None if prompt.boxes is None else prompt.boxes[0]
            prediction = ask.predictor.decode(
                ask, box=box, points=prompt.points, labels=prompt.labels
            )
        elif prompt.boxes is not None:
            prediction = ask(prompt.boxes)
        else:
            first, prediction = two_passes(ask, (pixels.shape[0], pixels.shape[1]))
        look = self._predictor.assurance.look
        return prediction, look(ask.embeddings, ask.frame_map, prediction, first)

    def _confidence(self, prediction: Prediction) -> tuple[float | None, str]:
        """Return the expected IoU and what it means, if the model's file can say it."""
        calibration = self._predictor.assurance.confidence
        if calibration is None:
            return None, "the model is not calibrated"
        return round(float(prediction.scores.mean()), 4), (
            "expected IoU of the mask with one drawn by hand: the mean of such masks among "
            f"{calibration.cases} of validation images, degraded ones included"
        )

    def _structures(self, count: int) -> tuple[str, ...]:
        """Name every mask if the model was trained on one structure; several name none."""
        trained = self.metadata.structures
        return trained * count if len(trained) == 1 else ()

    def _described(self) -> dict[str, str]:
        predictor, metadata = self._predictor, self.metadata
        files = {"file": predictor.path.name, "sha256": predictor.sha256}
        if isinstance(predictor, InteractivePredictor):
            files["decoder"] = predictor.decoder_path.name
            files["decoder_sha256"] = predictor.decoder_sha256
        return {
            **files,
            "variant": metadata.variant,
            "policy": metadata.policy,
            "version": metadata.product_version,
        }


class _Prompt(NamedTuple):
    """What an image is asked with; nothing for the automatic prompt."""

    boxes: NDArray[np.float64] | None = None
    points: NDArray[np.float64] | None = None
    labels: NDArray[np.int64] | None = None

    @property
    def kind(self) -> PromptKind:
        if self.points is not None:
            return "points"
        return "automatic" if self.boxes is None else "box"


def _prompt(
    box: ArrayLike | None,
    boxes: ArrayLike | None,
    points: ArrayLike | None,
    labels: ArrayLike | None,
) -> _Prompt:
    if box is not None and boxes is not None:
        raise DataError("give box= or boxes=, not both")
    if points is not None and boxes is not None:
        raise DataError("points show one object; give them alone or with one box=")
    if points is None:
        if labels is not None:
            raise DataError("labels= say what points= are; give points, too")
        return _Prompt(_boxes(boxes if box is None else [box]))
    places = _numbers(points, "points", "(T, 2) finite numbers x,y")
    kinds = np.full(len(places), INSIDE) if labels is None else np.asarray(labels)
    return _Prompt(_boxes(None if box is None else [box]), places, kinds)


def _boxes(given: Any) -> NDArray[np.float64] | None:
    """Return boxes (N, 4); that they are such, and fit the image, is checked with the image."""
    if given is None:
        return None
    return np.atleast_2d(_numbers(given, "box", "four finite numbers x0,y0,x1,y1"))


def _numbers(given: ArrayLike, name: str, wanted: str) -> NDArray[np.float64]:
    try:
        array = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if not array.ndim or not np.isfinite(array).all():
        raise DataError(f"{name} {given!r}: give {wanted}")
    return array


def _spacing(given: tuple[float, float] | None) -> tuple[float, float] | None:
    if given is None:
        return None
    wanted = "(row, column), two positive numbers in mm"
    spacing = _numbers(given, "spacing_mm", wanted)
    if spacing.shape != (2,) or (spacing <= 0).any():
        raise DataError(f"spacing_mm {given!r}: give {wanted}")
    return float(spacing[0]), float(spacing[1])


class _Asked(NamedTuple):
    """An image of a sequence, its boxes, and its place."""

    image: ImageLike
    boxes: ArrayLike | None
    place: str


def _asked(
    images: Iterable[ImageLike], boxes: Iterable[ArrayLike | None] | None
) -> Iterator[_Asked]:
    missing: Any = object()
    boxed = iter(repeat(None) if boxes is None else boxes)
    for index, image in enumerate(images):
        given = next(boxed, missing)
        if given is missing:
            raise DataError(f"boxes= has no entry for images[{index}]; give None for no box")
        yield _Asked(image, given, f"images[{index}]")
    if boxes is not None and next(boxed, missing) is not missing:
        raise DataError("boxes= has more entries than there are images")


def _read(asked: _Asked) -> tuple[Radiograph, _Prompt, str]:
    image, given, place = asked
    try:
        return read_radiograph(image), _Prompt(_boxes(given)), place
    except DataError as error:
        where = str(image) if isinstance(image, str | os.PathLike) else place
        raise _naming(error, where) from error


def _naming(error: DataError, where: str) -> DataError:
    """Return the error with the name of its image, which errors of reading a file have."""
    text = str(error)
    return DataError(text if where in text else f"{where}: {text}")
