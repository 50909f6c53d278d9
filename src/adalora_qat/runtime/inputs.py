"""What ``segment`` is given → the images to segment, their boxes, and what is left out.

All of it is known from names and first bytes: no image is decoded here.
"""

from __future__ import annotations

import csv
import glob
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adalora_qat.errors import DataError, printable
from adalora_qat.imaging.geometry import check_box
from adalora_qat.imaging.radiograph import looks_like_image
from adalora_qat.predictor import STRUCTURE_NAME
from adalora_qat.runtime.result import ENDINGS, is_result
from adalora_qat.runtime.structures import mask_names, read_structures
from adalora_qat.runtime.table import TABLE, is_table

BOX_COLUMNS = ("file", "x0", "y0", "x1", "y1")
# Bytes of a file's name on every common file system, and what ``files.atomic_write`` adds to it.
_LONGEST_NAME, _TEMPORARY = 255, 14
_MASK = ENDINGS["mask"]


@dataclass(frozen=True)
class Job:
    """One image file to segment.

    Attributes
    ----------
    image : the file.
    target : how the paths of its results begin, below the folder of results: ``sub/case``.
    boxes_xyxy_original : (N, 4) in its own pixels; None to find one.
    structures : (N,) what each box holds, if the table of boxes says so.
    """

    image: Path
    target: str
    boxes_xyxy_original: NDArray[np.float64] | None = None
    structures: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """Return the paths of all files that its result may have, below the results' folder."""
        target = Path(self.target)
        own = mask_names(target.name, self.structures).values()
        names = (*(target.name + ending for ending in ENDINGS.values()), *own)
        return [str(target.with_name(name)) for name in names]


@dataclass(frozen=True)
class LeftOut:
    """A file or folder without a result: ``failed`` if it is an image that should have one."""

    path: Path
    reason: str
    failed: bool = True


def plan(
    sources: Sequence[Path | str],
    out: Path,
    *,
    recursive: bool = False,
    box: Sequence[float] | None = None,
    boxes_csv: Path | None = None,
) -> tuple[list[Job], list[LeftOut]]:
    """List the images with their boxes, and what is left out.

    Parameters
    ----------
    sources : image files, folders, and patterns such as ``scans/*.png``; a file that is named
        twice is one. In a folder, hidden files and results of this package are passed over, and
        other files that are no images are listed.
    out : where results are to go.
    recursive : enter folders in folders; results are then in folders of the same names.
    box, boxes_csv : as for ``segment.segment_files``.

    Raises
    ------
    DataError
        If there is no image, the boxes do not name every image, one is none in
        itself, or two results, or a result and an input, would have one name.
    """
    if box is not None and boxes_csv is not None:
        raise DataError("give --box or --boxes, not both")
    given = None if box is None else _possible(np.asarray([box], dtype=np.float64), "--box")
    with suppress(PermissionError):  # writing says so, and what to do
        if out.exists() and not out.is_dir():
            raise DataError(f"--out {printable(out)} is a file; give a folder")
    jobs, left_out = [], []
    for found in _found(sources, out, recursive):
        if isinstance(found, LeftOut):
            left_out.append(found)
            continue
        job = Job(*found, given)
        longest = max(len(os.fsencode(Path(name).name)) for name in job.names())
        if longest + _TEMPORARY <= _LONGEST_NAME:
            jobs.append(job)
            continue
        over = longest + _TEMPORARY - _LONGEST_NAME
        name = printable(job.image)
        reason = (
            f"{name}: its name is {over} byte{'s' * (over != 1)} too long for those of its "
            "results; shorten it"
        )
        left_out.append(LeftOut(job.image, reason))
    if not jobs and not any(one.failed for one in left_out):
        names = ", ".join(printable(source) for source in sources)
        raise DataError(f"{names} holds no image; give images, or folders with some")
    if boxes_csv is not None:
        jobs = _boxed(jobs, left_out, boxes_csv)
    _check_names(jobs, out)
    return jobs, left_out


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
    return {name: _possible(np.asarray(rows), f"{path}: {name}") for name, rows in boxes.items()}


def _found(
    sources: Sequence[Path | str], out: Path, recursive: bool
) -> Iterator[tuple[Path, str] | LeftOut]:
    """Yield images with the beginnings of their results' paths, each file once."""
    seen: set[Path] = set()
    for source in sources:
        for named in _expanded(source):
            folder = named.is_dir()
            entries = _entries(named, out, recursive) if folder else iter([named])
            for entry in entries:
                if isinstance(entry, LeftOut):
                    yield entry
                elif (real := entry.resolve()) not in seen:
                    seen.add(real)
                    place = entry.relative_to(named) if folder else Path(entry.name)
                    yield entry, str(place.with_name(stem_of(entry.name)))


def _expanded(source: Path | str) -> list[Path]:
    """Return what a path or pattern names, in order."""
    path, pattern = Path(source), str(source)
    with suppress(OSError, ValueError):  # of a name that no file can have
        if path.exists():
            return [path]
    # Path.glob takes no absolute pattern.
    found = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else []  # noqa: PTH207
    if not found:
        raise DataError(f"{printable(source)} does not exist; give an image or a folder of images")
    return [Path(one) for one in found]


def _entries(folder: Path, out: Path, recursive: bool) -> Iterator[Path | LeftOut]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        reason = f"{printable(folder)} cannot be listed ({error.strerror}); check its permissions"
        yield LeftOut(folder, reason)
        return
    own = own_results(folder, [entry.name for entry in entries])
    for entry in entries:
        if entry.name.startswith(".") or entry.name in own:
            continue
        try:
            if stat.S_ISDIR(entry.stat().st_mode):
                if entry.resolve() == out.resolve():
                    continue
                if entry.is_symlink():
                    yield LeftOut(entry, "a link to a folder", failed=False)
                elif recursive:
                    yield from _entries(entry, out, recursive)
                else:
                    yield LeftOut(entry, "a folder, which --recursive would enter", failed=False)
            elif entry.name.upper() == "DICOMDIR":
                yield LeftOut(entry, "a list of DICOM files", failed=False)
            elif looks_like_image(entry):
                yield entry
            else:
                yield LeftOut(entry, "not an image", failed=False)
        except OSError as error:
            reason = f"{printable(entry)} cannot be read ({error.strerror}); check its permissions"
            yield LeftOut(entry, reason)


def stem_of(name: str) -> str:
    """Return a file's name without its suffix, if that is one.

    DICOM files are often named after a UID, ``1.2.840.10008``, of which every number counts.
    """
    path = Path(name)
    return path.stem if re.fullmatch(r"\.[A-Za-z]\w{0,4}", path.suffix) else name


def own_results(folder: Path, names: Sequence[str]) -> set[str]:
    """Return which names in a folder are files of results of this package.

    A file is one if the JSON file of its result is there. Of a run that was killed it need not
    be; but then there is a table of the run, and an image that the file is named after.
    """
    jsons = (name for name in names if name.endswith(ENDINGS["json"]))
    stems = {name.removesuffix(ENDINGS["json"]) for name in jsons if is_result(folder / name)}
    own = {stem + ENDINGS["json"] for stem in stems}
    if TABLE in names and is_table(folder / TABLE):
        own.add(TABLE)
        stems |= {stem_of(name) for name in names}
    for name in names:
        for ending in set(ENDINGS.values()) - {ENDINGS["json"]}:
            if name.endswith(ending) and name.removesuffix(ending) in stems:
                own.add(name)
        if name.endswith(_MASK):
            words = name.removesuffix(_MASK)
            cuts = (place for place, letter in enumerate(words) if letter == "_")
            if any(
                words[:cut] in stems and re.fullmatch(STRUCTURE_NAME, words[cut + 1 :])
                for cut in cuts
            ):
                own.add(name)
    return own


def _boxed(jobs: Sequence[Job], left_out: Sequence[LeftOut], boxes_csv: Path) -> list[Job]:
    table, structures = read_boxes(boxes_csv), read_structures(boxes_csv)
    names = [job.image.name for job in jobs]
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise DataError(
            f"{boxes_csv} goes by the names of files, and {_some(twice)} is there more than once; "
            "segment the folders one by one"
        )
    known = {*names, *(one.path.name for one in left_out)}
    unknown, missing = sorted(set(table) - known), sorted(set(names) - set(table))
    if unknown:
        raise DataError(f"{boxes_csv} names {_some(unknown)}, not found among the images")
    if missing:
        raise DataError(f"{boxes_csv} has no row for {_some(missing)}; add a box for each image")
    return [
        Job(job.image, job.target, table[name], structures.get(name, ()))
        for job, name in zip(jobs, names, strict=True)
    ]


def _possible(boxes: NDArray[np.float64], origin: str) -> NDArray[np.float64]:
    """Refuse boxes that fit no image at all; whether they fit theirs is seen when it is read."""
    try:
        return check_box(boxes, (sys.maxsize, sys.maxsize))
    except DataError as error:
        raise DataError(f"{printable(origin)}: {error}") from error


def _check_names(jobs: Sequence[Job], out: Path) -> None:
    # Names are compared without case: some file systems do not tell them apart.
    writers: dict[str, Path] = {}
    inputs = {job.image.resolve() for job in jobs}
    place = out.resolve()
    for job in jobs:
        for name in job.names():
            if place / name in inputs:
                raise DataError(
                    f"the result would overwrite the input {printable(out / name)}; change --out"
                )
            other = writers.setdefault(name.lower(), job.image)
            if other != job.image:
                raise DataError(
                    f"{printable(other)} and {printable(job.image)} would both write "
                    f"{printable(out / name)}; rename one, or segment them into two folders"
                )


def _some(names: Sequence[str], limit: int = 3) -> str:
    shown = ", ".join(map(printable, names[:limit]))
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
