"""Low-rank compensation: a branch per layer, started from the quantization error.

W ≈ Q(W') + P diag(Λ) Q by turns (LoftQ, Li et al. 2023, Algorithm 1): quantize what the branch
does not hold, then let the branch hold the best rank-R part of what quantization lost.
``lqer`` weighs an error by the size of the input it meets, column by column: min ‖E diag(s)‖
with s the root mean square of each input (LQER, Zhang et al. 2024; the diagonal weight is the
one that QERA, Zhang et al. 2025, derives). W is the effective weight W + ΔW of an adapted layer:
its adapter is merged before, and the branch takes its place.

Legend: R rank; ``out`` and ``in`` features; T iterations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from adalora_qat.adapt.adapted_linear import AdaptedLinear
from adalora_qat.config import QuantizeConfig
from adalora_qat.errors import CheckpointError, ConfigError
from adalora_qat.quantize.branch import BranchedLinear
from adalora_qat.quantize.layers import FakeQuantLayer
from adalora_qat.quantize.numerics import (
    Numerics,
    as_stored,
    broadcast_scale,
    scale_of,
    to_integers,
)
from adalora_qat.quantize.observers import weight_threshold
from adalora_qat.quantize.prepare import quantized_layers

# An input that was nearly always zero must not make a column's error free.
_LEAST_SHARE = 1e-3


@dataclass(frozen=True)
class Compensated:
    """What compensation did to one layer.

    Attributes
    ----------
    before, after : ‖W − shipped‖ / ‖W‖ without and with the branch, in the norm that was used.
    bytes : that the branch takes in the shipped file.
    """

    name: str
    rank: int
    before: float
    after: float
    bytes: int


@torch.no_grad()
def compensate(
    model: nn.Module, config: QuantizeConfig, moments: Mapping[str, Tensor] | None = None
) -> list[Compensated]:
    """Give the few-bit linear layers of a prepared model branches, in place, before ``freeze``.

    Compensated are the layers whose weights have at most ``compensate_bits`` bits and whose
    names match ``compensate_targets``. With ``compensate: none`` nothing happens.

    Parameters
    ----------
    moments : name → (in,) mean square of each input, from ``watching_inputs``; for ``lqer``.

    Raises
    ------
    ConfigError
        If the model is not prepared, no layer qualifies, or ``lqer`` lacks the moments.
    """
    if config.compensate == "none":
        return []
    layers = compensable(model, config)
    done = []
    for name, layer in layers.items():
        columns = None
        if config.compensate == "lqer":
            columns = column_weights(name, moments or {})
        done.append(_compensate_layer(layer, config, columns))
    return done


def compensable(model: nn.Module, config: QuantizeConfig) -> dict[str, FakeQuantLayer]:
    """Return the prepared layers that ``compensate`` gives branches, by name.

    Raises
    ------
    ConfigError
        If there is none.
    """
    layers = {
        name: layer
        for name, layer in quantized_layers(model).items()
        if isinstance(layer, FakeQuantLayer)
        and layer.operator.kind == "linear"
        and layer.weight_quantizer.numerics.bits <= config.compensate_bits
        and any(fnmatchcase(name, pattern) for pattern in config.compensate_targets)
    }
    if not layers:
        raise ConfigError(
            f"quantize.compensate={config.compensate} finds no linear layer of at most "
            f"{config.compensate_bits} bits named like {', '.join(config.compensate_targets)}; "
            "choose a policy such as w4a8, or compensate=none"
        )
    return layers


@contextmanager
def watching_inputs(layers: Mapping[str, FakeQuantLayer]) -> Iterator[dict[str, Tensor]]:
    """Yield a dictionary that fills with the mean square of each input, (in,), on leaving."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    moments: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).to(torch.float64)
            sums[name] = sums.get(name, torch.zeros_like(rows[0])) + rows.square().sum(0)
            counts[name] = counts.get(name, 0) + len(rows)

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()
        moments.update({name: total / counts[name] for name, total in sums.items()})


def column_weights(name: str, moments: Mapping[str, Tensor]) -> Tensor | None:
    """Return how much an error in each column of a layer's weight counts.

    Parameters
    ----------
    name : of the layer.
    moments : layer → (in,) mean square of each input, from ``watching_inputs``.

    Returns
    -------
    (in,) float32, the root mean square of each input, scaled to mean square 1 and kept above a
    thousandth; None if the layer's input was never seen or always zero.

    Raises
    ------
    ConfigError
        If nothing at all was watched.
    """
    if not moments:
        raise ConfigError("compensate=lqer needs the inputs' moments: calibrate while watching")
    if name not in moments:
        return None
    mean = moments[name].mean()
    if not bool(mean > 0):
        return None
    return (moments[name] / mean).clamp_min(_LEAST_SHARE**2).sqrt().to(torch.float32)


@torch.no_grad()
def factorise(
    weight: Tensor, numerics: Numerics, rank: int, iterations: int, columns: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], tuple[float, float]]:
    """Split a weight into what is quantized and a low-rank branch (LoftQ, Algorithm 1).

    Parameters
    ----------
    weight : W (out, in).
    numerics : of the integers.
    rank : R of the branch, at most the smaller side of the weight.
    iterations : T ≥ 1, turns of quantizing the rest and refitting the branch.
    columns : (in,) weight of an error in each column; all alike if None.

    Returns
    -------
    The float32 master W' of the integers; the branch's P (out, R), Λ (R,) and Q (R, in), rows
    of unit length; and the relative error without and with the branch. Of the T iterations the
    one with the least error is taken: the turns need not fall for ever.
    """
    weight = weight.to(torch.float32)
    columns = torch.ones_like(weight[0]) if columns is None else columns
    size = float((weight * columns).norm()) or 1.0
    without = float(((weight - quantized(weight, numerics)) * columns).norm()) / size
    low, best, least = torch.zeros_like(weight), None, float("inf")
    for _ in range(iterations):
        master = weight - low
        residual = weight - quantized(master, numerics)
        factors = _leading(residual, rank, columns)
        low = (factors[0] * factors[1]) @ factors[2]
        error = float(((residual - low) * columns).norm()) / size
        if error < least:
            best, least = (master, factors), error
    if best is None:
        raise ConfigError(f"quantize.compensate_iterations={iterations} must be at least 1")
    return *best, (without, least)


def quantized(weight: Tensor, numerics: Numerics) -> Tensor:
    """Return a linear layer's weight (out, in) rounded as ``freeze`` will round it, float32.

    Parameters
    ----------
    weight : (out, in).
    numerics : of the weight.
    """
    scale = as_stored(scale_of(weight_threshold(weight, numerics, 0), numerics.limit), numerics)
    spread = broadcast_scale(scale, weight.shape, numerics.group_size, 0)
    return to_integers(weight, spread, numerics.limit) * spread


def branches(model: nn.Module) -> dict[str, int]:
    """Return layer → rank of the branches in a prepared model."""
    return {
        name: layer.layer.rank
        for name, layer in quantized_layers(model).items()
        if isinstance(layer, FakeQuantLayer) and isinstance(layer.layer, BranchedLinear)
    }


def insert_branches(model: nn.Module, ranks: Mapping[str, int], origin: str) -> None:
    """Give a prepared model empty branches, to be filled by a state dict.

    Raises
    ------
    CheckpointError
        If a name is no quantized linear layer of the model; ``origin`` says whose it is.
    """
    layers = quantized_layers(model)
    for name, rank in ranks.items():
        layer = layers.get(name)
        if not isinstance(layer, FakeQuantLayer) or layer.operator.kind != "linear":
            raise CheckpointError(f"{origin}: the model has no quantized linear layer {name}")
        layer.layer = BranchedLinear.of_shape(_plain(layer), rank)


def _compensate_layer(
    layer: FakeQuantLayer, config: QuantizeConfig, columns: Tensor | None
) -> Compensated:
    weight, numerics = layer.effective_weight().detach(), layer.weight_quantizer.numerics
    rank = min(config.compensate_rank, *weight.shape)
    master, factors, (before, after) = factorise(
        weight, numerics, rank, config.compensate_iterations, columns
    )
    branch = BranchedLinear.from_factors(master, layer.bias, *factors)
    layer.layer = branch.train(layer.training)
    return Compensated(layer.name, rank, before, after, 2 * rank * sum(weight.shape))


def _leading(matrix: Tensor, rank: int, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rank-R part nearest to a matrix with weighted columns, as P, Λ, Q.

    P and Q have columns and rows of unit length. By the eigenvectors of the smaller Gram matrix,
    which takes a fraction of the time of a singular value decomposition.
    """
    weighted = (matrix * columns).to(torch.float64)
    if len(weighted) <= weighted.shape[1]:
        left = _largest_eigenvectors(weighted @ weighted.T, rank)
        right = left.T @ weighted
    else:
        right = _largest_eigenvectors(weighted.T @ weighted, rank).T
        left = weighted @ right.T
    right = right / columns
    lengths = left.norm(dim=0), right.norm(dim=1)
    # A direction of length zero (a matrix of lower rank) stays zero.
    left, right = left / _positive(lengths[0]), right / _positive(lengths[1])[:, None]
    values = lengths[0] * lengths[1]
    return left.to(torch.float32), values.to(torch.float32), right.to(torch.float32)


def _largest_eigenvectors(gram: Tensor, rank: int) -> Tensor:
    """Return the eigenvectors of the R largest eigenvalues, (n, R), largest first."""
    vectors: Tensor = torch.linalg.eigh(gram).eigenvectors
    return vectors[:, -rank:].flip(1)


def _positive(lengths: Tensor) -> Tensor:
    return torch.where(lengths > 0, lengths, torch.ones_like(lengths))


def _plain(layer: FakeQuantLayer) -> nn.Linear:
    wrapped = layer.layer
    if isinstance(wrapped, nn.Linear):
        return wrapped
    if not isinstance(wrapped, AdaptedLinear):
        raise CheckpointError(f"{layer.name} is not a linear layer")
    return wrapped.to_linear()
