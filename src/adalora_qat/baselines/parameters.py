"""Table 2's columns for the baselines, counted from the networks themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from adalora_qat.baselines.networks import BaselineNet, size_of
from adalora_qat.baselines.nnunet import planned_network
from adalora_qat.config import BaselinesConfig, RunConfig
from adalora_qat.errors import ConfigError

# What batch norms keep is state, not parameters.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def count_baseline(config: RunConfig) -> dict[str, Any]:
    """Count a baseline's parameters, all of which train; as ``study.parameters`` counts.

    Raises
    ------
    ConfigError
        If the recipe is of no baseline.
    UserError
        If the architecture's library is not installed.
    """
    baseline = config.baselines
    if baseline is None:
        raise ConfigError(f"{config.name} is no baseline: its recipe lacks baselines")
    if baseline.architecture == "nnunet":
        whole = backbone = _size(planned_network(baseline.side))
    else:
        net = BaselineNet(baseline)
        whole, backbone = _size(net), _size(net.image_encoder)
    parts = {"backbone": backbone, "rest": whole - backbone} if backbone < whole else {"all": whole}
    return {
        "parts": {
            name: dict.fromkeys(("total", "start", "pruned"), n) for name, n in parts.items()
        },
        "total": dict.fromkeys(("total", "start", "pruned"), whole),
        "percent": {"start": 100.0, "pruned": 100.0},
        "reduction": {"start": 1.0, "pruned": 1.0},
        "per_rank": 0,
        "bytes": {"float32": 4 * whole, "bfloat16": 2 * whole},
        "notes": _notes(baseline),
    }


def trained_size(path: Path) -> int:
    """Return how many parameters a baseline's file holds; reads no weights."""
    with safe_open(path, framework="pt") as file:
        shapes = {
            name: file.get_slice(name).get_shape()
            for name in file.keys()  # noqa: SIM118
            if name.rpartition(".")[2] not in _STATISTICS
        }
    total = 0
    for shape in shapes.values():
        size = 1
        for length in shape:
            size *= length
        total += size
    return total


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _notes(config: BaselinesConfig) -> list[str]:
    if config.architecture == "nnunet":
        return [f"its plan for square images of {config.side} px; a run's own follows its data"]
    # Counted with one class: 84,594,113 for B5, 41,036,865 for Xception-65.
    same = {"segformer": ("84.6 M", "b5"), "deeplabv3plus": ("41.0 M", "tu-xception65")}
    if config.architecture not in same:
        return []
    count, size = same[config.architecture]
    return [f"size {size_of(config)}; the paper names none, its {count} are those of size {size}"]
