"""Segmenting files: an image or a folder in; a mask, an overlay and a JSON for each out.

Everything given is checked before anything is written: a run either starts with inputs
that can all be used, or says which cannot and leaves no file behind.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from adalora_qat.errors import DataError
from adalora_qat.files import atomic_write, sha256_file, write_json
from adalora_qat.imaging.automatic_prompt import two_passes
from adalora_qat.imaging.geometry import Frame, check_box, image_to_model, load_image, to_grey_uint8
from adalora_qat.predictor import Prediction
from adalora_qat.progress import Progress
from adalora_qat.runtime.runtime import OnnxPredictor

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm"})
BOX_COLUMNS = ("file", "x0", "y0", "x1", "y1")
_MASK_COLOUR = np.array([230, 70, 40], dtype=np.float32)
_MASK_OPACITY = 0.4
_BOX_COLOUR = (70, 160, 255)


@dataclass(frozen=True)
class Job:
    """One image to segment and its boxes (N, 4) in its own pixels, None to find one."""

    image: Path
    boxes_xyxy_original: NDArray[np.float64] | None


def segment_files(
    source: Path,
    predictor: OnnxPredictor,
    out: Path,
    *,
    box: Sequence[float] | None = None,
    boxes_csv: Path | None = None,
    spacing_mm: tuple[float, float] | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Segment an image, or every image of a folder.

    Writes ``<stem>_mask.png`` (0/255, original size; the union where an image has several
    boxes), ``<stem>_overlay.png`` and, last, ``<stem>.json`` for each image.

    Parameters
    ----------
    source : an image file, or a folder whose images are taken in order of their names.
    box : x0, y0, x1, y1 in pixels of the original, for every image; without boxes the model
        finds one in each image (``imaging.automatic_prompt``).
    boxes_csv : columns file,x0,y0,x1,y1; several rows for one file are several boxes.
    spacing_mm : (row, column) size of a pixel, where known: adds areas in mm². DICOM files
        may state their own.
    progress : called with (done, total, name) after each image.

    Returns
    -------
    The content of the JSON files, in order.

    Raises
    ------
    DataError
        If an image, a box or the table cannot be used, or two results would have one name.
    UserError
        If the folder cannot be written.
    """
    jobs = plan(source, box=box, boxes_csv=boxes_csv)
    check(jobs, predictor.metadata.frame, out)
    results = []
    for done, job in enumerate(jobs, start=1):
        results.append(_segment_one(job, predictor, out, spacing_mm))
        if progress is not None:
            progress(done, len(jobs), job.image.name)
    return results


def plan(
    source: Path, *, box: Sequence[float] | None = None, boxes_csv: Path | None = None
) -> list[Job]:
    """List the images and give each its boxes.

    Raises
    ------
    DataError
        If there is no image, or the boxes do not name them one and all.
    """
    if box is not None and boxes_csv is not None:
        raise DataError("give --box or --boxes, not both")
    images = _images(source)
    if boxes_csv is None:
        given = None if box is None else np.asarray([box], dtype=np.float64)
        return [Job(image, given) for image in images]
    table = read_boxes(boxes_csv)
    names = {image.name for image in images}
    unknown, missing = sorted(set(table) - names), sorted(names - set(table))
    if unknown:
        raise DataError(f"{boxes_csv} names {_some(unknown)}, not found in {source}")
    if missing:
        raise DataError(f"{boxes_csv} has no row for {_some(missing)}; add a box for each image")
    return [Job(image, table[image.name]) for image in images]


def read_boxes(path: Path) -> dict[str, NDArray[np.float64]]:
    """Read a table of boxes, file,x0,y0,x1,y1 in pixels of the original.

    Returns
    -------
    File name → (N, 4), in the order of the rows.

    Raises
    ------
    DataError
        If the file is missing, lacks a column, or a row does not hold four numbers.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, skipinitialspace=True)
            header = reader.fieldnames or []
            absent = [name for name in BOX_COLUMNS if name not in header]
            if absent:
                raise DataError(
                    f"{path} lacks the column {', '.join(absent)}; "
                    f"its first line must be {','.join(BOX_COLUMNS)}"
                )
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the table of boxes {path} cannot be read: {error}") from error
    boxes: dict[str, list[list[float]]] = {}
    for line, row in rows:
        try:
            numbers = [float(row[name]) for name in BOX_COLUMNS[1:]]
        except (TypeError, ValueError):
            raise DataError(f"{path}, line {line}: x0,y0,x1,y1 must be four numbers") from None
        boxes.setdefault(Path(row["file"]).name, []).append(numbers)
    if not boxes:
        raise DataError(f"{path} holds no boxes; add a line for each image")
    return {name: np.asarray(values) for name, values in boxes.items()}


def check(jobs: Sequence[Job], frame: Frame, out: Path) -> None:
    """Check every image and box, and that no result takes another's name.

    Raises
    ------
    DataError
        Naming the file and the remedy.
    """
    _check_names(jobs, out)
    for job in jobs:
        image, _ = read_image(job.image)
        try:
            # The whole preparation, not a part of it: what passes here can be segmented.
            image_to_model(image, frame)
            if job.boxes_xyxy_original is not None:
                check_box(job.boxes_xyxy_original, (image.shape[0], image.shape[1]))
        except DataError as error:
            raise DataError(f"{job.image}: {error}") from error


def read_image(path: Path) -> tuple[NDArray[Any], tuple[float, float] | None]:
    """Read an image file, or a radiograph in DICOM, and the size of its pixels where it is known.

    Raises
    ------
    DataError
        If the file cannot be used, or it is DICOM and the packages that read it are not there.
    """
    if path.suffix.lower() != ".dcm":
        return load_image(path), None
    try:
        from adalora_qat.imaging.dicom import read_dicom
    except ModuleNotFoundError as error:
        raise DataError(
            f"{path} is DICOM, which needs {error.name}; run pip install 'adalora-qat[data]', or "
            "save the radiograph as a 16-bit PNG"
        ) from error
    found = read_dicom(path)
    return found.pixels, found.spacing_mm


def overlay(image: NDArray[Any], prediction: Prediction) -> NDArray[np.uint8]:
    """Draw the masks and boxes over the image: (H, W, 3) uint8, original size."""
    picture = np.repeat(to_grey_uint8(image)[:, :, None], 3, axis=2).astype(np.float32)
    inside = prediction.masks.any(axis=0)
    picture[inside] += _MASK_OPACITY * (_MASK_COLOUR - picture[inside])
    drawn = Image.fromarray(picture.astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    width = max(1, round(max(drawn.size) / 400))
    for x0, y0, x1, y1 in prediction.boxes_xyxy_original:
        # Box edges are outer pixel edges: the last pixel inside has index x1 − 1.
        corner = (max(x0, np.ceil(x1) - 1), max(y0, np.ceil(y1) - 1))
        pen.rectangle((float(x0), float(y0), *map(float, corner)), outline=_BOX_COLOUR, width=width)
    return np.asarray(drawn)


def _images(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"{source} does not exist; give an image or a folder of images")
    found = sorted(
        path
        for path in source.iterdir()
        if path.is_file() and path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    if not found:
        raise DataError(f"{source} holds no image ({', '.join(sorted(SUFFIXES))})")
    return found


def _check_names(jobs: Sequence[Job], out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise DataError(f"--out {out} is a file; give a folder")
    # Names are compared without case: some file systems do not tell them apart.
    writers: dict[str, Path] = {}
    inputs = {job.image.resolve() for job in jobs}
    for job in jobs:
        for name in _names(job.image.stem):
            if (out / name).resolve() in inputs:
                raise DataError(f"the result would overwrite the input {out / name}; change --out")
            other = writers.setdefault(name.lower(), job.image)
            if other != job.image:
                raise DataError(
                    f"{other} and {job.image} would both write {out / name}; "
                    "rename one, or segment them into two folders"
                )
        _check_earlier(job, out)


def _check_earlier(job: Job, out: Path) -> None:
    """Refuse to replace the result of another image of the same name."""
    path = out / f"{job.image.stem}.json"
    if not path.exists():
        return
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))["image_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path} exists and is not a result of adalora-qat; change --out") from None
    if earlier != sha256_file(job.image):
        raise DataError(
            f"{out} holds the result of another image named {job.image.stem}; change --out"
        )


def _names(stem: str) -> tuple[str, str, str]:
    return f"{stem}_mask.png", f"{stem}_overlay.png", f"{stem}.json"


def _segment_one(
    job: Job, predictor: OnnxPredictor, out: Path, spacing_mm: tuple[float, float] | None
) -> dict[str, Any]:
    started = time.perf_counter()
    image, known_mm = read_image(job.image)
    spacing_mm = spacing_mm or known_mm
    read = time.perf_counter()
    ask, first = predictor.prompted(image), None
    if job.boxes_xyxy_original is None:
        first, prediction = two_passes(ask, (image.shape[0], image.shape[1]))
    else:
        prediction = ask(job.boxes_xyxy_original)
    found = predictor.assurance.look(ask.embeddings, ask.frame_map, prediction, first)
    seconds = {"read": read - started, "predict": time.perf_counter() - read}
    result = {
        "image": job.image.name,
        "image_sha256": sha256_file(job.image),
        "width": image.shape[1],
        "height": image.shape[0],
        **_measure(prediction, spacing_mm),
        **_confidence(predictor, prediction),
        "warnings": [finding.to_json() for finding in found],
        "prompt": "automatic" if job.boxes_xyxy_original is None else "box",
        "seconds": {key: round(value, 4) for key, value in seconds.items()},
        "model": _describe(predictor),
    }
    mask_name, overlay_name, json_name = _names(job.image.stem)
    mask = np.asarray(prediction.masks.any(axis=0))
    _write_png(out / mask_name, np.where(mask, np.uint8(255), np.uint8(0)))
    _write_png(out / overlay_name, overlay(image, prediction))
    write_json(out / json_name, result)
    return result


def _measure(prediction: Prediction, spacing_mm: tuple[float, float] | None) -> dict[str, Any]:
    """Return box, score and areas of the whole, and of each object where there are several."""
    pixel_mm2 = None if spacing_mm is None else spacing_mm[0] * spacing_mm[1]

    def areas(mask: NDArray[np.bool_]) -> dict[str, Any]:
        pixels = int(mask.sum())
        return {
            "area_px": pixels,
            "area_mm2": None if pixel_mm2 is None else round(pixels * pixel_mm2, 3),
        }

    boxes = prediction.boxes_xyxy_original.astype(float)
    objects = [
        {"box": box.tolist(), "score": round(float(score), 5), **areas(mask)}
        for box, score, mask in zip(boxes, prediction.scores, prediction.masks, strict=True)
    ]
    hull = [*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist()]
    score = round(float(prediction.scores.mean()), 5)
    return {
        "box": hull,
        "score": score,
        **areas(np.asarray(prediction.masks.any(axis=0))),
        "objects": objects,
    }


def _confidence(predictor: OnnxPredictor, prediction: Prediction) -> dict[str, Any]:
    """Return the expected IoU and what it means, if the model's file can say it."""
    calibration = predictor.assurance.confidence
    if calibration is None:
        return {"confidence": None, "confidence_means": "the model is not calibrated"}
    return {
        "confidence": round(float(prediction.scores.mean()), 4),
        "confidence_means": "expected IoU of the mask with one drawn by hand: the mean of such "
        f"masks among {calibration.cases} of validation images, spoilt ones included",
    }


def _describe(predictor: OnnxPredictor) -> Mapping[str, str]:
    metadata = predictor.metadata
    return {
        "file": predictor.path.name,
        "sha256": predictor.sha256,
        "variant": metadata.variant,
        "policy": metadata.policy,
        "version": metadata.product_version,
    }


def _write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    with atomic_write(path) as temporary:
        Image.fromarray(picture).save(temporary)


def _some(names: Sequence[str], limit: int = 3) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
