"""A file that is only in memory, to be read where a path can be."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import TypeAlias


class _Stream(BytesIO):
    """Bytes that decoders call by the name of their file."""

    def __init__(self, name: str, data: bytes) -> None:
        super().__init__(data)
        self._called = name

    def __repr__(self) -> str:
        return repr(self._called)


@dataclass(frozen=True)
class MemoryFile:
    """The bytes of an image or DICOM file that came from elsewhere than a disk.

    Attributes
    ----------
    name : what errors and results call it; its suffix tells nothing that the bytes do not.
    data : the whole file.
    """

    name: str
    data: bytes = field(repr=False)

    @property
    def suffix(self) -> str:
        """The end of the name, as ``Path.suffix``."""
        return PurePosixPath(self.name).suffix

    def open(self, mode: str = "rb") -> BytesIO:
        """Return a stream of the bytes; ``mode`` can only be ``rb``."""
        if mode != "rb":
            raise ValueError(f"mode {mode!r}: a file in memory is only read, as bytes")
        return _Stream(self.name, self.data)

    def read_bytes(self) -> bytes:
        """Return the bytes."""
        return self.data

    def stat(self) -> os.stat_result:
        """Return a regular file's description: its size, and zeros."""
        return os.stat_result((stat.S_IFREG | 0o400, 0, 0, 1, 0, 0, len(self.data), 0, 0, 0))

    def __str__(self) -> str:
        return self.name


File: TypeAlias = Path | MemoryFile
"""What is read: a file of the disk, or one in memory."""


def source_of(file: File) -> Path | BytesIO:
    """Return what libraries open: the path, or a stream of what is in memory."""
    return file if isinstance(file, Path) else file.open()
