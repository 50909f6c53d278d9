"""How many bytes a model takes on disk, by part and precision, counted from real files.

A training checkpoint holds float32 masters whatever its policy, so its own size says nothing.
The model that ships is therefore packed into a temporary file, and that file is counted to
the last byte: tensors by what they are, and the description in front of them.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from adalora_qat.checkpoint import MODEL_FILE, RunFolder, load_model, write_tensors
from adalora_qat.config import QuantizeConfig, RunConfig
from adalora_qat.errors import CheckpointError, ConfigError
from adalora_qat.export.kernels import all_graphs
from adalora_qat.export.run import deployable
from adalora_qat.imaging.geometry import boxes_to_model, image_to_model, mask_box_inclusive
from adalora_qat.model.sam import VARIANTS, Segmenter, random_segmenter
from adalora_qat.model.weights import save_weights
from adalora_qat.phantom.phantom import phantom
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.quantize.compensate import compensable, insert_branches
from adalora_qat.quantize.convert import convert, integer_layers
from adalora_qat.quantize.pack import read_header, save_packed
from adalora_qat.quantize.policy import Policy, load_policy, parse_policy
from adalora_qat.quantize.prepare import freeze, observe, prepare, quantized_layers
from adalora_qat.runtime.metadata import ModelMetadata
from adalora_qat.runtime.session import open_session

STAGES = ("stage2", "ptq", "stage1")
# What is in a file beside its weights: names, shapes, the policy, an ONNX file's operators.
DESCRIPTION = "description"

_SAFETENSORS = {"I8": "INT8", "U8": "INT4", "I32": "INT32", "F32": "FP32", "F16": "FP16"}
_SCALE = re.compile(r"(^|[._])scale$")
_ONNX = {"FLOAT": "FP32", "FLOAT16": "FP16"}

Entry = tuple[str, str, int]


@dataclass(frozen=True)
class Size:
    """The bytes of one file, and of the float32 file of the same model.

    Attributes
    ----------
    what : which file was counted, for people.
    policy : name of the quantization policy, ``none`` for float32, None where not known.
    parts : part of the model → precision ("INT8", "INT4", "INT32", "FP32", "scales", …) →
        bytes; the part ``description`` is all that is not weights. They add up to ``total``.
    total : bytes of the file.
    fp32_total : bytes of the float32 file, batch norms folded; None where the file does not
        say which model it holds.
    """

    what: str
    policy: str | None
    parts: dict[str, dict[str, int]]
    total: int
    fp32_total: int | None

    @property
    def ratio(self) -> float | None:
        """How many times smaller than the float32 file."""
        return None if self.fp32_total is None else self.fp32_total / self.total

    def by_precision(self) -> dict[str, int]:
        """Return the bytes of each precision over all parts."""
        found: dict[str, int] = {}
        for bytes_of in self.parts.values():
            for precision, size in bytes_of.items():
                found[precision] = found.get(precision, 0) + size
        return found

    def figures(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "what": self.what,
            "policy": self.policy,
            "total_bytes": self.total,
            "fp32_bytes": self.fp32_total,
            "ratio": self.ratio,
            "bytes_by_precision": self.by_precision(),
            "bytes_by_part": self.parts,
        }


def size_of(path: Path, policy: str | None = None) -> Size:
    """Count a run folder's furthest stage, a stage's model, a packed file or an ONNX file.

    Parameters
    ----------
    policy : quantize the float32 model by this policy first, to see what it would take. Input
        scales are then those of one phantom: right for counting, not for use.

    Raises
    ------
    CheckpointError
        If there is no such file, or it is none of these.
    ConfigError
        If ``policy`` is unknown, or the model is quantized already.
    """
    table = None if policy is None else load_policy(policy)
    if path.is_dir():
        return _of_stage(_stage_file(RunFolder.open(path), policy), table)
    if path.suffix == ".onnx" or _is_packed(path):
        if table is not None:
            raise ConfigError(f"{path} has its policy; give the run folder, or its stage1 model")
        return _of_onnx(path) if path.suffix == ".onnx" else _of_packed(path)
    return _of_stage(path, table)


def packed_size(segmenter: Segmenter, policy: Policy | None, what: str, keep: Path) -> Size:
    """Write a model that ships as a packed file (float32: safetensors) and count that file.

    Parameters
    ----------
    segmenter : converted, or float with folded batch norms; adapters merged.
    keep : where the file goes.
    """
    source = {"variant": segmenter.variant.name, "side": segmenter.variant.frame.side}
    if integer_layers(segmenter):
        save_packed(segmenter, keep, policy=policy, source=source)
    else:
        save_weights(segmenter, keep, {key: str(value) for key, value in source.items()})
    name = policy.name if policy is not None else "none"
    fp32 = _fp32_bytes(segmenter.variant.name, segmenter.variant.frame.side)
    return _counted(what, name, keep.stat().st_size, safetensors_entries(keep), fp32)


def shipped_bytes(segmenter: Segmenter) -> int:
    """Return the bytes of a model as it is deployed, without any words about its training.

    Parameters
    ----------
    segmenter : as ``load_model`` returns it; changed in place.
    """
    deployable(segmenter)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / MODEL_FILE
        if integer_layers(segmenter):
            save_packed(segmenter, file)
        else:
            write_tensors(file, segmenter.state_dict(), {})
        return file.stat().st_size


def weight_bytes(config: RunConfig) -> dict[str, int]:
    """Return the bytes of the whole model's parameters by precision, adapters merged.

    Float32, bfloat16, and the recipe's policy: integers for the weights that it quantizes,
    float32 for all else. Scales and file headers are not in it; ``size`` weighs real files.
    """
    segmenter = random_segmenter(config.model.variant, config.seed, side=config.model.side)
    whole = parameter_count(segmenter)
    found = {"float32": 4 * whole, "bfloat16": 2 * whole}
    policy = load_policy(config.quantize.policy)
    if not policy.rows:
        return found
    fold_batch_norms(segmenter)
    parameters = dict(segmenter.named_parameters())
    saved = 0.0
    for name, numerics in policy.with_options(config.quantize).assign(segmenter).items():
        if numerics.weight is not None:
            weight = parameters[name if name in parameters else f"{name}.weight"]
            saved += weight.numel() * (4 - numerics.weight.bits / 8)
    return {
        **found,
        f"policy {config.quantize.policy}": round(4 * parameter_count(segmenter) - saved),
    }


def parameter_count(module: nn.Module) -> int:
    """Return how many parameters a module has."""
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def quantize_on_phantom(
    segmenter: Segmenter,
    policy: Policy,
    branch_rank: int = 0,
    options: QuantizeConfig | None = None,
) -> Segmenter:
    """Quantize a float model in place by what it sees on one phantom, and return it.

    Every layer gets the scales that it would have after a calibration, with other values: the
    same bytes, another accuracy. For counting only.

    Parameters
    ----------
    branch_rank : of empty branches for the layers that ``quantize.compensate`` would give some.
    options : of quantization, the recipe's.
    """
    fold_batch_norms(segmenter)
    if not policy.rows:
        return segmenter.eval()
    prepare(segmenter, policy, options)
    observe(segmenter)
    made = phantom(0)
    image, frame_map = image_to_model(made.image, segmenter.variant.frame)
    drawn = mask_box_inclusive(made.masks["left_lung"])[None]
    box = boxes_to_model(drawn, frame_map).astype(np.float32)
    segmenter.eval()(torch.from_numpy(image)[None], torch.from_numpy(box)[None])
    if branch_rank:
        layers = compensable(segmenter, QuantizeConfig(compensate="loftq"))
        ranks = {n: min(branch_rank, *x.effective_weight().shape) for n, x in layers.items()}
        insert_branches(segmenter, ranks, policy.name)
    freeze(segmenter)
    convert(segmenter)
    return segmenter


def safetensors_entries(path: Path) -> Iterator[Entry]:
    """Yield (part, precision, bytes) of each tensor of a safetensors file, from its header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        start, end = tensor["data_offsets"]
        precision = _SAFETENSORS.get(tensor["dtype"], tensor["dtype"])
        yield _part(name), _kind(name, precision), end - start


def onnx_entries(path: Path) -> Iterator[Entry]:
    """Yield (part, precision, bytes) of each initializer of an ONNX file.

    Raises
    ------
    CheckpointError
        If the file is not ONNX.
    """
    import onnx

    try:
        model = onnx.load(path)
    # protobuf's own error class moves between its versions.
    except Exception as error:
        raise CheckpointError(f"{path} is not an ONNX model ({error})") from error
    for tensor in (one for graph in all_graphs(model.graph) for one in graph.initializer):
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        precision = _ONNX.get(kind, kind)
        part = _part(tensor.name) if "." in tensor.name else DESCRIPTION
        yield part, _kind(tensor.name, precision), len(tensor.raw_data)


def _of_stage(file: Path, policy: Policy | None) -> Size:
    segmenter, description = load_model(file)
    if quantized_layers(segmenter):
        if policy is not None:
            raise ConfigError(
                f"{file} is quantized already; give the run folder, or its stage1 model"
            )
        policy = parse_policy(description["quantize"]["policy"], str(file))
        deployable(segmenter)
    else:
        deployable(segmenter)
        if policy is not None:
            quantize_on_phantom(segmenter, policy)
    with tempfile.TemporaryDirectory() as folder:
        what = f"{file.parent.name}/{file.name}, packed"
        return packed_size(segmenter, policy, what, Path(folder) / MODEL_FILE)


def _of_packed(path: Path) -> Size:
    header = read_header(path)
    name = str(header.source.get("variant"))
    fp32 = _fp32_bytes(name, header.source.get("side")) if name in VARIANTS else None
    policy = None if header.policy is None else header.policy.name
    return _counted(path.name, policy, path.stat().st_size, safetensors_entries(path), fp32)


def _of_onnx(path: Path) -> Size:
    session = open_session(path, threads=1)
    metadata = ModelMetadata.from_props(session.get_modelmeta().custom_metadata_map, str(path))
    del session
    # Half of a model has no float32 file of its own to be held against.
    whole = metadata.part == "whole" and metadata.variant in VARIANTS
    fp32 = _fp32_bytes(metadata.variant, metadata.frame.side) if whole else None
    total = path.stat().st_size
    return _counted(path.name, metadata.policy, total, onnx_entries(path), fp32)


def _counted(
    what: str, policy: str | None, total: int, entries: Iterable[Entry], fp32: int | None
) -> Size:
    parts: dict[str, dict[str, int]] = {}
    for part, precision, size in entries:
        bytes_of = parts.setdefault(part, {})
        bytes_of[precision] = bytes_of.get(precision, 0) + size
    counted = sum(sum(bytes_of.values()) for bytes_of in parts.values())
    rest = parts.setdefault(DESCRIPTION, {})
    rest["text"] = rest.get("text", 0) + total - counted
    return Size(what, policy, parts, total, fp32)


def _fp32_bytes(variant: str, side: int | None) -> int:
    """Return the size of a variant's float32 file, written for the purpose."""
    segmenter = random_segmenter(variant, seed=0, side=side)
    fold_batch_norms(segmenter)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / MODEL_FILE
        save_weights(segmenter, file, {"variant": variant, "side": str(side)})
        return file.stat().st_size


def _stage_file(run: RunFolder, policy: str | None) -> Path:
    wanted = ("stage1",) if policy is not None else STAGES
    done = [stage for stage in wanted if run.finished(stage)]
    if not done:
        raise CheckpointError(
            f"{run.path} has no finished {' or '.join(wanted)}; run `adalora-qat train` to its end"
        )
    return run.stage(done[0]) / MODEL_FILE


def _is_packed(path: Path) -> bool:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give a run folder or a model file")
    try:
        read_header(path)
    except CheckpointError:
        return False
    return True


def _part(name: str) -> str:
    return name.partition(".")[0]


def _kind(name: str, precision: str) -> str:
    return "scales" if precision in ("FP32", "FP16") and _SCALE.search(name) else precision
