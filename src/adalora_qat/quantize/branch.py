"""A linear layer with a low-rank branch beside it that corrects its quantization error.

y = Q(W) x + P diag(Λ) Q x: what ``compensate`` leaves of a layer of few bits. The branch is not
merged, for the sum would have to be rounded again; it ships as two float16 matrices, P·diag(Λ)
and Q, and reads the same quantized input as the integers beside it.

Legend: R rank; ``out`` and ``in`` features of the layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adalora_qat.adapt.adapted_linear import frozen_linear
from adalora_qat.adapt.svd_linear import SVDLinear

STORED = torch.float16
_LARGEST = torch.finfo(STORED).max


class BranchedLinear(SVDLinear):
    """An adapter that stays beside the weight when the weight is quantized.

    ``weight`` is the float32 master of the integers alone; P, Λ and Q train as an adapter's do.
    """

    @classmethod
    def of_shape(cls, linear: nn.Linear, rank: int) -> BranchedLinear:
        """Return a branch of zeros on a linear layer, sharing its weight, to be filled."""
        # A generator of its own: drawing what is overwritten must not move torch's.
        branch = cls(linear, rank, 1.0, torch.Generator().manual_seed(0))
        branch.requires_grad_(False)
        return branch.train(linear.training)

    @classmethod
    @torch.no_grad()
    def from_factors(
        cls, weight: Tensor, bias: Tensor | None, left: Tensor, values: Tensor, right: Tensor
    ) -> BranchedLinear:
        """Put a branch beside a weight.

        Parameters
        ----------
        weight, bias : (out, in) float32 master of the integers, and (out,) or None.
        left, values, right : P (out, R), Λ (R,) and Q (R, in) of the branch P diag(Λ) Q.
        """
        branch = cls.of_shape(frozen_linear(weight, bias), len(values))
        branch.P.copy_(left)
        branch.lam.copy_(values)
        branch.Q.copy_(right)
        return branch

    def shipped_factors(self) -> tuple[Tensor, Tensor]:
        """Return P·diag(Λ⊙m)·s, (out, R), and Q, (R, in), as float32 of float16 values.

        Rounding to float16 passes the gradient straight through.
        """
        with torch.autocast(self.P.device.type, enabled=False):
            return _as_stored(self.P.to(torch.float32) * self.gate()), _as_stored(self.Q)

    def shipped_delta(self) -> Tensor:
        """Return what the branch adds to the weight as it ships, (out, in) float32."""
        left, right = self.shipped_factors()
        with torch.autocast(self.P.device.type, enabled=False):
            return left @ right


def _as_stored(values: Tensor) -> Tensor:
    values = values.to(torch.float32)
    rounded = values.detach().clamp(-_LARGEST, _LARGEST).to(STORED).to(torch.float32)
    # A value and its rounding are so near that the difference, and the sum again, are exact.
    return values + (rounded - values.detach())
