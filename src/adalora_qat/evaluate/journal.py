"""An append-only record of a long evaluation, so that it can stop and go on, and what decides it.

The first line says what is being computed; a journal of anything else is refused. Each
further line holds one finished item and goes to the disk at once; half a line, as a
crash leaves it, is dropped and computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError, UserError
from adalora_qat.predictor import FindsStructures, Predictor

Rows = list[dict[str, Any]]


class Journal:
    """Finished items by key, kept in a JSON-lines file.

    Parameters
    ----------
    path : the file, or None to keep nothing on disk.
    identity : what decides the result; equal identities may share results, no others.
    resume : go on where an existing journal stops; else it is begun anew.

    Raises
    ------
    DataError
        If an existing journal was made for another identity; names what differs.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any], resume: bool) -> None:
        self.done: dict[str, Rows] = {}
        self._path = path
        self._file: TextIO | None = None
        if path is None:
            return
        if resume and path.is_file():
            length = self._read(path, identity)
            with path.open("r+b") as handle:
                handle.truncate(length)
        else:
            self._begin(path, identity)
        self._file = path.open("a", encoding="utf-8")

    def add(self, key: str, rows: Rows) -> None:
        """Keep one finished item."""
        self.done[key] = rows
        if self._file is not None:
            try:
                self._file.write(json.dumps({"key": key, "rows": rows}) + "\n")
                self._file.flush()
            except OSError as error:
                raise UserError(
                    f"cannot write {self._path}: {error.strerror or error}; make room and "
                    "run again: finished cases are kept"
                ) from error

    def close(self) -> None:
        """Close the file; what is in it stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Delete the file, once its content stands elsewhere."""
        self.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _begin(self, path: Path, identity: Mapping[str, Any]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"identity": identity}) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror or error}; choose another folder"
            ) from error

    def _read(self, path: Path, identity: Mapping[str, Any]) -> int:
        """Take over the finished items; return how many bytes of the file are whole lines."""
        whole = 0
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True)):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number + 1}, is damaged; delete it") from error
            if number == 0:
                check_identity(path, entry.get("identity", {}), identity)
            else:
                self.done[entry["key"]] = entry["rows"]
            whole += len(line)
        if not whole:
            self._begin(path, identity)
            whole = path.stat().st_size
        return whole


def check_identity(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse results that were made by something else than what is asked for now.

    Raises
    ------
    DataError
        Naming every part that differs.
    """
    # Through JSON and back, so that tuples and lists compare alike.
    wanted = json.loads(json.dumps(wanted))
    differing = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    if differing:
        told = "; ".join(
            f"{key}: {_short(found.get(key))} there, {_short(wanted.get(key))} now"
            for key in differing
        )
        raise DataError(
            f"{path} holds results of another evaluation ({told}); choose another folder, or "
            "evaluate anew without resuming"
        )


def records_fingerprint(records: Sequence[Record], targets: Sequence[str]) -> str:
    """Return the SHA-256 of what records state, and of their files' paths, sizes and times."""
    digest = hashlib.sha256()
    for record in records:
        stated = (record.id, record.source, record.label, record.patient, record.spacing_mm)
        digest.update(repr(stated).encode())
        for path in (record.image, *(m for t in targets for m in record.mask_parts(t))):
            state = path.stat() if path.is_file() else None
            stamp = (state.st_size, state.st_mtime_ns) if state else None
            digest.update(repr((str(path), stamp)).encode())
    return digest.hexdigest()


def answer_fingerprint(predictor: Predictor) -> str:
    """Return the SHA-256 of a predictor's exact answer to one synthetic image.

    A name says nothing about weights; two trainings of one model answer differently. A
    predictor that is not deterministic has no stable fingerprint and cannot be resumed.
    """
    rows, columns = np.mgrid[:96, :128]
    image = (128 + 90 * np.sin(rows / 7) * np.cos(columns / 11)).astype(np.uint8)
    boxes = np.array([[20, 10, 110, 80], [40, 30, 90, 60]], dtype=np.float32)
    answer = predictor.predict(image, boxes)
    digest = hashlib.sha256()
    answers = [answer]
    if isinstance(predictor, FindsStructures) and predictor.structures:
        answers.append(predictor.prompted(image).structures())
    for each in answers:
        for array in (each.logits, each.masks, each.scores):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
