"""Reading bodies: within limits of size and time, and only into memory.

The usual form parser keeps larger files on the disk; nothing of an image may lie there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from adalora_qat.errors import printable
from adalora_qat.imaging.memory_file import MemoryFile
from adalora_qat.serve.refusal import Refusal
from adalora_qat.serve.settings import Settings

_LONGEST_NAME = 120
_DISCARD_SECONDS = 2
# Of a form: the image and a few numbers.
_FILES, _FIELDS, _FIELD_BYTES = 4, 32, 1_000_000


class _InMemory(MultiPartParser):
    """Never spools to a file: the body's limit is the limit of memory."""

    spool_max_size = 1 << 40


@dataclass
class Form:
    """A form that has arrived: its text, and its files in memory."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, MemoryFile] = field(default_factory=dict)

    def json(self, name: str) -> Any:
        """Return a field that holds JSON; None where it is missing or empty.

        Raises
        ------
        Refusal
            422 if it is not JSON.
        """
        text = self.fields.get(name, "").strip()
        if not text:
            return None
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise Refusal(422, "bad_field", f"field {name} is not JSON") from None


class Intake:
    """Reads the bodies of all requests, and knows how much of them is held.

    Parameters
    ----------
    settings : ``max_bytes``, ``held_bytes`` and ``body_seconds``.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.held = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Give the body of a request; it counts as held until the block ends.

        Raises
        ------
        Refusal
            413 if it is too long, 408 if it comes too slowly, 503 if too much is held.
        """
        most, taken = self._settings.max_bytes, 0
        said = request.headers.get("content-length", "")
        stream, chunks = request.stream(), []
        if said.isdigit() and int(said) > most:
            await _discard(stream)
            raise _too_long(most)
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                async for chunk in stream:
                    taken += len(chunk)
                    self.held += len(chunk)
                    if taken > most:
                        await _discard(stream)
                        raise _too_long(most)
                    if self.held > self._settings.held_bytes:
                        raise Refusal(
                            503,
                            "busy",
                            "too many images are being sent at once; try again in a second",
                            {"Retry-After": "1"},
                        )
                    chunks.append(chunk)
            yield b"".join(chunks)
        except TimeoutError:
            raise Refusal(
                408,
                "too_slow",
                f"the body did not arrive within {self._settings.body_seconds:g} s",
                {"Connection": "close"},
            ) from None
        except ClientDisconnect:
            raise Refusal(400, "gone", "the client left before its request was whole") from None
        finally:
            self.held -= taken

    @asynccontextmanager
    async def form(self, request: Request) -> AsyncIterator[Form]:
        """Give the form of a request, multipart or url-encoded.

        Raises
        ------
        Refusal
            As ``body``; 415 if it is no form, 400 if it is damaged.
        """
        async with self.body(request) as data:
            yield await parsed(request.headers, data)

    @asynccontextmanager
    async def json(self, request: Request) -> AsyncIterator[Mapping[str, Any]]:
        """Give the JSON object of a request; an empty body is an empty one.

        Raises
        ------
        Refusal
            As ``body``; 400 if it is something else.
        """
        async with self.body(request) as data:
            try:
                value = json.loads(data) if data.strip() else {}
            except (ValueError, RecursionError):
                value = None
            if not isinstance(value, dict):
                raise Refusal(400, "bad_body", "the body must be a JSON object")
            yield value


async def parsed(headers: Headers, data: bytes) -> Form:
    """Take a form apart; see ``Intake.form``."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    form = Form()
    try:
        if kind == "multipart/form-data":
            given = await _InMemory(
                headers,
                _once(data),
                max_files=_FILES,
                max_fields=_FIELDS,
                max_part_size=_FIELD_BYTES,
            ).parse()
        elif kind == "application/x-www-form-urlencoded":
            given = await FormParser(headers, _once(data)).parse()
        else:
            raise Refusal(
                415, "no_form", "send a form (multipart/form-data) with the image in `image`"
            )
        for name, value in given.multi_items():
            if isinstance(value, UploadFile):
                form.files[name] = MemoryFile(file_name(value.filename), await value.read())
                await value.close()
            else:
                form.fields[name] = value
    except (MultiPartException, KeyError, UnicodeDecodeError, ValueError) as error:
        raise Refusal(400, "bad_form", f"the form is damaged ({printable(error)[:200]})") from None
    return form


def file_name(given: str | None) -> str:
    """Return a client's name for its file without folders, as text that may be shown."""
    name = PureWindowsPath(PurePosixPath(given or "").name).name
    name = printable(name.strip("\0 ."))[:_LONGEST_NAME]
    return name or "image"


async def _once(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data
    yield b""


async def _discard(stream: AsyncGenerator[bytes, None]) -> None:
    """Take the rest of a body for a moment: a client that is cut off hears no reason."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_SECONDS):
            async for _ in stream:
                pass


def _too_long(most: int) -> Refusal:
    return Refusal(
        413,
        "too_large",
        f"more than {most} bytes; send a smaller image, or raise --max-bytes",
        {"Connection": "close"},
    )
