"""Writing a segmenter as one ONNX file, from its own trained scales, behind a parity gate.

What stage 2 computed is what ships: no second calibration. The file is written only if every
integer layer runs as one in ONNX Runtime, and if its masks agree with the quantized model's.

Shapes: S model side, N boxes of one image, L low-resolution side.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Required, TypedDict, Unpack

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import helper

import adalora_qat
from adalora_qat.adapt.adapted_linear import AdaptedLinear
from adalora_qat.config import ExportConfig
from adalora_qat.errors import ExportError
from adalora_qat.export.decoder import decode, embed_points, name_structures, no_mask
from adalora_qat.export.graph import MIN_ONNXRUNTIME, Graph
from adalora_qat.export.kernels import require_integer_kernels
from adalora_qat.export.parity import Model, Parity, ParityCase, measure_parity
from adalora_qat.export.tiny_vit_graph import encode_tiny_vit
from adalora_qat.export.vit_graph import encode_vit
from adalora_qat.export.weights import weight_of
from adalora_qat.files import atomic_write
from adalora_qat.model.sam import Segmenter
from adalora_qat.model.tiny_vit import TinyViT
from adalora_qat.progress import Progress
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.runtime.digest import BLANK, KEY, sealed
from adalora_qat.runtime.metadata import ModelMetadata
from adalora_qat.runtime.networks import box_feeds
from adalora_qat.runtime.session import open_session

_Output = tuple[NDArray[np.float32], NDArray[np.float32]]

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


class ExportOptions(TypedDict, total=False):
    """What an export is told besides the model, the files and the images.

    Attributes
    ----------
    policy : the name of the quantization policy, ``none`` for FP32.
    sources : what the weights came from, name → SHA-256; goes into the file.
    structures : what the model was trained to segment; goes into the file.
    automatic_prompt : whether it was trained on whole images, too; goes into the file.
    gate : the least agreement; the defaults of the configuration if None.
    golden : a case whose inputs and outputs go into ``<stem>.golden.npz`` beside the file, for
        whoever runs the model elsewhere.
    progress : is told of each case.
    """

    policy: Required[str]
    sources: Required[Mapping[str, str]]
    structures: Sequence[str]
    automatic_prompt: bool | None
    gate: ExportConfig | None
    golden: ParityCase | None
    progress: Progress | None


def export_onnx(
    segmenter: Segmenter,
    path: Path,
    cases: Sequence[ParityCase],
    **options: Unpack[ExportOptions],
) -> Exported:
    """Export a model; ``build_model`` says what the file takes and gives.

    Parameters
    ----------
    segmenter : float, or converted by ``quantize.convert``; adapters merged.
    path : the file to write.
    cases : the images and boxes of the parity gate.
    options : see ``ExportOptions``.

    Raises
    ------
    ExportError
        If the model is not ready, a layer would run in float32 that should not, or the masks
        do not agree. No file is written then.
    UserError
        If the file cannot be written.
    """
    metadata = describe(
        segmenter,
        options["policy"],
        options["sources"],
        options.get("structures", ()),
        options.get("automatic_prompt"),
    )
    model = build_model(segmenter, metadata)
    with atomic_write(path) as file:
        write_model(model, file, metadata)
        kernels = require_integer_kernels(model, file)
        candidate = onnx_model(open_session(file))
        parity = measure_parity(
            torch_model(segmenter),
            candidate,
            cases,
            metadata.mask_threshold,
            options.get("progress"),
        )
        parity.check(options.get("gate") or ExportConfig())
        size = write_model(model, file, replace(metadata, parity=parity.figures()))
    golden = options.get("golden")
    if golden is not None:
        _write_golden(path, golden, candidate)
    return Exported(path, size, parity, kernels)


def describe(
    segmenter: Segmenter,
    policy: str,
    sources: Mapping[str, str],
    structures: Sequence[str] = (),
    automatic_prompt: bool | None = None,
) -> ModelMetadata:
    """Return the metadata of a model that can be exported.

    Parameters
    ----------
    segmenter : its variant is described.
    policy, sources, structures : as in ``ExportOptions``.

    Raises
    ------
    ExportError
        If it cannot be, as it is.
    """
    require_exportable(segmenter)
    variant, version = segmenter.variant, adalora_qat.__version__
    return ModelMetadata(
        variant.name,
        variant.frame,
        variant.low_res_side,
        policy,
        version,
        sources=dict(sources),
        structures=tuple(structures),
        refine=segmenter.refine,
        automatic_prompt=automatic_prompt,
        points=bool(weight_of(segmenter.prompt_encoder.not_a_point_embed).any()),
        min_onnxruntime=MIN_ONNXRUNTIME,
    )


def build_model(segmenter: Segmenter, metadata: ModelMetadata) -> onnx.ModelProto:
    """Write the model's graph and check it.

    Inputs: image (1, 3, S, S); points (1, N, T, 2), (x, y) in the model frame, with labels
    (1, N, T): 1 on the object, 0 beside it, 2 and 3 the corners of a box, −1 no point; of a
    model with learned prompts also structures (1, N), which of them each mask shall be, −1 for
    what is pointed at. Outputs: embeddings (E², D), logits (1, N, L, L) and iou (1, N).

    Raises
    ------
    ExportError
        If ``onnx.checker`` finds fault with it, or it is larger than 2 GB.
    """
    segmenter, variant = _without_batch_norms(segmenter), segmenter.variant
    g, side, low = Graph(variant.name), variant.frame.side, variant.low_res_side
    image = g.input("image", (1, 3, side, side))
    points = g.input("points", (1, "N", "T", 2))
    labels = g.input("labels", (1, "N", "T"), onnx.TensorProto.INT64)
    shape = (variant.embedding_side**2, variant.decoder_width)
    # All that follows reads this output, so that the file can be cut in two at it.
    embeddings = g.output(encode(g, segmenter, image), "embeddings", shape)
    prompts = embed_points(g, segmenter, points, labels)
    if segmenter.structures:
        named = g.input("structures", (1, "N"), onnx.TensorProto.INT64)
        prompts = name_structures(g, segmenter, prompts, labels, named)
    logits, iou = decode(g, segmenter, g.add(embeddings, no_mask(g, segmenter)), prompts)
    g.output(logits, "logits", (1, "N", low, low))
    g.output(iou, "iou", (1, "N"))
    return checked(g.model(metadata.to_props()))


def encode(g: Graph, segmenter: Segmenter, image: str) -> str:
    """Write the encoder of ``segmenter``: image (1, 3, S, S) → embeddings (E², D)."""
    encoder, side = segmenter.image_encoder, segmenter.variant.frame.side
    with g.scope("image_encoder"):
        if isinstance(encoder, TinyViT):
            return encode_tiny_vit(g, encoder, image, side)
        return encode_vit(g, encoder, image, side)


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
        if isinstance(module, AdaptedLinear):
            raise ExportError(f"{name} is still an adapter; call adapt.merge before exporting")
        if hasattr(module, "weight_quantizer"):
            raise ExportError(f"{name} is prepared but not converted; call quantize.convert")


def torch_model(segmenter: Segmenter) -> Model:
    """Return a segmenter as a function of NumPy arrays, one image at a time."""

    @torch.inference_mode()
    def run(image: NDArray[np.float32], *prompt: NDArray[Any]) -> _Output:
        segmenter.eval()
        logits, iou = segmenter(*(torch.from_numpy(each)[None] for each in (image, *prompt)))
        return logits[0].numpy(), iou[0].numpy()

    return run


def onnx_model(session: ort.InferenceSession) -> Model:
    """Return a session as a function of NumPy arrays, one image at a time."""

    def run(image: NDArray[np.float32], *prompt: NDArray[Any]) -> _Output:
        feeds = {"image": image[None], **box_feeds(*prompt)}
        logits, iou = session.run(["logits", "iou"], feeds)
        return logits[0], iou[0]

    return run


def _without_batch_norms(segmenter: Segmenter) -> Segmenter:
    """Return a model whose batch norms are folded: itself, or a copy."""
    if any(isinstance(module, torch.nn.BatchNorm2d) for module in segmenter.modules()):
        segmenter = copy.deepcopy(segmenter)
        fold_batch_norms(segmenter)
    return segmenter


def write_model(model: onnx.ModelProto, path: Path, metadata: ModelMetadata) -> int:
    """Write a model with its self-description and its digest.

    Parameters
    ----------
    model : its metadata are replaced.
    path : the file to write; ``atomic_write`` is the caller's.
    metadata : what it says of itself.

    Returns
    -------
    The size of the file in bytes.
    """
    helper.set_model_props(model, {**metadata.to_props(), KEY: json.dumps(BLANK.decode())})
    return path.write_bytes(sealed(model.SerializeToString()))


def _write_golden(path: Path, case: ParityCase, model: Model) -> None:
    logits, iou = model(case.image, *case.prompt)
    outputs: dict[str, Any] = {
        "image": case.image[None],
        **box_feeds(*case.prompt),
        "logits": logits[None],
        "iou": iou[None],
    }
    with atomic_write(path.with_suffix(".golden.npz")) as temporary:
        np.savez_compressed(temporary, **outputs)
