"""Fingerprints on disk: a killed prepare resumes where it stopped, and memory stays flat."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from adalora_qat.corpus.descriptor import FREQUENCIES, THUMBNAIL_SIDE
from adalora_qat.corpus.fingerprint import Fingerprint, Measuring
from adalora_qat.corpus.mask_codes import EncodedRecord
from adalora_qat.corpus.quality import Objection
from adalora_qat.corpus.records import Record
from adalora_qat.errors import UserError

# Raised whenever a measurement or a table changes: what an older version kept is forgotten.
VERSION = 4

# Thumbnails have a table of their own: they are most of the bytes, and few are ever read.
_TABLES = """
CREATE TABLE IF NOT EXISTS fingerprint
    (id TEXT PRIMARY KEY, stamp TEXT, facts TEXT, histogram BLOB, descriptor BLOB);
CREATE TABLE IF NOT EXISTS thumbnail (id TEXT PRIMARY KEY, pixels BLOB);
"""


@dataclass(frozen=True)
class Facts:
    """The light part of a fingerprint, small enough to hold for every record at once."""

    record: Record
    objections: tuple[Objection, ...]
    height: int
    width: int
    pixel_hash: str


class FingerprintStore:
    """Fingerprints in one SQLite file; a context manager.

    Raises
    ------
    UserError
        If the file is no such store.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path)
            self._forget_other_versions()
            self._database.executescript(_TABLES)
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"{path} cannot be used ({error}); delete it or choose another folder"
            ) from error

    def _forget_other_versions(self) -> None:
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            self._database.executescript(
                "DROP TABLE IF EXISTS fingerprint; DROP TABLE IF EXISTS thumbnail;"
                f"PRAGMA user_version = {VERSION}"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._database.close()

    def add(self, fingerprints: Iterable[Fingerprint], stamps: Mapping[str, str]) -> None:
        """Keep fingerprints, each under the stamp its files had when they were read.

        Raises
        ------
        UserError
            If the disk is full or another run holds the file.
        """
        facts, thumbnails = [], []
        for measured in fingerprints:
            key = measured.record.id
            facts.append((key, stamps[key], *_pack(measured)))
            thumbnails.append((key, _compressed(measured.thumbnail)))
        try:
            with self._database:
                self._database.executemany(
                    "INSERT OR REPLACE INTO fingerprint VALUES (?, ?, ?, ?, ?)", facts
                )
                self._database.executemany(
                    "INSERT OR REPLACE INTO thumbnail VALUES (?, ?)", thumbnails
                )
        except sqlite3.Error as error:
            raise UserError(
                f"cannot write {self.path}: {error}; make room on the disk, and let no other "
                "prepare write to the same folder"
            ) from error

    def current(self, stamps: Mapping[str, str], made_in: Path) -> set[str]:
        """Return the ids whose kept fingerprint holds: same stamp, and what it wrote is there.

        Parameters
        ----------
        made_in : the folder that converted images and masks were written to.
        """
        kept = set()
        for record_id, stamp, facts in self._rows("id, stamp, facts"):
            if stamps.get(record_id) == stamp:
                values = json.loads(facts)
                files = map(Path, (values["image"], *values["masks"].values()))
                if all(file.is_file() for file in files if file.is_relative_to(made_in)):
                    kept.add(record_id)
        return kept

    def facts(self, records: Sequence[Record]) -> dict[str, Facts]:
        """Return id → facts of these records, in their order."""
        by_id = {record.id: record for record in records}
        stored = {
            record_id: _unpack(by_id[record_id], json.loads(facts))
            for record_id, facts in self._rows("id, facts")
            if record_id in by_id
        }
        return {record_id: stored[record_id] for record_id in by_id if record_id in stored}

    def descriptors(self, ids: Sequence[str]) -> NDArray[np.float16]:
        """Return the descriptors (N, F, F) of these ids, zeros for an image without one."""
        descriptors = np.zeros((len(ids), FREQUENCIES, FREQUENCIES), np.float16)
        place = {record_id: index for index, record_id in enumerate(ids)}
        for record_id, descriptor in self._rows("id, descriptor"):
            if record_id in place and descriptor:
                values = np.frombuffer(descriptor, np.float16)
                descriptors[place[record_id]] = values.reshape(FREQUENCIES, FREQUENCIES)
        return descriptors

    def histograms(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Yield (id, grey-level counts) of every image that could be read."""
        for record_id, counts in self._rows("id, histogram"):
            if counts:
                yield record_id, np.frombuffer(counts, np.int64)

    def size_and_masks(self, record_id: str) -> tuple[int, int, dict[str, Path]]:
        """Return an image's height and width in pixels and its mask files."""
        query = "SELECT facts FROM fingerprint WHERE id = ?"
        facts = json.loads(self._database.execute(query, (record_id,)).fetchone()[0])
        return *facts["size"], {name: Path(path) for name, path in facts["masks"].items()}

    def thumbnail(self, record_id: str) -> NDArray[np.uint8] | None:
        """Return a thumbnail (S, S), or None of an image that could not be read."""
        query = "SELECT pixels FROM thumbnail WHERE id = ?"
        row = self._database.execute(query, (record_id,)).fetchone()
        if row is None or row[0] is None:
            return None
        values = np.frombuffer(zlib.decompress(row[0]), np.uint8)
        return values.reshape(THUMBNAIL_SIDE, THUMBNAIL_SIDE)

    def _rows(self, columns: str) -> sqlite3.Cursor:
        return self._database.execute(f"SELECT {columns} FROM fingerprint ORDER BY id")


def stamp(record: Record, measuring: Measuring) -> str:
    """Return a hash that changes with the record's files (paths, sizes, times) or the limits."""
    parts: list[Any] = [record.spacing_mm, record.patient, str(measuring.folder)]
    parts += [measuring.limits.model_dump_json(), measuring.salt]
    parts += [sorted(record.codes.items())] if isinstance(record, EncodedRecord) else []
    for path in (record.image, *(record.masks[kind] for kind in sorted(record.masks))):
        try:
            status = path.stat()
            parts += [str(path), status.st_size, status.st_mtime_ns]
        except OSError:
            parts += [str(path), "missing"]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _pack(measured: Fingerprint) -> tuple[str, bytes | None, bytes | None]:
    record = measured.record
    facts = {
        "objections": [[objection.code, objection.reason] for objection in measured.objections],
        "size": [measured.height, measured.width],
        "pixel_hash": measured.pixel_hash,
        "patient": record.patient,
        "spacing_mm": record.spacing_mm,
        "image": str(record.image),
        "masks": {structure: str(path) for structure, path in record.masks.items()},
    }
    return (
        json.dumps(facts),
        None if measured.histogram is None else measured.histogram.tobytes(),
        None if measured.descriptor is None else measured.descriptor.tobytes(),
    )


def _compressed(thumbnail: NDArray[np.uint8] | None) -> bytes | None:
    return None if thumbnail is None else zlib.compress(thumbnail.tobytes(), 1)


def _unpack(record: Record, facts: Mapping[str, Any]) -> Facts:
    spacing = facts["spacing_mm"]
    plain = Record(
        id=record.id,
        source=record.source,
        image=Path(facts["image"]),
        masks={name: Path(path) for name, path in facts["masks"].items()},
        label=record.label,
        patient=facts["patient"],
        spacing_mm=(spacing[0], spacing[1]) if spacing else None,
    )
    objections = tuple(Objection(code, reason) for code, reason in facts["objections"])
    height, width = facts["size"]
    return Facts(plain, objections, height, width, facts["pixel_hash"])
