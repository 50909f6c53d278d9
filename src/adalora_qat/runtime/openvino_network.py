"""A model's file in OpenVINO, an optional engine: ``pip install 'adalora-qat[openvino]'``.

Compiling takes seconds, so what was compiled is kept (``kept``).
"""

from __future__ import annotations

import contextlib
from collections import deque
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino as ov

from adalora_qat.errors import CheckpointError
from adalora_qat.runtime.graph_file import EMBEDDINGS, halves
from adalora_qat.runtime.kept import Kept
from adalora_qat.runtime.metadata import ModelMetadata
from adalora_qat.runtime.networks import Feeds, Floats
from adalora_qat.runtime.session import give_memory_back, threads_of

Precision = Literal["f32", "bf16"]


class OpenVinoNetwork:
    """A file in OpenVINO on the CPU, cut at its embeddings.

    Parameters
    ----------
    path, model : the file, and its bytes.
    threads : None for one per processor that this process may use.
    precision : of what the file does not compute in integers.
    cache : folder of compiled models; None keeps none.

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
        core = ov.Core()
        encoder, decoder = (_compiled(core, part, settings, cache, path) for part in halves(model))
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
    core: ov.Core, part: bytes, settings: dict[str, Any], folder: Path | None, path: Path
) -> ov.CompiledModel:
    """Return a compiled half, from the cache if it is there and sound."""
    device = core.get_property("CPU", "FULL_DEVICE_NAME")
    kept = Kept(folder, ov.__version__, device, sorted(settings.items()), part)
    blob = kept.read()
    if blob is not None:
        with contextlib.suppress(RuntimeError):
            return core.import_model(blob, "CPU", settings)
    try:
        compiled = core.compile_model(core.read_model(part, b""), "CPU", settings)
    # OpenVINO's exceptions are RuntimeError, but for what its front end does not expect.
    except Exception as error:
        raise CheckpointError(f"OpenVINO cannot run {path} ({_cause(error)})") from error
    if folder is not None:
        kept.write(compiled.export_model().getvalue())
    return compiled


def _cause(error: Exception) -> str:
    """Return what is wrong: the operators that OpenVINO names, else its last words."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line.removeprefix("-- ") for line in lines if "No conversion rule" in line]
    return " ".join((named or lines[-1:] or [type(error).__name__])[:3])[:200]
