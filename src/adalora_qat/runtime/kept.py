"""What takes long to make and can be made again, kept in a folder with its SHA-256.

Engines arrange a graph for the processor at hand, which takes longer than one image. A file that
is not there, cannot be read or written, or is not what was written, is as if it had never been.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from adalora_qat.files import atomic_write

_DIGEST = 32
# Two for each model, engine and setting.
_MOST = 24
# A larger one would take as long to read as to make.
_MOST_BYTES = 100_000_000


def default_cache() -> Path:
    """Return the user's folder for this."""
    return Path.home() / ".cache" / "adalora-qat" / "engines"


class Kept:
    """One thing in a folder.

    Parameters
    ----------
    folder : where; None keeps nothing.
    facts : all that it was made from.
    """

    def __init__(self, folder: Path | None, *facts: object) -> None:
        key = hashlib.sha256(repr(facts).encode()).hexdigest()[:40]
        self._file = None if folder is None else folder / f"{key}.bin"

    def read(self) -> bytes | None:
        """Return what was written, if it is there and sound."""
        if self._file is None:
            return None
        try:
            data = self._file.read_bytes()
        except OSError:
            return None
        body = data[_DIGEST:]
        return body if hashlib.sha256(body).digest() == data[:_DIGEST] else None

    def write(self, data: bytes) -> None:
        """Keep it, if that can be; the oldest of the folder go."""
        if self._file is None or len(data) > _MOST_BYTES:
            return
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._file) as temporary:
                temporary.write_bytes(hashlib.sha256(data).digest() + data)
            files = self._file.parent.glob("*.bin")
            for old in sorted(files, key=lambda file: file.stat().st_mtime)[:-_MOST]:
                old.unlink(missing_ok=True)
