"""Exponential moving average of the parameters that train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """θ̄ ← d·θ̄ + (1 − d)·θ after each step: Polyak and Juditsky (1992), in its exponential form.

    Parameters
    ----------
    parameters : name → parameter; the average begins where they stand.
    decay : d, below 1. In the first steps it is (1 + n)/(10 + n), so that the beginning is
        forgotten as fast as it should be.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.tensors: dict[str, Tensor] = {}
        self.restart(parameters)

    def restart(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Forget the past: after a pruning it holds triplets that are gone."""
        self.steps = 0
        self.tensors = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Take in the parameters after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        now = [parameters[name].detach() for name in self.tensors]
        torch._foreach_lerp_(list(self.tensors.values()), now, 1 - decay)

    @contextmanager
    def in_place_of(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Let the model run with the averages inside the context."""
        self._exchange(parameters)
        try:
            yield
        finally:
            self._exchange(parameters)

    @torch.no_grad()
    def _exchange(self, parameters: Mapping[str, nn.Parameter]) -> None:
        for name, average in self.tensors.items():
            held = parameters[name].detach().clone()
            parameters[name].copy_(average)
            average.copy_(held)
