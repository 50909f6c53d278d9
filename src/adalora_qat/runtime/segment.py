"""Segmenting files: images and folders in; the files of a result for each out.

What names and first bytes tell is checked before anything is written. Images are decoded once,
when their turn comes: one that cannot be used is left out with its reason, and the run goes on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from adalora_qat.chest.masks import LUNGS
from adalora_qat.errors import DataError, printable
from adalora_qat.files import sha256_file
from adalora_qat.imaging.image_file import MAX_PIXELS
from adalora_qat.progress import Progress
from adalora_qat.runtime.inputs import Job, LeftOut, plan
from adalora_qat.runtime.model import Model
from adalora_qat.runtime.prompts import checked_spacing
from adalora_qat.runtime.result import (
    ENDINGS,
    WRITTEN,
    Failure,
    MaskValues,
    Result,
    check_earlier,
)
from adalora_qat.runtime.structures import mask_names, save_masks
from adalora_qat.runtime.table import TABLE, Row, Table, done_row, left_out_row

# What ``files.atomic_write`` calls a file until it is whole: .NAME.random.tmp.SUFFIX
_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp(\.\w+)")


@dataclass(frozen=True)
class Options:
    """How images are read and results written, the same for all.

    Attributes
    ----------
    spacing_mm : (row, column) size of a pixel, where known: adds areas in mm². DICOM files
        may state their own.
    write : of ``mask``, ``overlay``, ``json`` and ``contours``; the JSON is always written.
    mask_values : ``255`` or ``labels``; see ``Result.save``.
    structures : which of a model's structures to keep, as ``Result.of`` takes them; all if empty.
    max_pixels : images with more are left out by what their header says.
    lenient : take what can be decoded of a damaged file.

    Raises
    ------
    DataError
        If ``write`` or ``mask_values`` hold other words, or a number is not positive.
    """

    spacing_mm: tuple[float, float] | None = None
    write: tuple[str, ...] = WRITTEN
    mask_values: MaskValues = "255"
    structures: tuple[str, ...] = ()
    max_pixels: int = MAX_PIXELS
    lenient: bool = False

    def __post_init__(self) -> None:
        unknown = [word for word in self.write if word not in ENDINGS]
        if unknown:
            raise DataError(f"--write {unknown[0]}: give some of {', '.join(ENDINGS)}")
        if self.mask_values not in get_args(MaskValues):
            values = " or ".join(get_args(MaskValues))
            raise DataError(f"--mask-values {self.mask_values}: give {values}")
        if self.max_pixels < 1:
            raise DataError(f"--max-pixels {self.max_pixels}: give at least 1")
        checked_spacing(self.spacing_mm)

    def of(self, job: Job) -> dict[str, Any]:
        """Return what of this, and of the image's prompt, decides on its result: plain values."""
        boxes = job.boxes_xyxy_original
        return {
            "boxes": None if boxes is None else boxes.tolist(),
            "structures": list(job.structures),
            "spacing_mm": None if self.spacing_mm is None else list(self.spacing_mm),
            "write": [kind for kind in ENDINGS if kind in {*self.write, "json"}],
            "mask_values": self.mask_values,
            "kept": list(self.structures),
            "lenient": self.lenient,
        }


@dataclass
class Outcome:
    """What a run over files came to.

    Attributes
    ----------
    results : the content of the JSON files, in order.
    left_out : what has no result, in order.
    resumed : how many of the results an earlier run had made.
    stopped : whether the run was told to stop before its end.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    resumed: int = 0
    stopped: bool = False

    @property
    def failed(self) -> list[LeftOut]:
        """Images that should have a result and have none."""
        return [one for one in self.left_out if one.failed]


def segment_files(
    sources: Path | str | Sequence[Path | str],
    model: Model,
    out: Path,
    *,
    box: Sequence[float] | None = None,
    boxes_csv: Path | None = None,
    options: Options | None = None,
    recursive: bool = False,
    resume: bool = False,
    fail_fast: bool = False,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Segment images and save each result (``Result.save``), and a table of all.

    Where the boxes say what they hold, ``<stem>_<structure>_mask.png`` is written too. The
    table, ``segments.csv``, has a row for every image and every file that is none; a run of one
    image that was named writes none, and raises its error.

    Parameters
    ----------
    sources : image files, folders, and patterns such as ``scans/*.png``. DICOM files need no
        suffix.
    box : x0, y0, x1, y1 in pixels of the original, for every image; without boxes the model
        finds one in each image (``imaging.automatic_prompt``).
    boxes_csv : columns file,x0,y0,x1,y1; several rows for one file are several boxes. A column
        ``structure`` may name what each holds.
    options : how to read and write; the defaults if None.
    recursive : enter folders in folders; results are then in folders of the same names.
    resume : keep results of the same image, model and options instead of making them anew.
    fail_fast : raise the error of the first image that cannot be used; results before it stay.
    progress : called with (done, total, name) after each image.
    stop : asked after each image; True ends the run with what is done.

    Returns
    -------
    Results and what was left out.

    Raises
    ------
    DataError
        If there is no image, the boxes cannot be used, or results would take the place of one
        another, of an input or of another image's; nothing is written then. With ``fail_fast``
        for the first image that cannot be used.
    UserError
        If the folder cannot be written.
    """
    options = options or Options()
    _check_structures(options.structures, model)
    given = [sources] if isinstance(sources, Path | str) else list(sources)
    jobs, left_out = plan(given, out, recursive=recursive, box=box, boxes_csv=boxes_csv)
    run = _Run(model, out, options, progress)
    earlier = {job.target: facts for job in jobs if (facts := _earlier(job, out)) is not None}
    kept = {
        job.target: earlier[job.target]
        for job in jobs
        if resume and run.same(job, earlier.get(job.target))
    }
    alone = len(given) == 1 and len(jobs) + len(left_out) == 1 and Path(given[0]).is_file()
    failed = [one for one in left_out if one.failed]
    if failed and (alone or fail_fast):
        raise DataError(failed[0].reason)
    if resume:
        _clear(jobs, out)
    table = None if alone else Table(out)
    try:
        run.segment(jobs, kept, table, stop, alone or fail_fast)
    finally:
        if table is not None:
            table.close([*run.rows(jobs), *map(_row, left_out)])
    return run.outcome(jobs, left_out, len(kept))


class _Run:
    """One pass over files."""

    def __init__(
        self, model: Model, out: Path, options: Options, progress: Progress | None
    ) -> None:
        self.model, self.out, self.options, self.progress = model, out, options, progress
        self.facts: dict[str, dict[str, Any]] = {}
        self.failures: dict[str, LeftOut] = {}

    def same(self, job: Job, facts: dict[str, Any] | None) -> bool:
        """Return whether an earlier result is the one that would be made now."""
        if facts is None:
            return False
        asked = self.options.of(job)
        stem = Path(self.out / job.target).name
        files = [self.out / (job.target + ENDINGS[kind]) for kind in asked["write"]]
        own = mask_names(stem, job.structures).values()
        files += [(self.out / job.target).with_name(name) for name in own]
        return (
            facts.get("options") == json.loads(json.dumps(asked))
            and _which(facts.get("model")) == _which(self.model.described())
            and all(file.is_file() for file in files)
        )

    def segment(
        self,
        jobs: Sequence[Job],
        kept: dict[str, dict[str, Any]],
        table: Table | None,
        stop: Callable[[], bool] | None,
        fail_fast: bool,
    ) -> None:
        """Make the results that are not there."""
        self.facts.update(kept)
        todo = [job for job in jobs if job.target not in kept]
        results = self.model.map(
            [job.image for job in todo],
            boxes=[job.boxes_xyxy_original for job in todo],
            spacing_mm=self.options.spacing_mm,
            errors="return",
            max_pixels=self.options.max_pixels,
            lenient=self.options.lenient,
        )
        with closing(results):
            for job, result in zip(todo, results, strict=True):
                row = self._done(job, result, fail_fast)
                if table is not None:
                    table.add(row)
                if self.progress is not None:
                    done = len(self.facts) + len(self.failures)
                    self.progress(done, len(jobs), printable(job.image.name))
                if stop is not None and stop():
                    return

    def _done(self, job: Job, result: Result | Failure, fail_fast: bool) -> Row:
        if isinstance(result, Failure):
            if fail_fast:
                raise result.cause
            self.failures[job.target] = LeftOut(job.image, result.error)
            return _row(self.failures[job.target])
        target = self.out / job.target
        result = replace(result, options=self.options.of(job))
        if job.structures:
            result = replace(result, structures=job.structures)
        elif self.options.structures:
            result = result.of(self.options.structures)
        # One structure alone is the mask that is written anyway.
        if job.structures or len(set(result.structures)) > 1:
            save_masks(target.parent, target.name, result.masks, result.structures)
        result.save(
            target.parent,
            target.name,
            write=self.options.write,
            mask_values=self.options.mask_values,
        )
        self.facts[job.target] = result.to_json()
        return self._row(job)

    def _row(self, job: Job) -> Row:
        return done_row(job.image, job.target + ENDINGS["json"], self.facts[job.target])

    def rows(self, jobs: Iterable[Job]) -> Iterable[Row]:
        """Yield a row for each image that the run came to, in order."""
        for job in jobs:
            if job.target in self.facts:
                yield self._row(job)
            elif job.target in self.failures:
                yield _row(self.failures[job.target])

    def outcome(self, jobs: Sequence[Job], left_out: Sequence[LeftOut], resumed: int) -> Outcome:
        """Return what the run came to."""
        return Outcome(
            [self.facts[job.target] for job in jobs if job.target in self.facts],
            [*self.failures.values(), *left_out],
            resumed,
            len(self.facts) + len(self.failures) < len(jobs),
        )


def _check_structures(asked: Sequence[str], model: Model) -> None:
    """Refuse structures that a model has no learned prompts for, before anything is read."""
    known = model.prompted_structures
    lungs = [name for name in known if name in LUNGS]
    unknown = [name for name in asked if name not in known and not (name == "lungs" and lungs)]
    if unknown:
        there = ", ".join([*known, *(["lungs"] if lungs else [])])
        raise DataError(
            f"structure {unknown[0]!r}: {model.name} finds {there or 'one mask, without a name'}; "
            "give some of these" + ("" if there else ", or leave the structures out")
        )


def _which(model: Any) -> Any:
    """Return what decides on a result: the engine by its name, not its version and threads."""
    if not isinstance(model, dict) or not model.get("engine"):
        return model
    name = str(model["engine"]).split()[0].rstrip(",")
    return {**model, "engine": name, "engine_reason": ""}


def _row(left_out: LeftOut) -> Row:
    return left_out_row(left_out.path, left_out.reason, failed=left_out.failed)


def _earlier(job: Job, out: Path) -> dict[str, Any] | None:
    """Return the earlier result of an image; another image's is not to be replaced."""
    json_path = out / (job.target + ENDINGS["json"])
    try:
        if not json_path.exists():
            return None
        image_sha256 = sha256_file(job.image)
    except OSError:
        return None  # reading the one or writing the other will say why
    return check_earlier(json_path, image_sha256)


def _clear(jobs: Sequence[Job], out: Path) -> None:
    """Remove what a run that was killed had not finished writing."""
    names = {str(out / name) for job in jobs for name in job.names()} | {str(out / TABLE)}
    for folder in {out, *((out / job.target).parent for job in jobs)}:
        for file in folder.glob(".*.tmp.*"):
            parts = _TEMPORARY.fullmatch(file.name)
            if parts and str(folder / "".join(parts.groups())) in names:
                file.unlink(missing_ok=True)
