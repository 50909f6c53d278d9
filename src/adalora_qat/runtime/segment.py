"""Segmenting files: an image or a folder in; the files of a result for each out.

Everything given is checked before anything is written: a run either starts with inputs
that can all be used, or says which cannot and leaves no file behind.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adalora_qat.errors import DataError
from adalora_qat.files import sha256_file
from adalora_qat.imaging.geometry import Frame, check_box, image_to_model
from adalora_qat.imaging.radiograph import read_radiograph
from adalora_qat.progress import Progress
from adalora_qat.runtime.model import Model
from adalora_qat.runtime.result import check_earlier, result_names
from adalora_qat.runtime.structures import mask_names, read_structures, save_masks

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm"})
BOX_COLUMNS = ("file", "x0", "y0", "x1", "y1")


@dataclass(frozen=True)
class Job:
    """One image file to segment, and its boxes (N, 4) in its own pixels; None to find one.

    ``structures`` says what each box holds, if the table of boxes does.
    """

    image: Path
    boxes_xyxy_original: NDArray[np.float64] | None
    structures: tuple[str, ...] = ()


def segment_files(
    source: Path,
    model: Model,
    out: Path,
    *,
    box: Sequence[float] | None = None,
    boxes_csv: Path | None = None,
    spacing_mm: tuple[float, float] | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Segment an image, or every image of a folder, and save each result (``Result.save``).

    Where the boxes say what they hold, ``<stem>_<structure>_mask.png`` is written too.

    Parameters
    ----------
    source : an image file, or a folder whose images are taken in order of their names.
    box : x0, y0, x1, y1 in pixels of the original, for every image; without boxes the model
        finds one in each image (``imaging.automatic_prompt``).
    boxes_csv : columns file,x0,y0,x1,y1; several rows for one file are several boxes. A column
        ``structure`` may name what each holds.
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
    check(jobs, model.metadata.frame, out)
    images, boxes = [job.image for job in jobs], [job.boxes_xyxy_original for job in jobs]
    facts = []
    results = model.map(images, boxes=boxes, spacing_mm=spacing_mm)
    for job, result in zip(jobs, results, strict=True):
        if job.structures:
            result = replace(result, structures=job.structures)
            save_masks(out, job.image.stem, result.masks, job.structures)
        result.save(out)
        facts.append(result.to_json())
        if progress is not None:
            progress(len(facts), len(jobs), result.name)
    return facts


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
    structures = read_structures(boxes_csv)
    return [Job(image, table[image.name], structures.get(image.name, ())) for image in images]


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
        pixels = read_radiograph(job.image).pixels
        try:
            # The whole preparation, not a part of it: what passes here can be segmented.
            image_to_model(pixels, frame)
            if job.boxes_xyxy_original is not None:
                check_box(job.boxes_xyxy_original, (pixels.shape[0], pixels.shape[1]))
        except DataError as error:
            raise DataError(f"{job.image}: {error}") from error


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
        own = mask_names(job.image.stem, job.structures).values()
        for name in (*result_names(job.image.stem), *own):
            if (out / name).resolve() in inputs:
                raise DataError(f"the result would overwrite the input {out / name}; change --out")
            other = writers.setdefault(name.lower(), job.image)
            if other != job.image:
                raise DataError(
                    f"{other} and {job.image} would both write {out / name}; "
                    "rename one, or segment them into two folders"
                )
        check_earlier(out / result_names(job.image.stem)[-1], sha256_file(job.image))


def _some(names: Sequence[str], limit: int = 3) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
