"""Folding batch norms into the convolutions before them, once they no longer change."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from adalora_qat.errors import ConfigError

Convolution = nn.Conv2d | nn.ConvTranspose2d


@torch.no_grad()
def fold_batch_norms(model: nn.Module) -> list[str]:
    """Fold every batch norm that follows a convolution, in place; return the folded names.

    Found are neighbours in an ``nn.Sequential`` and the children ``c`` and ``bn`` of one
    module (TinyViT). The norm becomes an identity, so a folded model keeps its module names.
    Each norm is taken with its running statistics, as in ``eval``: a norm that is frozen
    stays frozen. In ``eval`` the outputs are equal to rounding. Calling it again does nothing.

    Raises
    ------
    ConfigError
        For a batch norm without running statistics.
    """
    folded = []
    for name, module in model.named_modules():
        for before, after in _neighbours(module):
            convolution, norm = getattr(module, before), getattr(module, after)
            if isinstance(convolution, Convolution) and isinstance(norm, nn.BatchNorm2d):
                path = f"{name}.{after}".lstrip(".")
                _fold(path, convolution, norm)
                setattr(module, after, nn.Identity())
                folded.append(path)
    return folded


def _neighbours(module: nn.Module) -> list[tuple[str, str]]:
    if isinstance(module, nn.Sequential):
        names = list(module._modules)
        return list(pairwise(names))
    children = dict(module.named_children())
    return [("c", "bn")] if {"c", "bn"} <= children.keys() else []


def _fold(name: str, convolution: Convolution, norm: nn.BatchNorm2d) -> None:
    if norm.running_mean is None or norm.running_var is None:
        raise ConfigError(
            f"{name}: a batch norm without running statistics depends on its batch and cannot "
            "be folded; keep statistics (track_running_stats=True)"
        )
    # float64: a variance near eps would otherwise cost digits twice, here and in the scale.
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gain = (variance + norm.eps).rsqrt() * _or(norm.weight, torch.ones_like(mean))
    axis = 1 if isinstance(convolution, nn.ConvTranspose2d) else 0
    shape = [-1 if i == axis else 1 for i in range(4)]
    weight = convolution.weight
    if axis == 1 and convolution.groups > 1:
        raise ConfigError(f"{name}: folding into a grouped transposed convolution is not supported")
    bias = (_or(convolution.bias, torch.zeros_like(mean)) - mean) * gain
    bias += _or(norm.bias, torch.zeros_like(mean))
    weight.copy_((weight.double() * gain.reshape(shape)).to(weight.dtype))
    convolution.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=weight.requires_grad)


def _or(tensor: Tensor | None, default: Tensor) -> Tensor:
    return default if tensor is None else tensor.double()
