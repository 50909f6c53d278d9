"""From a stage of a run folder to an ONNX file that was proven equal, or to no file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adalora_qat.adapt.inject import adapters, merge
from adalora_qat.checkpoint import MODEL_FILE, RunFolder, load_model
from adalora_qat.config import DataConfig
from adalora_qat.corpus.records import Record
from adalora_qat.errors import ExportError
from adalora_qat.export.onnx import Exported, ExportOptions, export_onnx
from adalora_qat.export.parity import ParityCase
from adalora_qat.files import sha256_file
from adalora_qat.imaging.geometry import (
    Frame,
    boxes_to_model,
    image_to_model,
    mask_box_inclusive,
    whole_box,
)
from adalora_qat.model.sam import Segmenter
from adalora_qat.phantom.phantom import phantom
from adalora_qat.progress import Progress
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.quantize.convert import convert
from adalora_qat.quantize.prepare import quantized_layers
from adalora_qat.samples.dataset import SegmentationDataset


def export_stage(
    run: RunFolder,
    stage: str,
    path: Path,
    records: Sequence[Record],
    progress: Progress | None = None,
    *,
    golden: bool = False,
    refine: Sequence[str] | None = None,
) -> Exported:
    """Export a stage's model and hold it against its PyTorch self on ``records``.

    Parameters
    ----------
    run : a finished run of a Segment Anything recipe.
    stage : ``stage1`` gives an FP32 model, ``ptq`` and ``stage2`` the quantized one, with the
        scales that training ended with: nothing is calibrated again.
    path : the file to write.
    records : the validation images, with masks for their boxes.
    progress : is told of each image.
    golden : write inputs and outputs beside the file: a phantom's, so no patient's image.
    refine : structures that get a second pass (``model.refine``); the run's own if None.

    Raises
    ------
    ExportError
        If the run is of a baseline, ``refine`` names what is no structure of the model, or the
        runtime disagrees with the trained model; no file is written then.
    """
    segmenter, cases, told = _prepared(run, stage, records)
    segmenter.refine = tuple(run.config.model.refine if refine is None else refine)
    if unknown := sorted(set(segmenter.refine) - set(segmenter.structures)):
        known = ", ".join(segmenter.structures) or "it has none"
        raise ExportError(f"refine {unknown[0]}: it is no structure of the model ({known})")
    told["progress"] = progress
    frame, structures = segmenter.variant.frame, segmenter.structures
    told["golden"] = golden_case(frame, structures) if golden else None
    return export_onnx(segmenter, path, cases, **told)


def golden_case(frame: Frame, structures: Sequence[str] = ()) -> ParityCase:
    """Return a phantom and the box of its lungs as the model sees them.

    Of a model with ``structures`` each is asked for once more, in the whole image.
    """
    made = phantom(0)
    image, frame_map = image_to_model(made.image, frame)
    box = mask_box_inclusive(made.masks["left_lung"] | made.masks["right_lung"])
    boxes = boxes_to_model(box[None], frame_map).astype(np.float32)
    valid_hw = frame.side, frame.side
    if not structures:
        return ParityCase("phantom 0", image, boxes, valid_hw)
    whole = whole_box(frame.side, frame.side)[None].astype(np.float32)
    boxes = np.concatenate([boxes, *[whole] * len(structures)])
    named = np.arange(-1, len(structures))
    return ParityCase("phantom 0", image, boxes, valid_hw, named)


def _prepared(
    run: RunFolder, stage: str, records: Sequence[Record]
) -> tuple[Segmenter, list[ParityCase], ExportOptions]:
    if run.config.baselines is not None:
        raise ExportError(
            f"{run.path} is a run of a baseline ({run.config.baselines.architecture}), which has "
            "no ONNX export: give a run of a Segment Anything recipe"
        )
    source = run.stage(stage) / MODEL_FILE
    segmenter, description = load_model(source)
    told: ExportOptions = {
        "policy": run.config.quantize.policy if description["quantize"] else "none",
        "sources": {f"{stage}/{MODEL_FILE}": sha256_file(source)},
        "structures": run.config.data.prompt.targets,
        "automatic_prompt": run.config.data.prompt.whole_image > 0,
        "gate": run.config.export,
    }
    cases = parity_cases(records, run.config.data, segmenter.variant.frame, segmenter.structures)
    return deployable(segmenter), cases, told


def deployable(segmenter: Segmenter) -> Segmenter:
    """Bring a trained model into the form that ships, in place: integers, nothing to merge."""
    if quantized_layers(segmenter):
        convert(segmenter)
    else:
        fold_batch_norms(segmenter)
    if adapters(segmenter.image_encoder):
        merge(segmenter.image_encoder)
    return segmenter.eval()


def parity_cases(
    records: Sequence[Record], config: DataConfig, frame: Frame, structures: Sequence[str] = ()
) -> list[ParityCase]:
    """Return the records as the model sees them, each with the exact box of its mask.

    Of a model with ``structures`` each is asked for in the whole image instead.
    """
    dataset = SegmentationDataset(records, config, frame, train=False, structures=structures)
    return [
        ParityCase(
            sample.id,
            np.ascontiguousarray(sample.image.numpy()),
            sample.boxes.numpy(),
            sample.valid,
            None if sample.structures is None else sample.structures.numpy(),
        )
        for sample in (dataset[index] for index in range(len(dataset)))
    ]
