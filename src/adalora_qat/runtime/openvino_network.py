"""A model's file in OpenVINO, an optional engine: ``pip install 'adalora-qat[openvino]'``.

Compiling takes seconds, so what was compiled is kept in the user's cache with its SHA-256. A file
that is not there, cannot be written or is not what was written is compiled again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections import deque
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino as ov

from adalora_qat.errors import CheckpointError
from adalora_qat.files import atomic_write
from adalora_qat.runtime.graph_file import EMBEDDINGS, halves
from adalora_qat.runtime.metadata import ModelMetadata
from adalora_qat.runtime.networks import Feeds, Floats
from adalora_qat.runtime.session import give_memory_back, threads_of

Precision = Literal["f32", "bf16"]
_DIGEST = 32
# Two for each model and setting.
_KEPT = 12


def default_cache() -> Path:
    """Return the folder in which compiled models are kept."""
    return Path.home() / ".cache" / "adalora-qat" / "openvino"


class OpenVinoNetwork:
    """A file in OpenVINO on the CPU, cut at its embeddings.

    Parameters
    ----------
    path, model : the file, and its bytes.
    threads : None for one per processor that this process may use.
    precision : of what the file does not compute in integers.
    cache : folder of compiled models.

    Raises
    ------
    CheckpointError
        If OpenVINO lacks an operator of the file; names it.
    """

    gives_embeddings = True

    def __init__(
        self,
        path: Path,
        model: bytes,
        threads: int | None,
        precision: Precision = "f32",
        cache: Path | None = None,
    ) -> None:
        self.metadata = ModelMetadata.of(model, str(path))
        self.threads = threads_of(threads)
        self.engine = f"openvino {ov.__version__.split('-')[0]} {precision}"
        settings = {
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
        }
        folder = default_cache() if cache is None else cache
        core = ov.Core()
        encoder, decoder = (_compiled(core, part, settings, folder, path) for part in halves(model))
        self._encoder, self._decoder = _Requests(encoder), _Requests(decoder)
        names = {name for port in decoder.inputs for name in port.get_names()}
        self.takes = frozenset(names - {EMBEDDINGS})
        give_memory_back()

    def encode(self, image: Floats) -> Floats:
        """Encode an image; see ``Network``."""
        (embeddings,) = self._encoder({"image": image}, [EMBEDDINGS])
        return embeddings

    def decode(self, embeddings: Floats, prompt: Feeds) -> tuple[Floats, Floats]:
        """Decode prompts; see ``Network``."""
        logits, iou = self._decoder({EMBEDDINGS: embeddings, **prompt}, ["logits", "iou"])
        return logits, iou


class _Requests:
    """One compiled half: each thread that calls it has a request of its own."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self._compiled = compiled
        self._free: deque[ov.InferRequest] = deque()

    def __call__(self, feeds: Feeds, outputs: list[str]) -> list[Floats]:
        try:
            request = self._free.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            request.infer({name: np.ascontiguousarray(each) for name, each in feeds.items()})
            return [np.array(request.get_tensor(name).data) for name in outputs]
        finally:
            self._free.append(request)


def _compiled(
    core: ov.Core, part: bytes, settings: dict[str, Any], folder: Path, path: Path
) -> ov.CompiledModel:
    """Return a compiled half, from the cache if it is there and sound."""
    facts = (ov.__version__, core.get_property("CPU", "FULL_DEVICE_NAME"), sorted(settings.items()))
    key = hashlib.sha256(part + repr(facts).encode()).hexdigest()
    file = folder / f"{key}.blob"
    with contextlib.suppress(OSError, RuntimeError):
        kept = file.read_bytes()
        if hashlib.sha256(kept[_DIGEST:]).digest() == kept[:_DIGEST]:
            return core.import_model(io.BytesIO(kept[_DIGEST:]), "CPU", settings)
    try:
        compiled = core.compile_model(core.read_model(part, b""), "CPU", settings)
    # OpenVINO's exceptions are RuntimeError, but for what its front end does not expect.
    except Exception as error:
        raise CheckpointError(f"OpenVINO cannot run {path} ({_cause(error)})") from error
    with contextlib.suppress(OSError, RuntimeError):
        blob = compiled.export_model()
        blob = blob.getvalue() if isinstance(blob, io.BytesIO) else bytes(blob)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as temporary:
            temporary.write_bytes(hashlib.sha256(blob).digest() + blob)
        _forget(folder)
    return compiled


def _forget(folder: Path) -> None:
    """Delete all but the newest of the cache."""
    files = sorted(folder.glob("*.blob"), key=lambda file: file.stat().st_mtime)
    for file in files[:-_KEPT]:
        file.unlink(missing_ok=True)


def _cause(error: Exception) -> str:
    """Return what is wrong: the operators that OpenVINO names, else its last words."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line.removeprefix("-- ") for line in lines if "No conversion rule" in line]
    return " ".join((named or lines[-1:] or [type(error).__name__])[:3])[:200]
