"""The Python front door: load a model, call it with a radiograph, get a result.

No torch, pandas, SciPy or OpenCV is imported here: the base install runs it.

Shapes: N boxes of one image, T points, H W original pixels.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import repeat
from typing import Any, Literal, NamedTuple, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adalora_qat.ahead import in_order
from adalora_qat.chest.findings import findings, header_findings
from adalora_qat.chest.masks import LUNGS, Masks
from adalora_qat.errors import ConfigError, DataError, printable
from adalora_qat.imaging.automatic_prompt import two_passes
from adalora_qat.imaging.image_file import MAX_PIXELS
from adalora_qat.imaging.memory_file import MemoryFile
from adalora_qat.imaging.radiograph import ImageLike, Radiograph, read_radiograph
from adalora_qat.predictor import Prediction
from adalora_qat.runtime.input_check import FOREIGN, Caution
from adalora_qat.runtime.kept import default_cache
from adalora_qat.runtime.metadata import ModelMetadata
from adalora_qat.runtime.onnx_predictor import EncodedImage, OnnxPredictor, check_prompts
from adalora_qat.runtime.opened import OpenImage
from adalora_qat.runtime.packaged import packaged_predictor
from adalora_qat.runtime.plausibility import spacing_caution
from adalora_qat.runtime.prompts import Prompt, boxes_of, checked_spacing, prompt_of
from adalora_qat.runtime.result import Failure, Result

# Enough that the next image is there when a mask is done; more would only fill memory.
_READERS = 2
# A file that says that no image was ever shown whole in training, and is asked without a box.
NO_BOX_TRAINING = "no_box_training"
# The logits of so many are held at once, 17 MB in LiteMedSAM.
_BOXES_AT_ONCE = 64
_FILES = (str, os.PathLike, MemoryFile)


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    engine: str = "auto",
    low_memory: bool = False,
) -> Model:
    """Load a model to segment with.

    Parameters
    ----------
    path : a file that ``adalora-qat export`` wrote. The packaged model of both lungs if not
        given.
    threads : worker threads, None for one per core; never more than the processors that this
        process may use (``session.available_cpus``).
    engine : what runs the file: ``onnxruntime``, which is always there; ``openvino``, or with AMX
        ``openvino-bf16``, an extra; ``cuda`` or ``tensorrt`` with onnxruntime-gpu; ``auto`` is
        ``onnxruntime``. Results say which it was.
    low_memory : hold no more between images than the model, for a process that waits most of the
        time; an image takes somewhat longer. Only with ONNX Runtime.

    Returns
    -------
    A model, to be called with images.

    Raises
    ------
    CheckpointError
        If a file is missing, damaged, or was not exported by this package.
    ConfigError
        If ``threads`` is not positive, or the engine not known or not installed.
    """
    if path is None:
        return Model(
            packaged_predictor(threads, engine=engine, cache=default_cache(), low_memory=low_memory)
        )
    return Model(
        OnnxPredictor(
            os.fspath(path), threads, engine=engine, cache=default_cache(), low_memory=low_memory
        )
    )


class Model:
    """A loaded model: call it with a radiograph.

    Safe to share between threads, and needs no closing.

    Parameters
    ----------
    predictor : what runs the files; ``load`` finds it.
    """

    def __init__(self, predictor: OnnxPredictor) -> None:
        self._predictor = predictor

    @property
    def name(self) -> str:
        """The name of the model's file, without suffix."""
        return self._predictor.name

    def warm_up(self) -> None:
        """Run once on a blank image, so that the first radiograph is as fast as the next."""
        self._predictor.warm_up()

    @property
    def takes_points(self) -> bool:
        """Whether points may be given, and not only boxes."""
        return self._predictor.takes_points

    @property
    def metadata(self) -> ModelMetadata:
        """What the model's file says about itself."""
        return self._predictor.metadata

    @property
    def prompted_structures(self) -> tuple[str, ...]:
        """The structures that it finds without a box, one mask each; empty if it finds one."""
        return self.metadata.structures if self._predictor.prompts_structures else ()

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
        max_pixels: int = MAX_PIXELS,
        lenient: bool = False,
    ) -> Result:
        """Segment one radiograph.

        Without a prompt the model finds a box itself: it segments the whole image, and then
        the box of what it found (``imaging.automatic_prompt``). A model with learned prompts of
        structures gives one mask for each of them instead.

        Parameters
        ----------
        image : the path of an image or DICOM file; an array (H, W) or (H, W, 3), grey or RGB,
            of any real dtype, bones bright; a PIL image; a pydicom dataset.
        box : (4,), (x0, y0, x1, y1) in continuous pixels of the image, from the outer corner
            of its top left pixel: the box of a whole image is (0, 0, W, H).
        boxes : (N, 4), several such, each of an object of its own.
        points : (T, 2), (x, y) in the same pixels, on one object or beside it; alone or with
            one ``box``.
        labels : (T,), 1 for a point on the object, 0 for one beside it; all 1 if not given.
        spacing_mm : (row, column) size of a pixel, for areas in mm²; that of the DICOM header
            if not given.
        max_pixels : files and pictures with more are refused by what their header says.
        lenient : take what can be decoded of a damaged file.

        Returns
        -------
        One mask per box; without a prompt, one per structure that the model has a learned
        prompt for, or else one in all; one in all for points.

        Raises
        ------
        DataError
            If the image or the prompt cannot be used, or the model takes no points; names the
            file, if there is one.
        """
        prompt, spacing = prompt_of(box, boxes, points, labels), checked_spacing(spacing_mm)
        if prompt.points is not None:
            self._predictor.require_points()
        radiograph = read_radiograph(image, max_pixels=max_pixels, lenient=lenient)
        return self._segment(radiograph, prompt, spacing)

    def open(
        self,
        image: ImageLike,
        *,
        spacing_mm: tuple[float, float] | None = None,
        max_pixels: int = MAX_PIXELS,
        lenient: bool = False,
    ) -> OpenImage:
        """Read a radiograph to be prompted many times: it is encoded once, at its first prompt.

        Parameters
        ----------
        image, spacing_mm, max_pixels, lenient : as for ``__call__``.

        Returns
        -------
        The image, to be called with prompts; each call gives what ``__call__`` would.

        Raises
        ------
        DataError
            If the image cannot be used; names the file, if there is one.
        """
        spacing = checked_spacing(spacing_mm)
        radiograph = read_radiograph(image, max_pixels=max_pixels, lenient=lenient)
        try:
            ask = self._predictor.prompted(radiograph.pixels)
        except DataError as error:
            where = "" if radiograph.path is None else printable(radiograph.path)
            raise _naming(error, where) from error

        def answer(prompt: Prompt) -> Result:
            if prompt.points is not None:
                self._predictor.require_points()
            return self._segment(radiograph, prompt, spacing, ask=ask)

        return OpenImage(radiograph, answer)

    @overload
    def map(
        self,
        images: Iterable[ImageLike],
        *,
        boxes: Iterable[ArrayLike | None] | None = None,
        spacing_mm: tuple[float, float] | None = None,
        ahead: int = 4,
        errors: Literal["raise"] = "raise",
        max_pixels: int = MAX_PIXELS,
        lenient: bool = False,
    ) -> Generator[Result, None, None]: ...

    @overload
    def map(
        self,
        images: Iterable[ImageLike],
        *,
        boxes: Iterable[ArrayLike | None] | None = None,
        spacing_mm: tuple[float, float] | None = None,
        ahead: int = 4,
        errors: Literal["return"],
        max_pixels: int = MAX_PIXELS,
        lenient: bool = False,
    ) -> Generator[Result | Failure, None, None]: ...

    def map(
        self,
        images: Iterable[ImageLike],
        *,
        boxes: Iterable[ArrayLike | None] | None = None,
        spacing_mm: tuple[float, float] | None = None,
        ahead: int = 4,
        errors: Literal["raise", "return"] = "raise",
        max_pixels: int = MAX_PIXELS,
        lenient: bool = False,
    ) -> Generator[Result | Failure, None, None] | Generator[Result, None, None]:
        """Segment many radiographs, in order, while the next ones are being read.

        Nothing is kept: memory does not grow with the number of images. Closing the generator
        ends its threads, as leaving a loop over it does.

        Parameters
        ----------
        images : as ``__call__`` takes them; taken one by one, so a generator will do.
        boxes : for each image its box (4,) or boxes (N, 4), or None to find one.
        spacing_mm : (row, column) size of a pixel, the same for all.
        ahead : how many images may be read before they are asked for, at least 1.
        errors : ``return`` gives a ``Failure`` in place of the result of an image that cannot
            be used, and goes on with the next.
        max_pixels, lenient : as for ``__call__``.

        Yields
        ------
        What ``__call__`` returns for each image, or with ``errors="return"`` a ``Failure``.

        Raises
        ------
        DataError
            As ``__call__``, when the turn of that image comes; names the file, or else the
            place in ``images``, counted from 0.
        ConfigError
            If ``ahead`` is not positive, or ``errors`` neither word.
        """
        if ahead < 1:
            raise ConfigError(f"ahead={ahead}: give at least 1 image to read ahead")
        if errors not in ("raise", "return"):
            raise ConfigError(f"errors={errors!r}: give 'raise' or 'return'")
        read = partial(_read, max_pixels=max_pixels, lenient=lenient)
        results = self._mapped(_asked(images, boxes), read, checked_spacing(spacing_mm), ahead)
        return results if errors == "return" else _raising(results)

    def _mapped(
        self,
        asked: Iterable[_Asked],
        read: Callable[[_Asked], _Read],
        spacing_mm: tuple[float, float] | None,
        ahead: int,
    ) -> Generator[Result | Failure, None, None]:
        pool = ThreadPoolExecutor(_READERS, thread_name_prefix="adalora-qat-read")
        try:
            for done in in_order(pool, read, asked, ahead):
                yield self._result(*done, spacing_mm)
        finally:
            pool.shutdown(cancel_futures=True)

    def _result(
        self,
        asked: _Asked,
        found: tuple[Radiograph, Prompt] | DataError,
        spacing_mm: tuple[float, float] | None,
    ) -> Result | Failure:
        if not isinstance(found, DataError):
            try:
                return self._segment(*found, spacing_mm, asked.where)
            except DataError as error:
                found = error
        source = str(asked.image) if isinstance(asked.image, _FILES) else None
        return Failure(source, asked.place, printable(found), found)

    def _segment(
        self,
        radiograph: Radiograph,
        prompt: Prompt,
        spacing_mm: tuple[float, float] | None,
        place: str = "",
        ask: EncodedImage | None = None,
    ) -> Result:
        """Predict, and say what came of it: the one path of every result."""
        started, path = time.perf_counter(), radiograph.path
        try:
            prediction, cautions = self._predict(radiograph.pixels, prompt, ask)
        except DataError as error:
            where = place if path is None else printable(path)
            raise _naming(error, where) from error
        confidence, means = self._confidence(prediction)
        spacing_mm = spacing_mm or radiograph.spacing_mm
        structures = self._structures(len(prediction.masks), prompt)
        lungs = [name in LUNGS for name in structures] if structures else slice(None)
        cautions = (
            *cautions,
            *self._findings(prediction, structures, radiograph, cautions),
            *self._more_cautions(prediction.masks[lungs], prompt, spacing_mm),
        )
        return Result(
            name="image" if path is None else path.name,
            image=radiograph.pixels,
            masks=Masks(prediction.masks),
            boxes=prediction.boxes_xyxy_original,
            scores=prediction.scores,
            confidence=confidence,
            confidence_means=means,
            warnings=cautions,
            prompt=prompt.kind,
            spacing_mm=spacing_mm,
            seconds={"read": radiograph.seconds, "predict": time.perf_counter() - started},
            model=self.described(),
            file_sha256=radiograph.sha256,
            structures=structures,
            view=radiograph.stated.view,
        )

    def _predict(
        self, pixels: NDArray[Any], prompt: Prompt, ask: EncodedImage | None
    ) -> tuple[Prediction, Sequence[Caution]]:
        ask, first = ask or self._predictor.prompted(pixels), None
        if prompt.points is not None and prompt.labels is not None:
            box = None if prompt.boxes is None else prompt.boxes[0]
            prediction = ask.point_at(prompt.points, prompt.labels, box)
        elif prompt.boxes is not None:
            prediction = self._of_boxes(ask, prompt.boxes)
        elif ask.prompts_structures:
            prediction = ask.structures()
        else:
            first, prediction = two_passes(ask, (pixels.shape[0], pixels.shape[1]))
        look = self._predictor.assurance.look
        return prediction, look(ask.embeddings, ask.frame_map, prediction, first)

    def _of_boxes(self, ask: EncodedImage, boxes: NDArray[np.float64]) -> Prediction:
        """Ask for some boxes at a time: masks are kept, logits, which no result has, are not."""
        side = self.metadata.low_res_side
        check_prompts(len(boxes), ask.frame_map, side)
        if len(boxes) <= _BOXES_AT_ONCE:
            return ask(boxes)
        masks = np.empty((len(boxes), ask.frame_map.height, ask.frame_map.width), dtype=np.bool_)
        parts = []
        for start in range(0, len(boxes), _BOXES_AT_ONCE):
            part = ask(boxes[start : start + _BOXES_AT_ONCE])
            masks[start : start + _BOXES_AT_ONCE] = part.masks
            parts.append((part.scores, part.boxes_xyxy_original))
        scores, shown = (np.concatenate(each) for each in zip(*parts, strict=True))
        return Prediction(masks, scores, np.empty((0, side, side), np.float32), shown)

    def _findings(
        self,
        prediction: Prediction,
        structures: Sequence[str],
        radiograph: Radiograph,
        cautions: Sequence[Caution],
    ) -> list[Caution]:
        """Return whether the radiograph is fit to be measured, where a whole chest was asked for.

        Of what is no chest, or lies on its side, the shape of the masks says nothing further.
        """
        if not self._predictor.prompts_structures or not structures:
            return []
        if any(caution.code in FOREIGN for caution in cautions):
            return header_findings(radiograph.stated)
        return findings(dict(zip(structures, prediction.masks, strict=True)), radiograph.stated)

    def _more_cautions(
        self, lungs: NDArray[np.bool_], prompt: Prompt, spacing_mm: tuple[float, float] | None
    ) -> list[Caution]:
        """Return what is odd about how the model is asked, and about the size of a pixel."""
        found: list[Caution] = []
        automatic = prompt.kind == "automatic"
        if automatic and self.metadata.automatic_prompt is False:
            words = "the model was never trained without a box; give one"
            found.append(Caution(NO_BOX_TRAINING, words, 0, 0))
        # Only a model of lungs has limits of plausibility, and those that are shipped have them.
        named = any(name in LUNGS for name in self.metadata.structures)
        if (named or self._predictor.assurance.plausibility) and spacing_mm is not None:
            found += spacing_caution(lungs, spacing_mm[1], whole=automatic)
        return found

    def _confidence(self, prediction: Prediction) -> tuple[float | None, str]:
        """Return the expected IoU and what it means, if the model's file can say it."""
        calibration = self._predictor.assurance.confidence
        if calibration is None:
            return None, "the model is not calibrated"
        return round(float(prediction.scores.mean()), 4), (
            "expected IoU of the mask with one drawn by hand: the mean of such masks among "
            f"{calibration.cases} of validation images, degraded ones included"
        )

    def _structures(self, count: int, prompt: Prompt) -> tuple[str, ...]:
        """Name the masks: of learned prompts, or if the model was trained on one structure."""
        if prompt.kind == "automatic" and self.prompted_structures:
            return self.prompted_structures
        trained = self.metadata.structures
        return trained * count if len(trained) == 1 else ()

    def described(self) -> dict[str, str]:
        """Return what results say of their model: files, hashes, variant, policy, version."""
        predictor, metadata = self._predictor, self.metadata
        return {
            "file": predictor.path.name,
            "sha256": predictor.sha256,
            "variant": metadata.variant,
            "policy": metadata.policy,
            "version": metadata.product_version,
            "engine": predictor.engine,
            "engine_reason": predictor.engine_reason,
        }


class _Asked(NamedTuple):
    """An image of a sequence, its boxes, and its place."""

    image: ImageLike
    boxes: ArrayLike | None
    place: int

    @property
    def where(self) -> str:
        is_file = isinstance(self.image, _FILES)
        return printable(self.image) if is_file else f"images[{self.place}]"


_Read: TypeAlias = tuple[_Asked, tuple[Radiograph, Prompt] | DataError]


def _asked(
    images: Iterable[ImageLike], boxes: Iterable[ArrayLike | None] | None
) -> Iterator[_Asked]:
    missing: Any = object()
    boxed = iter(repeat(None) if boxes is None else boxes)
    for index, image in enumerate(images):
        given = next(boxed, missing)
        if given is missing:
            raise DataError(f"boxes= has no entry for images[{index}]; give None for no box")
        yield _Asked(image, given, index)
    if boxes is not None and next(boxed, missing) is not missing:
        raise DataError("boxes= has more entries than there are images")


def _read(asked: _Asked, *, max_pixels: int, lenient: bool) -> _Read:
    try:
        radiograph = read_radiograph(asked.image, max_pixels=max_pixels, lenient=lenient)
        return asked, (radiograph, Prompt(boxes_of(asked.boxes)))
    except (DataError, MemoryError) as error:
        refused = error if isinstance(error, DataError) else DataError("it does not fit in memory")
        return asked, _naming(refused, asked.where)


def _raising(results: Generator[Result | Failure, None, None]) -> Generator[Result, None, None]:
    with closing(results):
        for result in results:
            if isinstance(result, Failure):
                raise result.cause
            yield result


def _naming(error: DataError, where: str) -> DataError:
    """Return the error with the name of its image, which errors of reading a file have."""
    text = str(error)
    return DataError(text if where in text else f"{where}: {text}")
