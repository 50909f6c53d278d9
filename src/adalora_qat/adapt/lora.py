"""Fixed-rank LoRA, for the ablations: ΔW = s · B A (Hu et al. 2022, Sec. 4.1).

Legend: R rank; ``out`` and ``in`` features of the layer; s the scaling, α/R in the paper's words.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adalora_qat.adapt.adapted_linear import AdaptedLinear
from adalora_qat.errors import ConfigError


class LoRALinear(AdaptedLinear):
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

    A: nn.Parameter
    B: nn.Parameter

    def _begin(self, rank: int, generator: torch.Generator | None) -> None:
        if rank < 0:
            raise ConfigError(f"rank {rank} is negative: choose adapt.rank of at least 0")
        A = torch.empty(rank, self.in_features)
        # Kaiming-uniform with a = √5 comes to U(±1/√in).
        bound = 1 / math.sqrt(self.in_features)
        self.A = nn.Parameter(A.uniform_(-bound, bound, generator=generator).to(self.weight))
        self.B = nn.Parameter(torch.zeros(self.out_features, rank).to(self.weight))

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
