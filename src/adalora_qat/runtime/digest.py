"""A digest inside an ONNX file, so that a file with one wrong bit is refused.

The metadata entry ``adalora_qat.digest`` holds the SHA-256 of the whole file, graph, weights and
other metadata, as it would be with 64 zeros in the digest's own place. It is found by walking the
file's outermost message, so that the base install, which has no ``onnx``, can check it. This is a
guard against damage, not against intent: whoever changes a file can write a new digest into it.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from adalora_qat.errors import CheckpointError
from adalora_qat.runtime.graph_file import message_fields

KEY = "adalora_qat.digest"
DIGITS = 64
BLANK = b"0" * DIGITS
# A file that names its oldest runtime is one of those that have a digest.
_SEALED = "adalora_qat.min_onnxruntime"
# ModelProto.metadata_props, and its key and value (onnx.proto3).
_METADATA, _KEY, _VALUE = 14, 1, 2
_CHUNK = 1 << 20


def sealed(model: bytes) -> bytes:
    """Return a serialized model with its digest in the place reserved for it.

    Parameters
    ----------
    model : whose metadata has the entry ``adalora_qat.digest``, 64 characters within quotes.
    """
    start = _entries(model)[KEY]
    blanked = model[:start] + BLANK + model[start + DIGITS :]
    digest = hashlib.sha256(blanked).hexdigest().encode("ascii")
    return model[:start] + digest + model[start + DIGITS :]


def verified_sha256(path: Path) -> str:
    """Return the SHA-256 of a model file after checking the digest inside it, if it has one.

    Files of earlier versions have none, and files that are no model pass, too: the runtime says
    best what is wrong with those.

    Raises
    ------
    CheckpointError
        If the file is missing or cannot be read, or is not what it was when it was written.
    """
    try:
        with path.open("rb") as file:
            start = _place(file, path)
            whole = hashlib.sha256()
            for chunk in _chunks(file, start):
                whole.update(chunk)
            blanked, stated = whole.copy(), file.read(DIGITS)
            whole.update(stated)
            blanked.update(BLANK)
            for chunk in _chunks(file):
                whole.update(chunk)
                blanked.update(chunk)
    except FileNotFoundError:
        raise CheckpointError(f"model file {path} does not exist") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    if start is not None and blanked.hexdigest().encode("ascii") != stated:
        raise _damaged(path)
    return whole.hexdigest()


def _place(file: BinaryIO, path: Path) -> int | None:
    """Return where the digits of a file's digest begin; None if it has no digest."""
    try:
        # Mapped, not read: the walk steps over graph and weights.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as model:
            entries = _entries(model)
    except (IndexError, ValueError):
        return None
    if KEY not in entries and _SEALED in entries:
        raise _damaged(path)
    return entries.get(KEY)


def _entries(model: bytes | mmap.mmap) -> dict[str, int]:
    """Return key → place of the first character within the quotes, of a model's metadata.

    Raises
    ------
    IndexError, ValueError
        If the bytes are no protocol buffer message.
    """
    places = {}
    for number, start, end in message_fields(model, 0, len(model)):
        if number == _METADATA:
            inner = {kind: (a, b) for kind, a, b in message_fields(model, start, end)}
            (a, b), (first, _) = inner.get(_KEY, (0, 0)), inner.get(_VALUE, (0, 0))
            places[model[a:b].decode("utf-8", "replace")] = first + 1
    return places


def _chunks(file: BinaryIO, size: int | None = None) -> Iterator[bytes]:
    """Yield the next ``size`` bytes of a file, or all that are left."""
    while chunk := file.read(_CHUNK if size is None else min(_CHUNK, size)):
        size = None if size is None else size - len(chunk)
        yield chunk


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged: its bytes do not have the SHA-256 that was written into it; copy it "
        "again from where it came, or export it again"
    )
