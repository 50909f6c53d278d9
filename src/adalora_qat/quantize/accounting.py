"""What quantization does to a model, in numbers: bytes, rounding errors, how far Λ moved.

Everything is counted from the model at hand. Results are plain values and NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from adalora_qat.adapt.svd_linear import SVDLinear
from adalora_qat.errors import ConfigError
from adalora_qat.quantize.branch import STORED
from adalora_qat.quantize.convert import DequantizedParameter, QuantizedLayer
from adalora_qat.quantize.fake_quant import integers_of
from adalora_qat.quantize.layers import FakeQuantLayer, FakeQuantParameter
from adalora_qat.quantize.numerics import LayerNumerics, Numerics
from adalora_qat.quantize.policy import Policy, RowKind, quantizable
from adalora_qat.quantize.prepare import layer_parameter, quantized_layers

_FLOATS = {torch.float32: "FP32", torch.float16: "FP16", torch.bfloat16: "BF16"}
_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class LayerLine:
    """One line of the table that ``params --policy`` prints."""

    name: str
    kind: RowKind
    shape: tuple[int, ...]
    parameters: int
    numerics: LayerNumerics


@dataclass(frozen=True)
class PartBytes:
    """The storage of one part of a model.

    Attributes
    ----------
    part : name of the top-level child, or "" for the model's own tensors.
    parameters : weights and biases; scales are counted in bytes, not as parameters.
    bytes : precision ("INT8", "INT4", "INT32", "FP32", "scales", …) → bytes in a packed file.
    """

    part: str
    parameters: int
    bytes: dict[str, int]

    @property
    def total(self) -> int:
        """All bytes of the part."""
        return sum(self.bytes.values())

    @property
    def float_bytes(self) -> int:
        """What the same parameters take as float32."""
        return self.parameters * _FLOAT32_BYTES


@dataclass(frozen=True)
class WeightError:
    """The float32 weights of one layer and the values that ship (paper, Fig. 3).

    Attributes
    ----------
    weight, shipped : (M,) float32: before, and after dequantization.
    """

    name: str
    numerics: Numerics
    weight: NDArray[np.float32]
    shipped: NDArray[np.float32]

    @property
    def error(self) -> NDArray[np.float32]:
        """Float32 minus dequantized, (M,)."""
        return self.weight - self.shipped

    def statistics(self) -> dict[str, float]:
        """Return mean, std and largest magnitude of the error, SNR in dB, and correlation."""
        error, weight = self.error.astype(np.float64), self.weight.astype(np.float64)
        noise, signal = float(np.square(error).sum()), float(np.square(weight).sum())
        spread = float(weight.std()) * float(self.shipped.std())
        return {
            "mean": float(error.mean()),
            "std": float(error.std()),
            "largest": float(np.abs(error).max()),
            "snr_db": 10 * float(np.log10(signal / noise)) if noise and signal else float("inf"),
            # A constant tensor correlates with nothing; one that is kept exactly, with itself.
            "correlation": float(np.corrcoef(weight, self.shipped)[0, 1]) if spread else 1.0,
        }


@dataclass(frozen=True)
class LambdaMovement:
    """How far the singular values Λ of one adapter moved.

    Attributes
    ----------
    largest, mean : of |Λ_after − Λ_before|.
    relative : ‖Λ_after − Λ_before‖ / ‖Λ_before‖, 0 if nothing moved.
    """

    name: str
    rank: int
    largest: float
    mean: float
    relative: float


def policy_table(model: nn.Module, policy: Policy) -> list[LayerLine]:
    """Return what ``policy`` does to each layer of a float model, in module order."""
    kinds = dict(quantizable(model))
    lines = []
    for name, numerics in policy.assign(model).items():
        if kinds[name] == "parameter":
            weight, count = model.get_parameter(name), model.get_parameter(name).numel()
        else:
            module = model.get_submodule(name)
            weight = module.get_parameter("weight")
            count = sum(parameter.numel() for parameter in module.parameters())
        lines.append(LayerLine(name, kinds[name], tuple(weight.shape), count, numerics))
    return lines


def bytes_by_part(model: nn.Module) -> list[PartBytes]:
    """Return the bytes of each part of a float, prepared or converted model, whole model.

    For a prepared model this is what ``convert`` and ``save_packed`` will write, adapters of
    quantized layers merged. File headers are not counted.
    """
    parts: dict[str, PartBytes] = {}
    children = [("", model), *model.named_children()]
    for part, module in children:
        parameters, stored = 0, dict[str, int]()
        entries = _own_tensors(module) if not part else _stored(module)
        for precision, size, count in entries:
            stored[precision] = stored.get(precision, 0) + size
            parameters += count
        if stored:
            parts[part] = PartBytes(part, parameters, stored)
    return list(parts.values())


@torch.no_grad()
def quantization_error(model: nn.Module, sample: int | None = None) -> list[WeightError]:
    """Return float32 weight against dequantized weight of each quantized layer.

    Parameters
    ----------
    model : prepared and frozen; float32 masters are gone after ``convert``.
    sample : keep at most this many weights of each layer, evenly spaced; None keeps all.

    Raises
    ------
    ConfigError
        If the scales are not frozen.
    """
    errors = []
    for name, layer in quantized_layers(model).items():
        quantizer = layer if isinstance(layer, FakeQuantParameter) else layer.weight_quantizer
        if not quantizer.active:
            raise ConfigError(f"{name} has no scale yet: observe and freeze first")
        if isinstance(layer, FakeQuantParameter):
            weight = layer_parameter(model, name)
        else:
            weight = layer.effective_weight()
        shipped = integers_of(weight, quantizer) * quantizer.broadcast(weight)
        stride = 1 if sample is None else max(1, -(-weight.numel() // sample))
        before, after = (t.flatten()[::stride].float().cpu().numpy() for t in (weight, shipped))
        errors.append(WeightError(name, quantizer.numerics, before, after))
    return errors


def lambdas(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all adapters' Λ by layer name, the same before and after ``prepare``."""
    wrapped = {
        layer.layer: name
        for name, layer in quantized_layers(model).items()
        if isinstance(layer, FakeQuantLayer)
    }
    return {
        wrapped.get(module, name): module.lam.detach().cpu().clone()
        for name, module in model.named_modules()
        if isinstance(module, SVDLinear)
    }


def lambda_movement(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> list[LambdaMovement]:
    """Return how far each Λ moved between two results of ``lambdas``.

    Raises
    ------
    ConfigError
        If the two do not hold the same adapters at the same ranks.
    """
    shapes = [{name: value.shape for name, value in side.items()} for side in (before, after)]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            "Λ before and after are of different adapters or ranks: compare snapshots of one "
            "model without pruning in between"
        )
    movements = []
    for name, start in before.items():
        step = after[name].double() - start.double()
        length = float(start.double().norm())
        moved = float(step.norm())
        largest = float(step.abs().max()) if step.numel() else 0.0
        mean = float(step.abs().mean()) if step.numel() else 0.0
        relative = moved / length if length else (float("inf") if moved else 0.0)
        movements.append(LambdaMovement(name, step.numel(), largest, mean, relative))
    return movements


def _stored(module: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Yield (precision, bytes, parameters) of everything below a module."""
    if isinstance(module, FakeQuantLayer):
        yield from _of_prepared(module)
        return
    if isinstance(module, QuantizedLayer):
        yield from _of_converted(module)
        return
    if isinstance(module, ParametrizationList):
        quantizer = module[0]
        if isinstance(quantizer, FakeQuantParameter | DequantizedParameter):
            yield from _of_parameter(module, quantizer)
            return
    yield from _own_tensors(module)
    for child in module.children():
        yield from _stored(child)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, int, int]]:
    buffers = {
        name: value
        for name, value in module._buffers.items()
        if name not in module._non_persistent_buffers_set
    }
    for tensors, counts in ((module._parameters, True), (buffers, False)):
        for tensor in tensors.values():
            if tensor is not None:
                precision = _FLOATS.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
                yield precision, tensor.nbytes, tensor.numel() if counts else 0


def _of_prepared(layer: FakeQuantLayer) -> Iterator[tuple[str, int, int]]:
    weight = layer.layer.get_parameter("weight")
    yield _integers(weight.numel(), layer.weight_quantizer.numerics)
    scales = layer.weight_quantizer.scale.numel()
    # Before calibration, every input that the policy quantizes is counted as seen.
    sums = layer.integer_input or (
        layer.input_quantizer is not None and not layer.weight_quantizer.active
    )
    scales += int(sums)
    sums = sums and layer.weight_quantizer.numerics.granularity != "group"
    size = scales * _FLOAT32_BYTES
    if layer.weight_quantizer.numerics.scale_dtype == "float16":
        size -= layer.weight_quantizer.scale.numel() * (_FLOAT32_BYTES - STORED.itemsize)
    yield "scales", size, 0
    if layer.branch is not None and layer.branch.rank:
        values = layer.branch.P.numel() + layer.branch.Q.numel()
        yield _FLOATS[STORED], values * STORED.itemsize, 0
    if layer.bias is not None:
        yield "INT32" if sums else "FP32", layer.bias.numel() * _FLOAT32_BYTES, layer.bias.numel()


def _of_converted(layer: QuantizedLayer) -> Iterator[tuple[str, int, int]]:
    yield _integers(layer.weight_int8.numel(), layer.numerics.weight or Numerics())
    inputs = _FLOAT32_BYTES if layer.input_scale is not None else 0
    yield "scales", layer.weight_scale.nbytes + inputs, 0
    for factor in (layer.branch_out, layer.branch_in):
        if factor is not None:
            yield _FLOATS[factor.dtype], factor.nbytes, 0
    for precision, bias in (("INT32", layer.bias_int32), ("FP32", layer.bias)):
        if bias is not None:
            yield precision, bias.nbytes, bias.numel()


def _of_parameter(
    stored: ParametrizationList, quantizer: FakeQuantParameter | DequantizedParameter
) -> Iterator[tuple[str, int, int]]:
    numerics = quantizer.numerics
    weight = numerics.weight if isinstance(numerics, LayerNumerics) else numerics
    original = stored.original
    if isinstance(original, Tensor):
        yield _integers(original.numel(), weight or Numerics())
    yield "scales", quantizer.scale.numel() * _FLOAT32_BYTES, 0


def _integers(count: int, numerics: Numerics) -> tuple[str, int, int]:
    if numerics.bits <= 4:
        return "INT4", -(-count // 2), count
    return "INT8", count, count
