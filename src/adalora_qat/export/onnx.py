"""Writing a segmenter as one ONNX file, from its own trained scales, behind a parity gate.

What stage 2 computed is what ships: no second calibration. The file is written only if every
integer layer runs as one in ONNX Runtime, and if its masks agree with the quantized model's.

Shapes: S model side, N boxes of one image, L low-resolution side.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
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
from adalora_qat.export.decoder import (
    decode,
    embed_boxes,
    embed_masks,
    embed_points,
    name_structures,
    no_mask,
)
from adalora_qat.export.graph import MIN_ONNXRUNTIME, Graph
from adalora_qat.export.kernels import require_integer_kernels
from adalora_qat.export.parity import Model, Parity, ParityCase, measure_parity
from adalora_qat.export.tiny_vit_graph import encode_tiny_vit
from adalora_qat.export.vit_graph import encode_vit
from adalora_qat.files import atomic_write
from adalora_qat.model.sam import Segmenter
from adalora_qat.model.tiny_vit import TinyViT
from adalora_qat.progress import Progress
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.runtime.digest import BLANK, KEY, sealed
from adalora_qat.runtime.interactive import box_prompt
from adalora_qat.runtime.metadata import ModelMetadata, Part
from adalora_qat.runtime.onnx_predictor import open_session

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
    golden : a case whose inputs and outputs go into ``<stem>.golden.npz`` beside the (first)
        file, for whoever runs the model elsewhere.
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
    """Export a whole model: image (1, 3, S, S), boxes (1, N, 4) → logits (1, N, L, L), iou (1, N).

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
    [made] = _export(segmenter, {"whole": path}, cases, options)
    return made


def export_split(
    segmenter: Segmenter,
    encoder_path: Path,
    decoder_path: Path,
    cases: Sequence[ParityCase],
    **options: Unpack[ExportOptions],
) -> tuple[Exported, Exported]:
    """Export encoder and decoder as two files: one image encoded once, then many prompts.

    The halves take boxes and points on any object, and leave learned prompts of structures out.

    Parameters
    ----------
    encoder_path, decoder_path : the files to write.
    segmenter, cases, options : as in ``export_onnx``; the gate looks at both files together.

    Raises
    ------
    ExportError, UserError
        As ``export_onnx``.
    """
    cases = [replace(case, structures=None) for case in cases]
    paths: dict[Part, Path] = {"encoder": encoder_path, "decoder": decoder_path}
    encoder, decoder = _export(segmenter, paths, cases, options)
    return encoder, decoder


def _export(
    segmenter: Segmenter,
    paths: Mapping[Part, Path],
    cases: Sequence[ParityCase],
    options: ExportOptions,
) -> list[Exported]:
    """Write the parts together, or none of them."""
    policy, sources = options["policy"], options["sources"]
    metadata = describe(
        segmenter,
        policy,
        sources,
        options.get("structures", ()),
        options.get("automatic_prompt"),
    )
    said = [replace(metadata, part=part) for part in paths]
    models = [_BUILDERS[part](segmenter, metadata) for part in paths]
    with ExitStack() as stack:
        files = [stack.enter_context(atomic_write(path)) for path in paths.values()]
        for model, file, told in zip(models, files, said, strict=True):
            write_model(model, file, told)
        kernels = [require_integer_kernels(m, f) for m, f in zip(models, files, strict=True)]
        sessions = [open_session(file) for file in files]
        candidate = onnx_model(*sessions) if len(sessions) == 1 else split_model(*sessions)
        parity = measure_parity(
            torch_model(segmenter),
            candidate,
            cases,
            metadata.mask_threshold,
            options.get("progress"),
        )
        parity.check(options.get("gate") or ExportConfig())
        sizes = [
            write_model(model, file, replace(told, parity=parity.figures()))
            for model, file, told in zip(models, files, said, strict=True)
        ]
    golden = options.get("golden")
    if golden is not None:
        shown = golden if "whole" in paths else replace(golden, structures=None)
        _write_golden(next(iter(paths.values())), shown, candidate)
    return [
        Exported(path, size, parity, counts)
        for path, size, counts in zip(paths.values(), sizes, kernels, strict=True)
    ]


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
        automatic_prompt=automatic_prompt,
        min_onnxruntime=MIN_ONNXRUNTIME,
    )


def build_model(segmenter: Segmenter, metadata: ModelMetadata) -> onnx.ModelProto:
    """Write the whole model's graph and check it.

    Raises
    ------
    ExportError
        If ``onnx.checker`` finds fault with it, or it is larger than 2 GB.
    """
    segmenter, variant = _without_batch_norms(segmenter), segmenter.variant
    g, side, low = Graph(variant.name), variant.frame.side, variant.low_res_side
    image = g.input("image", (1, 3, side, side))
    boxes = g.input("boxes", (1, "N", 4))
    embeddings = _encoded_once(g, segmenter, image)
    features = g.add(embeddings, no_mask(g, segmenter))
    prompts = embed_boxes(g, segmenter, boxes)
    if segmenter.structures:
        named = g.input("structures", (1, "N"), onnx.TensorProto.INT64)
        prompts = name_structures(g, segmenter, prompts, named)
    logits, iou = decode(g, segmenter, features, prompts)
    g.output(logits, "logits", (1, "N", low, low))
    g.output(iou, "iou", (1, "N"))
    g.output(embeddings, "embeddings", (variant.embedding_side**2, variant.decoder_width))
    return checked(g.model(metadata.to_props()))


def _encoded_once(g: Graph, segmenter: Segmenter, image: str) -> str:
    """Encode the image, (E², D), unless the embeddings of an earlier run are given."""
    variant = segmenter.variant
    shape = (variant.embedding_side**2, variant.decoder_width)
    none = np.zeros((0, shape[1]), dtype=np.float32)
    known = g.input("known_embeddings", ("K", shape[1]), default=none)
    count = g.node("Shape", known, start=0, end=1)
    unknown = g.node("Equal", count, g.constant("no_pixels", np.zeros(1, dtype=np.int64)))
    return g.either(unknown, shape, lambda: encode(g, segmenter, image), known)


def encode(g: Graph, segmenter: Segmenter, image: str) -> str:
    """Write the encoder of ``segmenter``: image (1, 3, S, S) → embeddings (E², D)."""
    encoder, side = segmenter.image_encoder, segmenter.variant.frame.side
    with g.scope("image_encoder"):
        if isinstance(encoder, TinyViT):
            return encode_tiny_vit(g, encoder, image, side)
        return encode_vit(g, encoder, image, side)


def build_encoder(segmenter: Segmenter, metadata: ModelMetadata) -> onnx.ModelProto:
    """Write the encoder alone: image (1, 3, S, S) → embeddings (E², D)."""
    segmenter, side = _without_batch_norms(segmenter), segmenter.variant.frame.side
    g = Graph(f"{segmenter.variant.name} encoder")
    features = encode(g, segmenter, g.input("image", (1, 3, side, side)))
    pixels, width = segmenter.variant.embedding_side**2, segmenter.variant.decoder_width
    g.output(features, "embeddings", (pixels, width))
    return checked(g.model(replace(metadata, part="encoder").to_props()))


def build_decoder(segmenter: Segmenter, metadata: ModelMetadata) -> onnx.ModelProto:
    """Write the decoder alone, for any number of prompts of one image.

    Inputs: embeddings (E², D); points (1, N, T, 2) in the model frame with labels (1, N, T):
    1 in the object, 0 outside it, 2 and 3 the corners of a box, −1 no point; the logits of an
    earlier prediction, masks (1, N, L, L), used where has_mask (1, N) is 1.
    """
    variant, g = segmenter.variant, Graph(f"{segmenter.variant.name} decoder")
    low, pixels = variant.low_res_side, variant.embedding_side**2
    features = g.input("embeddings", (pixels, variant.decoder_width))
    points = g.input("points", (1, "N", "T", 2))
    labels = g.input("labels", (1, "N", "T"), onnx.TensorProto.INT64)
    masks = g.input("masks", (1, "N", low, low))
    dense = embed_masks(g, segmenter, masks, g.input("has_mask", (1, "N")))
    tokens = embed_points(g, segmenter, points, labels)
    logits, iou = decode(g, segmenter, g.add(dense, features), tokens)
    g.output(logits, "logits", (1, "N", low, low))
    g.output(iou, "iou", (1, "N"))
    return checked(g.model(replace(metadata, part="decoder").to_props()))


_BUILDERS: Mapping[Part, Callable[[Segmenter, ModelMetadata], onnx.ModelProto]] = {
    "whole": build_model,
    "encoder": build_encoder,
    "decoder": build_decoder,
}


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
        names = ("image", "boxes", "structures")
        given = (image, *prompt)
        feeds = {name: each[None] for name, each in zip(names, given, strict=False)}
        logits, iou = session.run(["logits", "iou"], feeds)
        return logits[0], iou[0]

    return run


def split_model(encoder: ort.InferenceSession, decoder: ort.InferenceSession) -> Model:
    """Return the two halves as a function of NumPy arrays, prompted with boxes."""

    def run(
        image: NDArray[np.float32], boxes: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        (embeddings,) = encoder.run(["embeddings"], {"image": image[None]})
        logits, iou = decoder.run(
            ["logits", "iou"],
            {"embeddings": embeddings, **box_prompt(boxes, _low_res_side(decoder))},
        )
        return logits[0], iou[0]

    return run


def _low_res_side(decoder: ort.InferenceSession) -> int:
    shapes = {one.name: one.shape for one in decoder.get_inputs()}
    return int(shapes["masks"][-1])


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
        "image": case.image,
        "boxes": case.boxes,
        "logits": logits,
        "iou": iou,
    }
    if case.structures is not None:
        outputs["structures"] = case.structures
    with atomic_write(path.with_suffix(".golden.npz")) as temporary:
        np.savez_compressed(temporary, **{name: each[None] for name, each in outputs.items()})
