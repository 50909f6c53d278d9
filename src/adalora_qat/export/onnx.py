"""Writing a segmenter as one ONNX file, from its own trained scales, behind a parity gate.

What stage 2 computed is what ships: no second calibration. The file is written only if every
integer layer runs as one in ONNX Runtime, and if its masks agree with the quantized model's.

Shapes: S model side, N boxes of one image, L low-resolution side.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import helper

import adalora_qat
from adalora_qat.config import ExportConfig
from adalora_qat.errors import ExportError
from adalora_qat.export.decoder import decode, embed_boxes, no_mask
from adalora_qat.export.encoders import encode
from adalora_qat.export.graph import Graph
from adalora_qat.export.kernels import require_integer_kernels
from adalora_qat.export.metadata import ModelMetadata
from adalora_qat.export.parity import Model, Parity, ParityCase, Progress, measure
from adalora_qat.export.runtime import open_session
from adalora_qat.files import atomic_write
from adalora_qat.model.sam import Segmenter
from adalora_qat.quantize.batch_norm import fold_batch_norms

# The most that one protobuf message can hold.
_LARGEST_FILE = 2**31 - 1


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes
    ----------
    size_bytes : of the file.
    parity : agreement with the model that was exported.
    kernels : how many operators of each kind multiply in ONNX Runtime on this machine.
    """

    path: Path
    size_bytes: int
    parity: Parity
    kernels: Mapping[str, int]


def export_onnx(
    segmenter: Segmenter,
    path: Path,
    cases: Sequence[ParityCase],
    *,
    policy: str,
    sources: Mapping[str, str],
    gate: ExportConfig | None = None,
    golden: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Export a whole model: image (1, 3, S, S), boxes (1, N, 4) → logits (1, N, L, L), iou (1, N).

    Parameters
    ----------
    segmenter : float, or converted by ``quantize.convert``; adapters merged.
    cases : the images and boxes of the parity gate.
    policy : the name of the quantization policy, ``none`` for FP32.
    sources : what the weights came from, name → SHA-256; goes into the file.
    golden : write ``<stem>.golden.npz`` beside the file: inputs and outputs of the first case.

    Raises
    ------
    ExportError
        If the model is not ready, a layer would run in float32 that should not, or the masks
        do not agree. No file is written then.
    UserError
        If the file cannot be written.
    """
    require_exportable(segmenter)
    variant = segmenter.variant
    metadata = ModelMetadata(
        variant.name, variant.frame, variant.low_res_side, policy, adalora_qat.__version__,
        sources=dict(sources),
    )  # fmt: skip
    model = build_model(segmenter, metadata)
    with atomic_write(path) as temporary:
        _save(model, temporary)
        kernels = require_integer_kernels(model, temporary)
        candidate = onnx_model(open_session(temporary))
        parity = measure(
            torch_model(segmenter), candidate, cases, metadata.mask_threshold, progress
        )
        parity.check(gate or ExportConfig())
        finished = replace(metadata, parity=parity.figures())
        helper.set_model_props(model, finished.to_props())
        _save(model, temporary)
        size = temporary.stat().st_size
    if golden:
        _write_golden(path.with_suffix(".golden.npz"), cases[0], candidate)
    return Exported(path, size, parity, kernels)


def build_model(segmenter: Segmenter, metadata: ModelMetadata) -> onnx.ModelProto:
    """Write the whole model's graph and check it.

    Raises
    ------
    ExportError
        If ``onnx.checker`` finds fault with it, or it is larger than 2 GB.
    """
    if any(isinstance(module, torch.nn.BatchNorm2d) for module in segmenter.modules()):
        segmenter = copy.deepcopy(segmenter)
        fold_batch_norms(segmenter)
    variant = segmenter.variant
    g, side, low = Graph(variant.name), variant.frame.side, variant.low_res_side
    image = g.input("image", (1, 3, side, side))
    boxes = g.input("boxes", (1, "N", 4))
    features = encode(g, segmenter, image)
    features = g.add(features, no_mask(g, segmenter))
    logits, iou = decode(g, segmenter, features, embed_boxes(g, segmenter, boxes))
    g.output(logits, "logits", (1, "N", low, low))
    g.output(iou, "iou", (1, "N"))
    return checked(g.model(metadata.to_props()))


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model that ``onnx.checker`` passes.

    Raises
    ------
    ExportError
        If it does not, or the model is larger than one file can be.
    """
    if model.ByteSize() > _LARGEST_FILE:
        raise ExportError(
            f"the model needs {model.ByteSize() / 1e9:.1f} GB and an ONNX file holds 2; "
            "export it quantized"
        )
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    return model


def require_exportable(segmenter: Segmenter) -> None:
    """Check that adapters are merged and prepared layers converted.

    Raises
    ------
    ExportError
        If not, naming the first module.
    """
    for name, module in segmenter.named_modules():
        if hasattr(module, "delta_weight"):
            raise ExportError(f"{name} is still an adapter; call adapt.merge before exporting")
        if hasattr(module, "weight_quantizer"):
            raise ExportError(f"{name} is prepared but not converted; call quantize.convert")


def torch_model(segmenter: Segmenter) -> Model:
    """Return a segmenter as a function of NumPy arrays, one image at a time."""

    @torch.inference_mode()
    def run(
        image: NDArray[np.float32], boxes: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        segmenter.eval()
        logits, iou = segmenter(torch.from_numpy(image)[None], torch.from_numpy(boxes)[None])
        return logits[0].numpy(), iou[0].numpy()

    return run


def onnx_model(session: ort.InferenceSession) -> Model:
    """Return a session as a function of NumPy arrays, one image at a time."""

    def run(
        image: NDArray[np.float32], boxes: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        feeds = {"image": image[None], "boxes": boxes[None]}
        logits, iou = session.run(["logits", "iou"], feeds)
        return logits[0], iou[0]

    return run


def _save(model: onnx.ModelProto, path: Path) -> None:
    path.write_bytes(model.SerializeToString())


def _write_golden(path: Path, case: ParityCase, model: Model) -> None:
    logits, iou = model(case.image, case.boxes)
    with atomic_write(path) as temporary:
        np.savez_compressed(
            temporary, image=case.image[None], boxes=case.boxes[None], logits=logits[None],
            iou=iou[None],
        )  # fmt: skip
