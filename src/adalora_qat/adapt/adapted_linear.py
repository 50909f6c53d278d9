"""A frozen linear layer with a trainable low-rank update ΔW: what every adapter shares.

Legend: R rank; ``out`` and ``in`` features of the layer; s the scaling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class AdaptedLinear(nn.Module):
    """A pretrained linear layer, frozen, to which a kind of adapter adds its ΔW.

    Attributes
    ----------
    weight, bias : (out, in) and (out,) or None, the pretrained layer; frozen.
    scaling : () FP32, s.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    scaling: Tensor

    def __init__(
        self, linear: nn.Linear, rank: int, scaling: float, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
        self.bias = None
        if linear.bias is not None:
            self.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        self._begin(rank, generator)
        device = self.weight.device
        self.register_buffer("scaling", torch.tensor(float(scaling), device=device))

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        rank: int,
        scaling: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Wrap a linear layer, sharing its weight.

        Parameters
        ----------
        linear : the pretrained layer, (out, in).
        rank : R.
        scaling : s.
        generator : draws the factors of ΔW, on the CPU; torch's own if None.

        Raises
        ------
        ConfigError
            If the rank does not fit the layer.
        """
        return cls(linear, rank, scaling, generator)

    def _begin(self, rank: int, generator: torch.Generator | None) -> None:
        """Register the factors of ΔW, so that it is zero at the start."""
        raise NotImplementedError

    @property
    def rank(self) -> int:
        """The number of rank-one directions in memory."""
        raise NotImplementedError

    def delta_weight(self) -> Tensor:
        """Return ΔW, (out, in), at least FP32 and differentiable."""
        raise NotImplementedError

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return a plain frozen linear layer with W + ΔW, in the dtype of W."""
        return frozen_linear(self.weight + self.delta_weight().to(self.weight.dtype), self.bias)

    def to_linear(self) -> nn.Linear:
        """Return the pretrained layer without the update: the inverse of ``from_linear``."""
        return frozen_linear(self.weight.detach(), self.bias)

    def extra_repr(self) -> str:
        """Describe the layer in a printed model."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"rank={self.rank}, scaling={float(self.scaling):g}, bias={self.bias is not None}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Casting a model to half precision must not round the scaling.
        scaling = self.scaling
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.scaling.dtype != torch.float32:
            self.scaling = scaling.to(self.scaling.device)
        return self


def frozen_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer that shares its tensors with the caller and does not train.

    Parameters
    ----------
    weight : (out, in).
    bias : (out,), or None.
    """
    # Built on "meta": no memory is filled only to be thrown away.
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear
