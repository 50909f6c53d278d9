"""Images that stay open between requests, so that a further prompt does not encode again."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from adalora_qat.dicom.source import Source
from adalora_qat.runtime.opened import OpenImage
from adalora_qat.runtime.result import Result
from adalora_qat.serve.refusal import Refusal
from adalora_qat.serve.settings import Settings

# Their pixels, all together: a few large images take as much as many small ones.
_MOST_BYTES = 1_000_000_000


@dataclass
class Session:
    """One open image, and the last thing it was asked.

    Attributes
    ----------
    id : secret, as it is all that is asked for.
    name : of the file, as the client gave it.
    source : its header, if it is DICOM.
    """

    id: str
    name: str
    image: OpenImage
    used: float
    source: Source | None = field(default=None, repr=False)
    last: Result | None = field(default=None, repr=False)

    def remembered(self, result: Result) -> Result:
        """Keep a result, for its files."""
        self.last = result
        return result


class Sessions:
    """The open images: bounded in number, bytes and age.

    Parameters
    ----------
    settings : ``sessions`` and ``session_seconds``.
    clock : seconds; for tests.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._open: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, key: str) -> bool:
        return key in self._open

    def keys(self, start: str) -> list[str]:
        """Return the ids that begin so, the one used longest ago first."""
        with self._lock:
            self._drop()
            return [key for key in self._open if key.startswith(start)]

    def add(self, name: str, image: OpenImage, key: str | None = None) -> Session:
        """Keep an image; those used longest ago make room."""
        session = Session(key or secrets.token_urlsafe(18), name, image, self._clock())
        with self._lock:
            self._open[session.id] = session
            self._drop()
        return session

    def get(self, key: str) -> Session:
        """Return a session, which counts as used.

        Raises
        ------
        Refusal
            404 if there is none, or no longer.
        """
        with self._lock:
            self._drop()
            session = self._open.get(key)
            if session is None:
                raise Refusal(
                    404, "no_such_session", "there is no such session (any more); send the image"
                )
            session.used = self._clock()
            self._open.move_to_end(key)
            return session

    def remove(self, key: str) -> None:
        """End a session.

        Raises
        ------
        Refusal
            404 if there is none.
        """
        self.get(key)
        with self._lock:
            self._open.pop(key, None)

    def _drop(self) -> None:
        oldest = self._clock() - self._settings.session_seconds
        total = sum(each.image.pixels.nbytes for each in self._open.values())
        for key, session in list(self._open.items()):
            over = len(self._open) > self._settings.sessions
            over = over or (total > _MOST_BYTES and len(self._open) > 1)
            if not over and session.used >= oldest:
                return
            total -= session.image.pixels.nbytes
            del self._open[key]
