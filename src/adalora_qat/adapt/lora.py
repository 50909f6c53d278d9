"""Fixed-rank LoRA, for the ablations: ΔW = s · B A (Hu et al. 2022, Sec. 4.1).

Legend: R rank; ``out`` and ``in`` features of the layer; s the scaling, α/R in the paper's words.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adalora_qat.adapt.svd_linear import frozen_linear
from adalora_qat.errors import ConfigError


class LoRALinear(nn.Module):
    """A linear layer y = x Wᵀ + b + s · (x Aᵀ) Bᵀ with W and b frozen.

    B starts at zero, so the adapted layer computes exactly what the pretrained one does.

    Attributes
    ----------
    weight, bias : (out, in) and (out,) or None, the pretrained layer; frozen.
    A : (R, in), Kaiming-uniform at the start; trainable.
    B : (out, R), zero at the start; trainable.
    scaling : () FP32, α/R.

    Raises
    ------
    ConfigError
        If the rank is negative.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    A: nn.Parameter
    B: nn.Parameter
    scaling: Tensor

    def __init__(
        self, linear: nn.Linear, rank: int, scaling: float, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        if rank < 0:
            raise ConfigError(f"rank {rank} is negative: choose adapt.rank of at least 0")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
        self.bias = None
        if linear.bias is not None:
            self.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        like = self.weight
        A = torch.empty(rank, self.in_features)
        # Kaiming-uniform with a = √5 comes to U(±1/√in).
        bound = 1 / math.sqrt(self.in_features)
        self.A = nn.Parameter(A.uniform_(-bound, bound, generator=generator).to(like))
        self.B = nn.Parameter(torch.zeros(self.out_features, rank).to(like))
        self.register_buffer("scaling", torch.tensor(float(scaling), device=like.device))

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
        generator : draws A, on the CPU; torch's own if None.
        """
        return cls(linear, rank, scaling, generator)

    @property
    def rank(self) -> int:
        """The number of rank-one directions."""
        return self.A.shape[0]

    @property
    def active_rank(self) -> int:
        """The same as ``rank``: LoRA prunes nothing."""
        return self.rank

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out); under autocast the products run in its precision."""
        hidden = F.linear(x, self.A)
        hidden = hidden * self.scaling.to(hidden.dtype)
        return F.linear(x, self.weight, self.bias) + F.linear(hidden, self.B)

    def delta_weight(self) -> Tensor:
        """Return ΔW = s · B A, (out, in), at least FP32 and differentiable."""
        dtype = torch.promote_types(self.B.dtype, torch.float32)
        with torch.autocast(self.B.device.type, enabled=False):
            return (self.B.to(dtype) * self.scaling) @ self.A.to(dtype)

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
