"""What runs a model's file: encoder and decoder as two functions of NumPy arrays.

Shapes: N prompts of one image, T points of a prompt, S model side, E side of the embeddings,
D width, L low-resolution side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from adalora_qat.runtime.graph_file import EMBEDDINGS, halves
from adalora_qat.runtime.kept import Kept
from adalora_qat.runtime.metadata import ModelMetadata
from adalora_qat.runtime.session import (
    CPU,
    give_memory_back,
    open_session,
    processor_features,
    reopened,
    run_options,
    threads_of,
)

Floats = NDArray[np.float32]
Feeds = dict[str, NDArray[Any]]

# The labels of points, as Segment Anything numbers them.
OUTSIDE, INSIDE, TOP_LEFT, BOTTOM_RIGHT, NO_POINT = 0, 1, 2, 3, -1
_KNOWN = "known_embeddings"


def box_feeds(boxes: NDArray[np.generic], structures: NDArray[np.generic] | None = None) -> Feeds:
    """Return what a file takes for boxes.

    Parameters
    ----------
    boxes : (N, 4) in the model frame.
    structures : (N,) which structure each mask shall be, −1 for what the box holds;
        None for a model without learned prompts.
    """
    count = len(boxes)
    feeds: Feeds = {
        "points": boxes.astype(np.float32).reshape(1, count, 2, 2),
        "labels": np.tile(np.array([TOP_LEFT, BOTTOM_RIGHT], dtype=np.int64), (1, count, 1)),
    }
    return feeds if structures is None else {**feeds, "structures": structures[None]}


class Network(Protocol):
    """A model's file, opened by an engine; safe to share between threads.

    Attributes
    ----------
    metadata : what the file says about itself.
    engine : what runs it, with version and precision.
    threads : how many threads it has.
    takes : the names of the inputs of a prompt.
    gives_embeddings : False where ``encode`` returns the image itself.
    """

    metadata: ModelMetadata
    engine: str
    threads: int
    takes: frozenset[str]
    gives_embeddings: bool

    def encode(self, image: Floats) -> Floats:
        """Encode an image (1, 3, S, S) as embeddings (E², D)."""
        ...

    def decode(self, embeddings: Floats, prompt: Feeds) -> tuple[Floats, Floats]:
        """Decode prompts of an encoded image: logits (1, N, L, L) and predicted IoU (1, N).

        Parameters
        ----------
        embeddings : what ``encode`` gave.
        prompt : points (1, N, T, 2) and labels (1, N, T); where the file takes them also
            structures (1, N).
        """
        ...


class OnnxNetwork:
    """A file in ONNX Runtime, cut at its embeddings.

    Parameters
    ----------
    path, model : the file, and its bytes.
    threads : None for one per processor that this process may use.
    low_memory : hold no more between images than the model; a run takes somewhat longer.
    providers : as in ``session.open_session``.
    cache : folder in which the graph is kept as it is arranged for this processor; None for none.
    """

    gives_embeddings = True

    def __init__(
        self,
        path: Path,
        model: bytes,
        threads: int | None,
        *,
        low_memory: bool = False,
        providers: Sequence[str] = CPU,
        cache: Path | None = None,
    ) -> None:
        self.metadata = ModelMetadata.of(model, str(path))
        self.threads, self.engine = threads_of(threads), _runtime(providers)
        self._low_memory, opened = low_memory, []
        facts = ort.__version__, sorted(processor_features()), hashlib.sha256(model).digest()
        places = [Kept(cache, "onnxruntime", part, *facts) for part in ("encoder", "decoder")]
        arranged = [place.read() for place in places]
        if None not in arranged and providers == CPU:
            opened = [reopened(each or b"", threads) for each in arranged]
        else:
            keep = cache is not None and providers == CPU
            opened = [
                open_session(
                    path, threads, model=part, providers=providers,
                    kept=place if keep else None,
                )
                for place, part in zip(places, halves(model), strict=True)
            ]  # fmt: skip
        self._encoder, self._decoder = opened
        self.takes = frozenset(each.name for each in self._decoder.get_inputs()) - {EMBEDDINGS}

    def encode(self, image: Floats) -> Floats:
        """Encode an image; see ``Network``."""
        embeddings: Floats
        (embeddings,) = self._encoder.run([EMBEDDINGS], {"image": image}, self._options())
        return embeddings

    def decode(self, embeddings: Floats, prompt: Feeds) -> tuple[Floats, Floats]:
        """Decode prompts; see ``Network``."""
        logits, iou = self._decoder.run(
            ["logits", "iou"], {EMBEDDINGS: embeddings, **prompt}, self._options()
        )
        if self._low_memory:
            give_memory_back()
        return logits, iou

    def _options(self) -> ort.RunOptions:
        return run_options(low_memory=self._low_memory)


class EarlierNetwork:
    """A file of an earlier version, which takes boxes alone and cannot be cut."""

    def __init__(
        self, path: Path, model: bytes, threads: int | None, *, low_memory: bool = False
    ) -> None:
        session = open_session(path, threads)
        self.metadata = ModelMetadata.of(model, str(path))
        self.threads, self.engine = threads_of(threads), _runtime(CPU)
        inputs = {each.name for each in session.get_overridable_initializers()}
        self.gives_embeddings = _KNOWN in inputs
        self.takes = frozenset(each.name for each in session.get_inputs()) - {"image"}
        side = self.metadata.frame.side
        self._whole = np.array([[0, 0, side, side]], dtype=np.float32)
        self._blank = np.zeros((1, 3, side, side), dtype=np.float32)
        self._session, self._low_memory = session, low_memory

    def encode(self, image: Floats) -> Floats:
        """Encode an image; the image itself if the file keeps its embeddings to itself."""
        if not self.gives_embeddings:
            return image
        only = run_options(low_memory=self._low_memory)
        only.only_execute_path_to_fetches = True
        feeds = {"image": image, **self._boxes(box_feeds(self._whole))}
        embeddings: Floats
        (embeddings,) = self._session.run([EMBEDDINGS], feeds, only)
        return embeddings

    def decode(self, embeddings: Floats, prompt: Feeds) -> tuple[Floats, Floats]:
        """Decode prompts whose points are corners of boxes; see ``Network``."""
        if self.gives_embeddings:
            seen = {"image": self._blank, _KNOWN: embeddings}
        else:
            seen = {"image": embeddings}
        logits, iou = self._session.run(
            ["logits", "iou"],
            {**seen, **self._boxes(prompt)},
            run_options(low_memory=self._low_memory),
        )
        if self._low_memory:
            give_memory_back()
        return logits, iou

    def _boxes(self, prompt: Feeds) -> Feeds:
        count = prompt["labels"].shape[1]
        boxes = {"boxes": prompt["points"].reshape(1, count, 4)}
        if "structures" not in self.takes:
            return boxes
        none = np.full((1, count), -1, dtype=np.int64)
        return {**boxes, "structures": prompt.get("structures", none)}


def _runtime(providers: Sequence[str]) -> str:
    names = "" if providers == CPU else f" {providers[0]}"
    return f"onnxruntime {ort.__version__}{names}"
