"""How far the singular values Λ moved while a stage trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from adalora_qat.adapt.svd_linear import SVDLinear
from adalora_qat.errors import ConfigError
from adalora_qat.quantize.layers import FakeQuantLayer
from adalora_qat.quantize.prepare import quantized_layers


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
