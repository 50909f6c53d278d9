"""One training at a time in a run folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adalora_qat.errors import UserError


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder (made if it is not there) against other trainings inside the context.

    The kernel holds the lock, on the folder itself: it ends with the process, however that ends,
    and leaves no file behind. File systems without locks, and Windows, go without.

    Raises
    ------
    UserError
        If another process trains in it.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot use {folder}: {error.strerror}; choose another --out") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(
            f"another process is training in {folder}; wait for its end, or choose another --out"
        ) from None
    except OSError:
        pass  # no locks on this file system
    try:
        yield
    finally:
        os.close(handle)
