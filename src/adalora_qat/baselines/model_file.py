"""A trained baseline as one file: weights and, in the header, what they are weights of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from adalora_qat.baselines.networks import BaselineNet, title_of
from adalora_qat.checkpoint import read_tensors, write_tensors
from adalora_qat.config import BaselinesConfig, RunConfig
from adalora_qat.errors import CheckpointError
from adalora_qat.model.weights import WeightsOrigin, load_strictly


@dataclass(frozen=True)
class BaselineFile:
    """What a baseline's file says of itself.

    Attributes
    ----------
    config : architecture, size, input.
    origin : where its training started, ``random`` or the ImageNet weights.
    more : what else the architecture needs to be built, such as nnU-Net's plan.
    """

    config: BaselinesConfig
    origin: WeightsOrigin
    more: Mapping[str, Any]

    @property
    def title(self) -> str:
        """What it is called in tables."""
        return title_of(self.config)


def save_baseline(
    path: Path,
    tensors: Mapping[str, Tensor],
    config: RunConfig,
    origin: WeightsOrigin,
    more: Mapping[str, Any] | None = None,
) -> str:
    """Write the weights of a baseline with its description; return the file's SHA-256."""
    if config.baselines is None:
        raise ValueError(f"{config.name} is no baseline")
    header = {
        "baseline": config.baselines.model_dump(mode="json"),
        "target": config.data.prompt.targets[0],
        "origin": vars(origin),
        "more": dict(more or {}),
    }
    return write_tensors(path, tensors, header)


def described(path: Path) -> BaselineFile | None:
    """Return what a file says of itself, or None if it holds no baseline; reads no weights."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("adalora_qat", "{}"))
    except (SafetensorError, OSError, ValueError):
        return None
    return _parsed(header) if "baseline" in header else None


def read_baseline(path: Path) -> tuple[dict[str, Tensor], BaselineFile]:
    """Read the weights and the description of a baseline.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or holds no baseline.
    """
    tensors, header = read_tensors(path)
    if "baseline" not in header:
        raise CheckpointError(f"{path} holds no baseline; evaluate it as any other model")
    return tensors, _parsed(header)


def load_net(path: Path) -> tuple[BaselineNet, BaselineFile]:
    """Load a trained network, in eval mode, strictly filled.

    Raises
    ------
    CheckpointError
        If the file does not fit its own description.
    """
    tensors, said = read_baseline(path)
    net = BaselineNet(said.config)
    load_strictly(net, tensors, str(path))
    return net.eval(), said


def _parsed(header: Mapping[str, Any]) -> BaselineFile:
    return BaselineFile(
        BaselinesConfig.model_validate(header["baseline"]),
        WeightsOrigin(**header["origin"]),
        header["more"],
    )
