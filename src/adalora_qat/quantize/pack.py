"""True INT8 and INT4 on disk: a whole converted model in one self-describing safetensors file.

The tensors are the converted model's state dict, int8 as bytes, 4-bit weights two to a byte
(key ``weight_int4``: the even element in the low nibble, two's complement). The metadata entry
``adalora_qat`` is JSON: policy, every quantized layer with its shape and numerics, where the
weights came from, and a SHA-256 over all tensors. Nothing in it is executed on loading.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from adalora_qat.errors import CheckpointError, ConfigError
from adalora_qat.files import atomic_write
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.quantize.convert import (
    DequantizedParameter,
    QuantizedLayer,
    integer_class,
    integer_layers,
    store_parameter,
)
from adalora_qat.quantize.numerics import LayerNumerics
from adalora_qat.quantize.operators import Kind, Operator, operator_of
from adalora_qat.quantize.policy import Policy
from adalora_qat.quantize.prepare import replace_modules

_KEY = "adalora_qat"
_FORMAT: Literal["adalora-qat packed model 1"] = "adalora-qat packed model 1"
_SHOWN = 5


class PackedLayer(BaseModel):
    """One quantized layer, or bare parameter, as the header describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Kind | Literal["parameter"]
    shape: tuple[int, ...]
    numerics: LayerNumerics
    integer_input: bool = False
    has_bias: bool = False
    geometry: dict[str, Any] | None = None


class PackedHeader(BaseModel):
    """What a packed file says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["adalora-qat packed model 1"] = _FORMAT
    policy: Policy | None = None
    source: dict[str, Any] = {}
    """The caller's own facts: model variant, hashes of the source weights, run, seed."""
    batch_norms_folded: bool
    layers: tuple[PackedLayer, ...]
    branches: dict[str, int] = {}
    """Layer → rank of its low-rank branch, for the layers that have one."""
    sha256: str
    """Over all tensors as stored: sorted by key, each with its dtype, shape and bytes."""


def save_packed(
    model: nn.Module,
    path: Path,
    *,
    policy: Policy | None = None,
    source: Mapping[str, Any] | None = None,
) -> PackedHeader:
    """Write a converted model atomically and return its header.

    Parameters
    ----------
    source : plain JSON values, kept word for word: model variant, source hashes, run.

    Raises
    ------
    ConfigError
        If the model is not converted.
    UserError
        If the file cannot be written.
    """
    layers = integer_layers(model)
    if not layers:
        raise ConfigError("nothing to pack: the model holds no integer layer; call convert first")
    tensors = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    for layer in layers.values():
        _pack_nibbles(model, layer, tensors)
    # A copy each: safetensors refuses tensors that share memory.
    tensors = {key: value.contiguous().clone() for key, value in tensors.items()}
    header = PackedHeader(
        policy=policy,
        source=dict(source or {}),
        batch_norms_folded=not _has_batch_norms(model),
        layers=tuple(_describe(model, layer) for layer in layers.values()),
        branches={
            layer.name: layer.branch_rank
            for layer in layers.values()
            if isinstance(layer, QuantizedLayer) and layer.branch_rank
        },
        sha256=tensor_hash(tensors),
    )
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={_KEY: header.model_dump_json()})
    return header


def read_header(path: Path) -> PackedHeader:
    """Read what a packed file says of itself, without its tensors.

    Raises
    ------
    CheckpointError
        If the file is missing, is not safetensors, or is not a packed model.
    """
    return _open(path)[0]


def load_packed(path: Path, skeleton: nn.Module) -> nn.Module:
    """Turn a float model of the same architecture into the packed integer model, in place.

    Parameters
    ----------
    skeleton : freshly built, any weights, batch norms folded or not, without adapters unless
        the packed model kept them. Its weights are all replaced.

    Returns
    -------
    The skeleton, in ``eval``; computes bit for bit what the model that was packed computes.

    Raises
    ------
    CheckpointError
        If the file is damaged (hash), or does not fit the skeleton; says where.
    """
    header, tensors = _open(path, tensors=True)
    if tensor_hash(tensors) != header.sha256:
        raise CheckpointError(
            f"{path} is damaged: its tensors do not have the hash in its header; "
            "copy it again from where it came"
        )
    if header.batch_norms_folded:
        fold_batch_norms(skeleton)
    replacements: dict[nn.Module, nn.Module] = {}
    for layer in header.layers:
        if layer.kind == "parameter":
            _empty_parameter(path, skeleton, layer)
        else:
            old, new = _empty_layer(path, skeleton, layer, header.branches.get(layer.name, 0))
            replacements[old] = new
    replace_modules(skeleton, replacements)
    for layer in header.layers:
        _unpack_nibbles(skeleton, layer, tensors, path)
    _load_strictly(path, skeleton, tensors)
    return skeleton.eval()


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over tensors sorted by key, each with its dtype, shape and bytes."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        digest.update(json.dumps([key, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def pack_int4(integers: Tensor) -> Tensor:
    """Pack 4-bit integers two to a byte, the first one in the low nibble.

    Parameters
    ----------
    integers : int8 in [−8, 7], any shape; n of them.

    Returns
    -------
    (⌈n / 2⌉,) uint8.

    Raises
    ------
    ValueError
        If one does not fit into 4 bits.
    """
    flat = integers.reshape(-1)
    if flat.numel() and not bool(((flat >= -8) & (flat <= 7)).all()):
        raise ValueError("4-bit integers lie in [-8, 7]")
    padded = torch.nn.functional.pad(flat, (0, flat.numel() % 2))
    nibbles = (padded.to(torch.int16) & 0xF).to(torch.uint8)
    return nibbles[0::2] | (nibbles[1::2] << 4)


def unpack_int4(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the integers that ``pack_int4`` packed.

    Parameters
    ----------
    packed : (⌈n / 2⌉,) uint8.
    shape : of the n integers.

    Returns
    -------
    int8 in [−8, 7], of that shape.
    """
    nibbles = torch.stack([packed & 0xF, packed >> 4], dim=-1).reshape(-1).to(torch.int8)
    signed = torch.where(nibbles > 7, nibbles - 16, nibbles)
    return signed[: torch.Size(shape).numel()].reshape(shape)


def _keys(model: nn.Module, name: str) -> tuple[str, str]:
    """Return the state-dict keys of a layer's integers: as int8, and as packed 4-bit."""
    module = model.get_submodule(name) if _is_module(model, name) else None
    if isinstance(module, QuantizedLayer):
        return f"{name}.weight_int8", f"{name}.weight_int4"
    owner, _, leaf = name.rpartition(".")
    key = f"{owner}.parametrizations.{leaf}.original".lstrip(".")
    return key, f"{key}_int4"


def _is_module(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def _pack_nibbles(
    model: nn.Module, layer: QuantizedLayer | DequantizedParameter, tensors: dict[str, Tensor]
) -> None:
    if layer.numerics.weight is not None and layer.numerics.weight.bits <= 4:
        whole, packed = _keys(model, layer.name)
        tensors[packed] = pack_int4(tensors.pop(whole))


def _unpack_nibbles(
    model: nn.Module, layer: PackedLayer, tensors: dict[str, Tensor], path: Path
) -> None:
    """Put a layer's packed 4-bit weights back as int8 into ``tensors``, in place.

    Parameters
    ----------
    model, layer : where it stands, and what the header says of it.
    tensors : state-dict key → tensor; changed.
    path : for messages.
    """
    whole, packed = _keys(model, layer.name)
    if packed not in tensors:
        return
    stored = tensors.pop(packed)
    if stored.dtype != torch.uint8 or stored.numel() != -(-torch.Size(layer.shape).numel() // 2):
        raise CheckpointError(
            f"{path}: {packed} does not hold the {layer.shape} 4-bit weights that its header "
            "promises; pack the model again"
        )
    tensors[whole] = unpack_int4(stored, layer.shape)


def _describe(model: nn.Module, layer: QuantizedLayer | DequantizedParameter) -> PackedLayer:
    if isinstance(layer, QuantizedLayer):
        return PackedLayer(
            name=layer.name,
            kind=layer.operator.kind,
            shape=tuple(layer.weight_int8.shape),
            numerics=layer.numerics,
            integer_input=layer.input_scale is not None,
            has_bias=layer.float_bias() is not None,
            geometry=_geometry(layer.operator),
        )
    owner, _, leaf = layer.name.rpartition(".")
    shape = tuple(getattr(model.get_submodule(owner), leaf).shape)
    return PackedLayer(name=layer.name, kind="parameter", shape=shape, numerics=layer.numerics)


def _geometry(operator: Operator) -> dict[str, Any]:
    values = asdict(operator)
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def _empty_layer(
    path: Path, skeleton: nn.Module, layer: PackedLayer, branch_rank: int
) -> tuple[nn.Module, QuantizedLayer]:
    module = skeleton.get_submodule(layer.name) if _is_module(skeleton, layer.name) else None
    if module is None or layer.kind == "parameter":
        raise CheckpointError(
            f"{path}: the model has no layer {layer.name}; build the variant that was packed"
        )
    try:
        operator = operator_of(layer.name, module)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    weight = module.weight
    shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
    if shape != layer.shape or _geometry(operator) != layer.geometry:
        raise CheckpointError(
            f"{path}: {layer.name} is a {layer.kind} of {layer.shape} in the file and a "
            f"{operator.kind} of {shape} in the model (or has another stride or padding); "
            "build the variant that was packed"
        )
    empty = integer_class(layer.kind)(
        layer.name,
        operator,
        layer.numerics,
        layer.shape,
        integer_input=layer.integer_input,
        has_bias=layer.has_bias,
        branch_rank=branch_rank,
    )
    return module, empty


def _empty_parameter(path: Path, skeleton: nn.Module, layer: PackedLayer) -> None:
    owner, _, leaf = layer.name.rpartition(".")
    module = skeleton.get_submodule(owner) if _is_module(skeleton, owner) else None
    parameter = getattr(module, leaf, None)
    if not isinstance(parameter, Tensor) or tuple(parameter.shape) != layer.shape:
        raise CheckpointError(
            f"{path}: the model has no parameter {layer.name} of {layer.shape}; "
            "build the variant that was packed"
        )
    integers = torch.zeros(layer.shape, dtype=torch.int8)
    dequantized = DequantizedParameter(layer.name, layer.numerics, layer.shape)
    store_parameter(skeleton, layer.name, integers, dequantized)


def _load_strictly(path: Path, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    expected = model.state_dict()
    problems = [f"{key} is missing" for key in expected.keys() - tensors.keys()]
    problems += [f"{key} is not in the model" for key in tensors.keys() - expected.keys()]
    for key in expected.keys() & tensors.keys():
        want, got = expected[key], tensors[key]
        # load_state_dict would cast silently.
        if want.shape != got.shape or want.dtype != got.dtype:
            problems.append(
                f"{key} is {got.dtype} {tuple(got.shape)}, the model has "
                f"{want.dtype} {tuple(want.shape)}"
            )
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise CheckpointError(
            f"{path} does not fit the model: {'; '.join(sorted(problems)[:_SHOWN])}{more}; "
            "build the variant that was packed, with the adapters that it kept"
        )
    model.load_state_dict(dict(tensors), strict=True)


def _open(path: Path, *, tensors: bool = False) -> tuple[PackedHeader, dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"packed model {path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            loaded = {key: file.get_tensor(key) for key in file.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file ({error}); pickled checkpoints are never loaded"
        ) from error
    if text is None:
        raise CheckpointError(
            f"{path} is a safetensors file but not a packed model: it has no {_KEY!r} header"
        )
    try:
        return PackedHeader.model_validate_json(text), loaded
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: its header cannot be read ({error.error_count()} problems, the first: "
            f"{error.errors()[0]['msg']}); it was written by another version, or damaged"
        ) from error


def _has_batch_norms(model: nn.Module) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
