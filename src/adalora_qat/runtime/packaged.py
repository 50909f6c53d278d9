"""The model that comes with the package: where it is, and whether it is intact.

NumPy and ONNX Runtime only, as the base install has no more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import numpy as np

from adalora_qat.errors import CheckpointError
from adalora_qat.runtime.onnx_predictor import OnnxPredictor

MODEL, GOLDEN, CARD, SUMS = "lungs-int8.onnx", "golden.npz", "model_card.md", "SHA256SUMS"
# A mask on another processor may differ by single pixels, where integers round to either side.
_SAME_MASK = 0.99


def weights_folder() -> Path:
    """Return the folder of the package that holds the model, there or not."""
    return Path(str(resources.files("adalora_qat").joinpath("weights")))


def packaged_predictor(
    threads: int | None = None,
    folder: Path | None = None,
    engine: str = "onnxruntime",
    cache: Path | None = None,
    *,
    low_memory: bool = False,
) -> OnnxPredictor:
    """Open the packaged model of both lungs.

    Parameters
    ----------
    threads : worker threads, None for one per core.
    folder : where the model's files are; those of the package if not given.
    engine : what runs it, one of ``engines.ENGINES``.
    cache, low_memory : as in ``engines.open_network``.

    Raises
    ------
    CheckpointError
        If this build of the package has none, or a file of it is not what it was.
    """
    folder = weights_folder() if folder is None else folder
    if not (folder / MODEL).is_file():
        raise CheckpointError(
            f"this installation of adalora-qat holds no model (there is no {folder / MODEL}); "
            "give one that `adalora-qat export` wrote, by --model or load(path)"
        )
    predictor = OnnxPredictor(
        folder / MODEL, threads=threads, engine=engine, cache=cache, low_memory=low_memory
    )
    stated = read_sums(folder).get(MODEL)
    if predictor.sha256 != stated:
        raise CheckpointError(
            f"{folder / MODEL} is not the file that was packaged (its SHA-256 is "
            f"{predictor.sha256[:12]}…, not {str(stated)[:12]}…); install the package again"
        )
    return predictor


def read_sums(folder: Path) -> Mapping[str, str]:
    """Read ``SHA256SUMS``: file name → SHA-256; empty where there is none."""
    file = folder / SUMS
    if not file.is_file():
        return {}
    pairs = (line.split() for line in file.read_text("utf-8").splitlines() if line.strip())
    return {name.lstrip("*"): digest for digest, name in pairs}


def check_golden(predictor: OnnxPredictor, folder: Path) -> float:
    """Return the Dice of the mask of the golden phantom with the one made on packaging.

    Raises
    ------
    CheckpointError
        If they differ by more than rounding, or the golden file is not what it was.
    """
    data = (folder / GOLDEN).read_bytes()
    if hashlib.sha256(data).hexdigest() != read_sums(folder).get(GOLDEN):
        raise CheckpointError(f"{folder / GOLDEN} is not the file that was packaged")
    with np.load(folder / GOLDEN) as golden:
        image, box = golden["image"], golden["box"]
        expected = np.unpackbits(golden["mask"], count=image.size).reshape(image.shape) > 0
    mask = predictor.predict(image, box[None]).masks[0]
    same = 2 * int((mask & expected).sum()) / max(1, int(mask.sum()) + int(expected.sum()))
    if same < _SAME_MASK:
        raise CheckpointError(
            f"the model computes something else here than when it was packaged: Dice {same:.4f} "
            f"with the golden mask, at least {_SAME_MASK} is rounding; use the onnxruntime "
            "that it was tested with"
        )
    return same
