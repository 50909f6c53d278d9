"""What ``prepare`` keeps of an image: all that later steps need, and no pixels.

Every file is read once: judged by the quality gate, brought to a plain image file if it is
none, hashed and described. A file that crashes or stalls its decoder takes a worker process
with it, never the run.
"""

from __future__ import annotations

import faulthandler
import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from adalora_qat.corpus.descriptor import describe, thumbnail
from adalora_qat.corpus.materialise import materialise, read_pixels
from adalora_qat.corpus.quality import Objection, QualityLimits, inspect
from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError, UserError
from adalora_qat.imaging.dicom import DEFAULT_SALT
from adalora_qat.imaging.geometry import to_grey_uint8

HISTOGRAM_BINS = 64
# Records a worker takes at a time: enough to hide the hand-over, few enough that a killed
# run loses seconds.
CHUNK = 16
# The largest radiographs take a second; a file that keeps its decoder busy for this long
# is built to.
STALL_S = 60.0


@dataclass(frozen=True)
class Measuring:
    """How files are measured.

    Attributes
    ----------
    folder : where images and masks that are not plain files are written as PNG.
    limits : of the quality gate.
    salt : of the hash of DICOM patient ids.
    """

    folder: Path
    limits: QualityLimits = field(default_factory=QualityLimits)
    salt: str = DEFAULT_SALT


@dataclass(frozen=True)
class Fingerprint:
    """One image, measured.

    Attributes
    ----------
    record : the record, of plain files now.
    objections : what the quality gate objects to; empty for a sound record.
    height, width : pixels of the original, 0 if it could not be read.
    pixel_hash : SHA-256 of the pixels, the same for any lossless container of them.
    histogram : (64,) counts in equal bins of the 8-bit grey levels.
    thumbnail : (S, S) uint8, aspect not kept.
    descriptor : (F, F), see ``descriptor.describe``.
    """

    record: Record
    objections: tuple[Objection, ...] = ()
    height: int = 0
    width: int = 0
    pixel_hash: str = ""
    histogram: NDArray[np.int64] | None = None
    thumbnail: NDArray[np.uint8] | None = None
    descriptor: NDArray[np.float16] | None = None


def fingerprint(record: Record, measuring: Measuring) -> Fingerprint:
    """Measure one image; what is wrong with its files becomes an objection, never an error."""
    try:
        pixels = read_pixels(record.image)
    except DataError as error:
        return Fingerprint(record, (Objection("image_unreadable", str(error)),))
    objections = tuple(inspect(record, measuring.limits, pixels))
    if not objections:
        try:
            record = materialise(record, measuring.folder, measuring.salt)
        except DataError as error:
            objections = (Objection("image_unreadable", str(error)),)
    try:
        grey = to_grey_uint8(pixels)
    except DataError as error:
        objections = objections or (Objection("image_unreadable", str(error)),)
        return Fingerprint(record, objections, pixels.shape[0], pixels.shape[1])
    small = thumbnail(grey)
    return Fingerprint(
        record,
        objections,
        pixels.shape[0],
        pixels.shape[1],
        pixel_hash(pixels),
        cv2.calcHist([grey], [0], None, [HISTOGRAM_BINS], [0, 256]).ravel().astype(np.int64),
        small,
        describe(small),
    )


def pixel_hash(pixels: NDArray[Any]) -> str:
    """Return the SHA-256 of size and grey levels, whatever file they came in.

    Three equal channels hash as one, and levels below 256 hash the same in any integer type.

    Parameters
    ----------
    pixels : (H, W) or (H, W, 3), of any real dtype.

    Returns
    -------
    64 hex digits.
    """
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    wide = pixels.dtype.kind in "iu" and pixels.dtype != np.uint8
    if wide and pixels.min() >= 0 and pixels.max() <= 255:
        pixels = pixels.astype(np.uint8)
    little = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<"))
    return hashlib.sha256(f"{little.shape}{little.dtype.str}".encode() + little.data).hexdigest()


def fingerprint_all(
    records: Sequence[Record], measuring: Measuring, jobs: int
) -> Iterator[list[Fingerprint]]:
    """Measure many records in ``jobs`` processes; chunks come as they are done, in any order."""
    chunks = deque(records[at : at + CHUNK] for at in range(0, len(records), CHUNK))
    if jobs == 1:
        yield from (_fingerprints(chunk, measuring) for chunk in chunks)
        return
    while chunks:
        running: dict[Future[list[Fingerprint]], Sequence[Record]] = {}
        try:
            yield from _in_pool(chunks, running, measuring, jobs)
        except BrokenProcessPool:
            # One of the files in work is to blame; alone, each shows whether it is the one.
            suspects = [record for chunk in running.values() for record in chunk]
            yield from _one_by_one(suspects, measuring)


def available_cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def _in_pool(
    chunks: deque[Sequence[Record]],
    running: dict[Future[list[Fingerprint]], Sequence[Record]],
    measuring: Measuring,
    jobs: int,
) -> Iterator[list[Fingerprint]]:
    with _pool(jobs) as pool:
        while chunks or running:
            # A few chunks in flight: all of them at once would grow with the corpus.
            while chunks and len(running) < 2 * jobs:
                chunk = chunks.popleft()
                running[pool.submit(_fingerprints, chunk, measuring)] = chunk
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                fingerprints = future.result()
                del running[future]
                yield fingerprints


def _one_by_one(records: Sequence[Record], measuring: Measuring) -> Iterator[list[Fingerprint]]:
    rest = deque(records)
    while rest:
        with _pool(1) as pool:
            _check_workers_start(pool)
            try:
                while rest:
                    yield pool.submit(_fingerprints, [rest[0]], measuring).result()
                    rest.popleft()
            except BrokenProcessPool:
                reason = (
                    f"{rest[0].image} crashes its decoder or keeps it busy for more than "
                    f"{STALL_S:g} s; leave it out"
                )
                yield [Fingerprint(rest.popleft(), (Objection("image_unreadable", reason),))]


def _check_workers_start(pool: ProcessPoolExecutor) -> None:
    # Otherwise every file would be blamed for what is wrong with the program.
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise UserError(
            "worker processes do not start: call prepare from under "
            'if __name__ == "__main__": in a script, or with jobs=1'
        ) from error


def _pool(jobs: int) -> ProcessPoolExecutor:
    # Spawned, not forked: a fork of a process with threads (BLAS, progress bars) may hang.
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_initialise)


def _initialise() -> None:
    # One worker a core; OpenCV's own threads would fight over them.
    cv2.setNumThreads(1)


def _fingerprints(records: Sequence[Record], measuring: Measuring) -> list[Fingerprint]:
    return [_watched(record, measuring) for record in records]


def _watched(record: Record, measuring: Measuring) -> Fingerprint:
    """Measure in a worker process that ends itself if a decoder does not come back."""
    if parent_process() is None:
        return fingerprint(record, measuring)
    with Path(os.devnull).open("w") as nowhere:
        faulthandler.dump_traceback_later(STALL_S, exit=True, file=nowhere)
        try:
            return fingerprint(record, measuring)
        finally:
            faulthandler.cancel_dump_traceback_later()
