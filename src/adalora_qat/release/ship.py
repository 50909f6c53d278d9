"""From a trained run to the folder of the model that ships: file, card, golden mask, checksums.

The folder is written beside the old one and put in its place at the end, so that there is
always one whole model or none.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd

from adalora_qat.checkpoint import RunFolder
from adalora_qat.corpus.records import Record
from adalora_qat.errors import ExportError
from adalora_qat.evaluate.calibration import expected_calibration_error
from adalora_qat.evaluate.cases import evaluate_cases
from adalora_qat.export.onnx import write_model
from adalora_qat.export.run import export_stage
from adalora_qat.files import atomic_write, sha256_file, write_text
from adalora_qat.phantom.phantom import phantom
from adalora_qat.progress import Progress
from adalora_qat.release.assure import fit_assurance, fit_threshold
from adalora_qat.release.ship_card import ship_card
from adalora_qat.runtime.assurance import Assurance
from adalora_qat.runtime.onnx_predictor import OnnxPredictor
from adalora_qat.runtime.packaged import CARD, GOLDEN, MODEL, SUMS, check_golden

# The repository and every install carry the file.
MOST_BYTES = 11_000_000
# Training images whose views the input check is fitted on; more only take longer.
IMAGES = 160
BOX_MODES = ("automatic", "oracle")


@dataclass(frozen=True)
class Shipped:
    """What was written, and what the card says of it.

    Attributes
    ----------
    size_bytes : of the ONNX file.
    threshold : cut of the logits.
    rows : Dice by box and source on the test images.
    calibration_error : expected calibration error of the confidence, same images.
    """

    folder: Path
    size_bytes: int
    threshold: float
    rows: Sequence[Mapping[str, Any]]
    calibration_error: float


def ship(
    run: RunFolder,
    stage: str,
    records: Mapping[str, Sequence[Record]],
    folder: Path,
    *,
    images: int = IMAGES,
    progress: Progress | None = None,
) -> Shipped:
    """Export a stage, teach it its limits, measure it on the test images, and write all.

    Parameters
    ----------
    run : a finished run.
    stage : ``stage1``, ``ptq`` or ``stage2``.
    records : ``train``, ``val`` and ``test``, each with masks of the run's target.
    folder : replaced as a whole.
    images : training images whose views the input check is fitted on.
    progress : is told of each image.

    Raises
    ------
    ExportError
        If the file is larger than 11 MB or disagrees with the trained model; nothing is
        replaced then.
    """
    target = run.config.data.prompt.targets[0]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".ship.") as scratch:
        made = Path(scratch) / "made"
        file = made / MODEL
        export_stage(run, stage, file, records["val"], progress)
        threshold = _assure(file, records, target, images, run.config.seed, progress)
        size = file.stat().st_size
        if size > MOST_BYTES:
            raise ExportError(
                f"the model has {size / 1e6:.2f} MB and {MOST_BYTES / 1e6:.0f} are allowed; use "
                "the policy int8-all"
            )
        predictor = OnnxPredictor(file)
        tables = _evaluate(predictor, records["test"], target, progress)
        _write_golden(predictor, made / GOLDEN)
        error = expected_calibration_error(tables["automatic"])
        rows = [row for mode in BOX_MODES for row in _rows(mode, tables[mode])]
        card = ship_card(run, stage, predictor, size, records, rows, error)
        write_text(made / CARD, card)
        names = (MODEL, GOLDEN, CARD)
        write_text(made / SUMS, "".join(f"{sha256_file(made / n)}  {n}\n" for n in names))
        check_golden(predictor, made)
        _replace(folder, made)
    return Shipped(folder, size, threshold, rows, error)


def finish(file: Path, threshold: float | None, assurance: Assurance | None) -> None:
    """Write a threshold and what a model knows of its limits into its file."""
    metadata = OnnxPredictor(file, threads=1).metadata
    if threshold is not None:
        metadata = replace(metadata, mask_threshold=threshold)
    if assurance is not None:
        metadata = replace(metadata, assurance=assurance.to_json())
    model = onnx.load(file)
    with atomic_write(file) as temporary:
        write_model(model, temporary, metadata)


def _assure(
    file: Path,
    records: Mapping[str, Sequence[Record]],
    target: str,
    images: int,
    seed: int,
    progress: Progress | None,
) -> float:
    threshold, _ = fit_threshold(OnnxPredictor(file), records["val"], target, progress)
    finish(file, threshold, None)
    train = list(records["train"])
    chosen = train[:: max(1, len(train) // images)]
    predictor = OnnxPredictor(file)
    finish(file, None, fit_assurance(predictor, chosen, records["val"], target, seed, progress))
    return threshold


def _evaluate(
    predictor: OnnxPredictor, records: Sequence[Record], target: str, progress: Progress | None
) -> dict[str, pd.DataFrame]:
    return {
        mode: evaluate_cases(predictor, records, [target], mode, progress=progress)
        for mode in BOX_MODES
    }


def _rows(mode: str, table: pd.DataFrame) -> list[dict[str, Any]]:
    parts = [("all", table), *((str(name), part) for name, part in table.groupby("source"))]
    return [
        {
            "box": mode,
            "source": source,
            "n": int(part["dsc"].notna().sum()),
            "dice_mean": float(part["dsc"].mean()),
            "dice_std": float(part["dsc"].std(ddof=1)) if len(part) > 1 else 0.0,
            "dice_min": float(part["dsc"].min()),
        }
        for source, part in parts
    ]


def _write_golden(predictor: OnnxPredictor, path: Path) -> None:
    """Keep the mask of a phantom, which is nobody's radiograph."""
    made = phantom(7, side=256)
    box = np.array([20, 20, 236, 236], dtype=np.float64)
    mask = predictor.predict(made.image, box[None]).masks[0]
    with atomic_write(path) as temporary:
        np.savez_compressed(temporary, image=made.image, box=box, mask=np.packbits(mask))


def _replace(folder: Path, made: Path) -> None:
    """Put a finished folder in the place of another one."""
    old = made.parent / "old"
    if folder.exists():
        folder.rename(old)
    made.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
