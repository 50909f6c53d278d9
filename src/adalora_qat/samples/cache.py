"""Images and masks decoded and resized once, kept in memory-mapped files.

A folder holds three files of equal slots (8-bit images, 16-bit images, bit-packed masks) and
``index.sqlite``, which says what lies in which slot. A slot is found by the hash of the
contents it was made from and of the geometry, so a changed file is another key, and data
sets, targets and runs share what they have in common. Pixels reach the disk before the row
that names them: a build that is killed goes on where it was. Slots of inputs that have
changed stay behind; delete the folder to be rid of them.

Where the limit is reached, the rest is decoded at every access: slower, never wrong.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adalora_qat.ahead import in_order
from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError, UserError
from adalora_qat.files import sha256_file
from adalora_qat.imaging.geometry import FrameMap, Grey
from adalora_qat.progress import Progress
from adalora_qat.samples.planes import Planes, decode_image, decode_mask

Kind = Literal["grey8", "grey16", "mask"]

# Raise it when decoding or resizing changes: everything kept before is then another key.
FORMAT = 1
_CHUNK = 64

_SCHEMA = """
CREATE TABLE IF NOT EXISTS planes (
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, slot INTEGER NOT NULL,
    height INTEGER NOT NULL, width INTEGER NOT NULL, UNIQUE (kind, slot));
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    sha256 TEXT NOT NULL);
"""


@dataclass(frozen=True)
class _Plane:
    # One thing to keep: a resized image or mask of an original of (height, width).
    key: str
    kind: Kind
    pixels: NDArray[Any]
    height: int
    width: int


class PlaneCache:
    """Decoded planes of records at one model side.

    Parameters
    ----------
    folder : made if it does not exist.
    side : S, the model side.
    limit_bytes : the most the slot files may hold together; None is no limit.

    Raises
    ------
    UserError
        If the folder cannot be written.
    """

    def __init__(self, folder: Path, side: int, limit_bytes: int | None = None) -> None:
        self.folder = folder / f"side{side}"
        self.side = side
        self.limit_bytes = limit_bytes
        self._slots: dict[str, tuple[Kind, int, int, int]] = {}
        self._keys: dict[Path, str] = {}
        self._maps: dict[Kind, NDArray[Any]] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._index() as index:
                index.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"cannot keep decoded images in {self.folder}: {error}; choose a folder that can "
                "be written and has room"
            ) from error

    def build(
        self,
        records: Sequence[Record],
        targets: Sequence[str],
        workers: int = 1,
        progress: Progress | None = None,
    ) -> int:
        """Decode what is not kept yet; return how many of the records are now kept whole.

        Threads are enough: Pillow releases the GIL while it decodes and resizes.

        Raises
        ------
        DataError
            If a record's files cannot be used; what was kept before it stays.
        UserError
            If the disk is full.
        """
        self._hash_files(records, targets, workers, progress)
        self._refresh()
        wanted = [record for record in records if not self._holds(record, targets)]
        done = len(records) - len(wanted)
        with ThreadPoolExecutor(workers) as pool:
            decoded = in_order(pool, lambda r: self._missing(r, targets), wanted, 2 * workers)
            while chunk := list(islice(decoded, _CHUNK)):
                room = self._keep([plane for planes in chunk for plane in planes])
                done += len(chunk)
                if progress is not None:
                    progress(done, len(records), "decoded images")
                if not room:
                    break
        self._refresh()
        return sum(self._holds(record, targets) for record in records)

    def read(self, record: Record, targets: Sequence[str]) -> Planes:
        """Return a record's planes: from the cache, or decoded now where it holds none.

        Raises
        ------
        DataError
            If the record must be decoded and its files cannot be used.
        """
        grey, frame_map = self._grey(record)
        masks = np.empty((len(targets), *frame_map.valid_hw), dtype=np.bool_)
        for row, target in zip(masks, targets, strict=True):
            row[:] = self._mask(record, target, frame_map)
        return Planes(grey, masks, frame_map)

    def bytes_used(self) -> int:
        """Return the bytes of the slot files."""
        paths = [self._path(kind) for kind in _kinds()]
        return sum(path.stat().st_size for path in paths if path.exists())

    def __getstate__(self) -> dict[str, Any]:
        # Workers map the files themselves; a pickled memory map would be a copy of it all.
        return {**self.__dict__, "_maps": {}}

    def _grey(self, record: Record) -> tuple[Grey, FrameMap]:
        slot = self._slots.get(self._image_key(record))
        if slot is None:
            return decode_image(record, self.side)
        kind, number, height, width = slot
        frame_map = FrameMap(height, width, self.side)
        h, w = frame_map.valid_hw
        return self._map(kind)[number, :h, :w], frame_map

    def _mask(self, record: Record, target: str, frame_map: FrameMap) -> NDArray[np.bool_]:
        slot = self._slots.get(self._mask_key(record, target))
        if slot is None:
            return decode_mask(record, target, frame_map)
        h, w = frame_map.valid_hw
        return _unpacked(self._map("mask")[slot[1]], self.side)[:h, :w]

    def _holds(self, record: Record, targets: Sequence[str]) -> bool:
        keys = [self._image_key(record), *(self._mask_key(record, target) for target in targets)]
        return all(key in self._slots for key in keys)

    def _image_key(self, record: Record) -> str:
        return self._keys.get(record.image, "")

    def _mask_key(self, record: Record, target: str) -> str:
        parts = [self._keys.get(path, "") for path in (record.image, *record.mask_parts(target))]
        return hashlib.sha256("+".join(parts).encode()).hexdigest() if all(parts) else ""

    def _missing(self, record: Record, targets: Sequence[str]) -> list[_Plane]:
        grey, frame_map = self._grey(record)
        size = frame_map.height, frame_map.width
        kind: Kind = "grey8" if grey.dtype == np.uint8 else "grey16"
        planes = [_Plane(self._image_key(record), kind, grey, *size)]
        for target in targets:
            mask = decode_mask(record, target, frame_map)
            planes.append(_Plane(self._mask_key(record, target), "mask", mask, *size))
        return planes

    def _keep(self, planes: Iterable[_Plane]) -> bool:
        # Pixels first and flushed, then the rows, in one transaction that owns the slots.
        room = True
        try:
            with self._index() as index:
                index.execute("BEGIN IMMEDIATE")
                touched = set()
                for plane in planes:
                    if index.execute("SELECT 1 FROM planes WHERE key = ?", [plane.key]).fetchone():
                        continue
                    slot = _next_slot(index, plane.kind)
                    room = room and self._write(plane, slot)
                    if not room:
                        break
                    touched.add(plane.kind)
                    index.execute(
                        "INSERT INTO planes VALUES (?, ?, ?, ?, ?)",
                        [plane.key, plane.kind, slot, plane.height, plane.width],
                    )
                for kind in touched:
                    _flush(self._path(kind))
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"cannot keep decoded images in {self.folder}: {error}; make room, choose another "
                "folder or lower the limit"
            ) from error
        return room

    def _write(self, plane: _Plane, slot: int) -> bool:
        h, w = plane.pixels.shape
        canvas = np.zeros((self.side, self.side), dtype=plane.pixels.dtype)
        canvas[:h, :w] = plane.pixels
        content = (np.packbits(canvas) if plane.kind == "mask" else canvas).tobytes()
        path = self._path(plane.kind)
        path.touch()
        grows = max(0, (slot + 1) * len(content) - path.stat().st_size)
        if self.limit_bytes is not None and self.bytes_used() + grows > self.limit_bytes:
            return False
        with path.open("r+b") as handle:
            handle.seek(slot * len(content))
            handle.write(content)
        return True

    def _hash_files(
        self,
        records: Sequence[Record],
        targets: Sequence[str],
        workers: int,
        progress: Progress | None,
    ) -> None:
        paths = {
            path: None
            for record in records
            for path in (record.image, *(p for t in targets for p in record.mask_parts(t)))
        }
        rows = []
        with self._index() as index:
            known = {row[0]: row[1:] for row in index.execute("SELECT * FROM files")}
            with ThreadPoolExecutor(workers) as pool:
                for row in pool.map(lambda path: _stamped(path, known.get(str(path))), paths):
                    rows.append(row)
                    if progress is not None and len(rows) % _CHUNK == 0:
                        progress(len(rows), len(paths), "hashed files")
            index.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)
        for path, row in zip(paths, rows, strict=True):
            name = f"{FORMAT}:{self.side}:{row[3]}"
            self._keys[path] = hashlib.sha256(name.encode()).hexdigest()

    def _refresh(self) -> None:
        with self._index() as index:
            rows = index.execute("SELECT key, kind, slot, height, width FROM planes")
            self._slots = {row[0]: (row[1], row[2], row[3], row[4]) for row in rows}
        self._maps = {}

    def _map(self, kind: Kind) -> NDArray[Any]:
        if kind not in self._maps:
            dtype = np.dtype(np.uint16 if kind == "grey16" else np.uint8)
            flat = np.memmap(self._path(kind), dtype=dtype, mode="r")
            shape = (-(-self.side * self.side // 8),) if kind == "mask" else (self.side, self.side)
            whole = flat.size // int(np.prod(shape))
            plain = np.asarray(flat[: whole * int(np.prod(shape))])
            self._maps[kind] = plain.reshape(whole, *shape)
        return self._maps[kind]

    def _path(self, kind: Kind) -> Path:
        return self.folder / f"{kind}.bin"

    @contextmanager
    def _index(self) -> Iterator[sqlite3.Connection]:
        path = self.folder / "index.sqlite"
        # Leaving the connection commits or rolls back, but does not close it.
        with closing(sqlite3.connect(path, timeout=60)) as connection, connection:
            yield connection


def _kinds() -> tuple[Kind, ...]:
    return ("grey8", "grey16", "mask")


def _next_slot(index: sqlite3.Connection, kind: Kind) -> int:
    query = "SELECT COALESCE(MAX(slot) + 1, 0) FROM planes WHERE kind = ?"
    return int(index.execute(query, [kind]).fetchone()[0])


def _stamped(path: Path, known: tuple[int, int, str] | None) -> tuple[str, int, int, str]:
    # A file of the same size and time of change has the same contents, as make and git hold.
    try:
        stat = path.stat()
        if known is not None and known[:2] == (stat.st_size, stat.st_mtime_ns):
            return str(path), stat.st_size, stat.st_mtime_ns, known[2]
        return str(path), stat.st_size, stat.st_mtime_ns, sha256_file(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path") from error


def _unpacked(bits: NDArray[np.uint8], side: int) -> NDArray[np.bool_]:
    return np.unpackbits(bits, count=side * side).view(np.bool_).reshape(side, side)


def _flush(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
