"""What ``prepare`` keeps of an image: everything later steps ask, and no pixels.

Files are measured once, in parallel, and the results kept on disk, so that a prepare that
was killed goes on where it stopped and memory does not grow with the images.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adalora_qat.data.geometry import load_image, to_grey_uint8
from adalora_qat.data.records import Record
from adalora_qat.errors import DataError

# Raised whenever a measurement changes, so that stored ones of older versions are not used.
VERSION = 1
THUMBNAIL_SIDE = 64
HISTOGRAM_BINS = 64
# Records a worker takes at a time: large enough to hide the hand-over, small enough that a
# killed run loses seconds.
CHUNK = 16

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Fingerprint:
    """One image, measured.

    Attributes
    ----------
    findings : (reason, detail) of everything the quality gate objects to; empty if fit.
    width, height : pixels of the original, 0 if it could not be read.
    pixel_hash : SHA-256 of the pixels, the same for any lossless container of them.
    histogram : counts in 64 equal bins of the 8-bit grey levels.
    thumbnail : (64, 64) uint8, aspect not kept; None if it could not be read.
    """

    findings: tuple[tuple[str, str], ...]
    width: int = 0
    height: int = 0
    spacing_mm: tuple[float, float] | None = None
    pixel_hash: str = ""
    histogram: tuple[int, ...] = ()
    thumbnail: NDArray[np.uint8] | None = None


def fingerprint(record: Record) -> Fingerprint:
    """Read one image and measure it; a file that cannot be used gives findings, not errors."""
    try:
        pixels = load_image(record.image)
    except DataError as error:
        return Fingerprint(findings=(("unreadable", str(error)),))
    grey = to_grey_uint8(pixels)
    small = Image.fromarray(grey).resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    return Fingerprint(
        findings=(),
        width=pixels.shape[1],
        height=pixels.shape[0],
        spacing_mm=record.spacing_mm,
        pixel_hash=pixel_hash(pixels),
        histogram=tuple(np.bincount(grey.ravel() >> 2, minlength=HISTOGRAM_BINS).tolist()),
        thumbnail=np.asarray(small),
    )


def pixel_hash(pixels: NDArray[Any]) -> str:
    """Return the SHA-256 of size and grey levels, whatever file they came in.

    Three equal channels hash as one, and 8-bit levels hash the same in any integer type.
    """
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    if (
        pixels.dtype.kind in "ui"
        and pixels.dtype != np.uint8
        and 0 <= pixels.min() <= pixels.max() < 256
    ):
        pixels = pixels.astype(np.uint8)
    head = f"{pixels.shape}{pixels.dtype.newbyteorder('<').str}".encode()
    little = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<"))
    return hashlib.sha256(head + little.tobytes()).hexdigest()


class FingerprintStore:
    """Fingerprints on disk, one per record, valid while its files stay as they were."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path)
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS fingerprint "
            "(id TEXT PRIMARY KEY, stamp TEXT, facts TEXT, thumbnail BLOB)"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._database.commit()
        self._database.close()

    def add(self, rows: Iterable[tuple[Record, str, Fingerprint]]) -> None:
        """Keep fingerprints, each under the stamp its files had when they were read."""
        self._database.executemany(
            "INSERT OR REPLACE INTO fingerprint VALUES (?, ?, ?, ?)",
            ((record.id, stamp, *_pack(found)) for record, stamp, found in rows),
        )
        self._database.commit()

    def stamps(self) -> dict[str, str]:
        """Return record id → stamp of everything kept."""
        return dict(self._database.execute("SELECT id, stamp FROM fingerprint"))

    def __getitem__(self, record_id: str) -> Fingerprint:
        row = self._database.execute(
            "SELECT facts, thumbnail FROM fingerprint WHERE id = ?", (record_id,)
        ).fetchone()
        if row is None:
            raise KeyError(record_id)
        return _unpack(*row)


def fingerprint_all(
    records: Sequence[Record],
    store: FingerprintStore,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Bring the store up to date with the records' files; return how many were read anew."""
    kept = store.stamps()
    stamps = {record.id: stamp(record) for record in records}
    due = [record for record in records if kept.get(record.id) != stamps[record.id]]
    done = len(records) - len(due)
    for chunk, found in _measure(due, jobs or available_cores()):
        store.add(zip(chunk, (stamps[r.id] for r in chunk), found, strict=True))
        done += len(chunk)
        if progress:
            progress(done, len(records), "reading images")
    return len(due)


def stamp(record: Record) -> str:
    """Return what changes when a file of the record does: paths, sizes and times."""
    parts: list[object] = [VERSION, record.spacing_mm]
    for path in (record.image, *(record.masks[kind] for kind in sorted(record.masks))):
        try:
            status = path.stat()
            parts += [str(path), status.st_size, status.st_mtime_ns]
        except OSError:
            parts += [str(path), "missing"]
    return json.dumps(parts)


def available_cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def _measure(
    records: Sequence[Record], jobs: int
) -> Iterator[tuple[Sequence[Record], list[Fingerprint]]]:
    chunks = (records[start : start + CHUNK] for start in range(0, len(records), CHUNK))
    if jobs == 1 or len(records) <= CHUNK:
        yield from ((chunk, _fingerprints(chunk)) for chunk in chunks)
        return
    # Spawned, not forked: a fork of a process with threads (BLAS, progress bars) may hang.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running: dict[Future[list[Fingerprint]], Sequence[Record]] = {}
        # A few chunks in flight: all of them at once would grow with the corpus.
        for chunk in islice(chunks, 2 * jobs):
            running[pool.submit(_fingerprints, chunk)] = chunk
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
                for chunk in islice(chunks, 1):
                    running[pool.submit(_fingerprints, chunk)] = chunk


def _fingerprints(records: Sequence[Record]) -> list[Fingerprint]:
    return [fingerprint(record) for record in records]


def _pack(found: Fingerprint) -> tuple[str, bytes | None]:
    facts = {key: value for key, value in asdict(found).items() if key != "thumbnail"}
    return json.dumps(facts), None if found.thumbnail is None else found.thumbnail.tobytes()


def _unpack(facts: str, thumbnail: bytes | None) -> Fingerprint:
    values = json.loads(facts)
    spacing = values.pop("spacing_mm")
    pixels = None
    if thumbnail is not None:
        pixels = np.frombuffer(thumbnail, np.uint8).reshape(THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    return Fingerprint(
        findings=tuple((reason, detail) for reason, detail in values.pop("findings")),
        spacing_mm=tuple(spacing) if spacing else None,
        histogram=tuple(values.pop("histogram")),
        thumbnail=pixels,
        **values,
    )
