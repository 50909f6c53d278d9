"""A frozen linear layer with a trainable low-rank update in singular-value form.

ΔW = s · P diag(Λ⊙m) Q   (paper, Eq. 1; AdaLoRA, Zhang et al. 2023, Eq. 3)

It has the form of a singular value decomposition without being computed as one: P and Q are kept
near orthonormal by a penalty (Eq. 2), so that |λ_i| tells how large the i-th direction of the
update is, and a direction can be dropped without touching the others. LoRA's B·A has no such
handle: its rank is fixed from the start.

Legend: R rank, i.e. the number of triplets (P[:, i], λ[i], Q[i, :]) that are held in memory;
``out`` and ``in`` features of the layer; m the rank mask; s the scaling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adalora_qat.adapt.adapted_linear import AdaptedLinear
from adalora_qat.errors import ConfigError

# The trainable tensors, and the dimension along which each one is the rank.
RANK_DIMENSIONS: Mapping[str, int] = {"P": 1, "lam": 0, "Q": 0}


class SVDLinear(AdaptedLinear):
    """A linear layer y = x Wᵀ + b + s · ((x Qᵀ)(Λ⊙m)) Pᵀ with W and b frozen.

    Λ starts at zero, so the adapted layer computes exactly what the pretrained one does.
    Λ and s stay FP32 whatever the module is cast to: in bf16 a step of 1e-6 on a Λ of 0.1
    would never change it.

    Attributes
    ----------
    weight, bias : (out, in) and (out,) or None, the pretrained layer; frozen.
    P : (out, R), orthonormal columns at the start; trainable.
    lam : (R,) FP32, the singular values; trainable.
    Q : (R, in), orthonormal rows at the start; trainable.
    mask : (R,) bool, False where a triplet is pruned: it adds nothing and gets no gradient.
    scaling : () FP32.

    Raises
    ------
    ConfigError
        If the rank exceeds the smaller side of the weight, where no orthonormal basis exists.
    """

    P: nn.Parameter
    lam: nn.Parameter
    Q: nn.Parameter
    mask: Tensor

    def _begin(self, rank: int, generator: torch.Generator | None) -> None:
        limit = min(self.in_features, self.out_features)
        if not 0 <= rank <= limit:
            raise ConfigError(
                f"rank {rank} does not fit a linear layer {self.in_features}→{self.out_features}: "
                f"choose adapt.rank between 0 and {limit}"
            )
        like = self.weight
        # Λ = 0 makes ΔW zero whatever P and Q are; these may not be zero too, for then neither
        # Λ nor they would ever get a gradient.
        self.P = nn.Parameter(_orthonormal(self.out_features, rank, generator).to(like))
        self.Q = nn.Parameter(_rows(_orthonormal(self.in_features, rank, generator).to(like).T))
        self.lam = nn.Parameter(torch.zeros(rank, device=like.device))
        self.register_buffer("mask", torch.ones(rank, dtype=torch.bool, device=like.device))

    @property
    def rank(self) -> int:
        """The number of triplets in memory, pruned ones included."""
        return self.lam.numel()

    @property
    def active_rank(self) -> int:
        """The number of triplets that are not pruned."""
        return int(self.mask.sum())

    def gate(self) -> Tensor:
        """Return s · (Λ⊙m), (R,) FP32: what each rank-one direction is multiplied by."""
        # where, not a product: a pruned λ passes no value and no gradient, not even NaN.
        return torch.where(self.mask, self.lam, torch.zeros_like(self.lam)) * self.scaling

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out); under autocast the products run in its precision."""
        # Through the R narrow directions, (…, in) → (…, R) → (…, out): R·(in + out) products a
        # token instead of in·out, and ΔW is never in memory.
        hidden = F.linear(x, self.Q)
        # The product with Λ is FP32, so that ∂L/∂Λ is summed in FP32 under autocast too.
        hidden = (hidden * self.gate()).to(hidden.dtype)
        return F.linear(x, self.weight, self.bias) + F.linear(hidden, self.P)

    def delta_weight(self) -> Tensor:
        """Return ΔW = s · P diag(Λ⊙m) Q, (out, in), at least FP32 and differentiable (Eq. 1)."""
        dtype = torch.promote_types(self.P.dtype, torch.float32)
        with torch.autocast(self.P.device.type, enabled=False):
            return (self.P.to(dtype) * self.gate()) @ self.Q.to(dtype)

    def orthogonality(self) -> Tensor:
        """Return ‖PᵀP − I‖²_F + ‖QQᵀ − I‖²_F over the active triplets, () FP32.

        Squared Frobenius norms, summed and not divided by the rank, as in AdaLoRA (Eq. 4).
        Pruned triplets are left out of both Gram matrices, so they get no gradient and a
        compacted layer has the same penalty. Λ does not enter: ∂/∂Λ is zero.
        """
        dtype = torch.promote_types(self.P.dtype, torch.float32)
        with torch.autocast(self.P.device.type, enabled=False):
            active = self.mask.to(dtype)
            # Pruned columns become zero, and the identity has a zero in their place.
            P = self.P.to(dtype) * active
            Q = self.Q.to(dtype) * active[:, None]
            identity = torch.diag(active)
            # Gram matrices (R, R): 1 on the diagonal is unit length, 0 beside it a right angle.
            return (P.T @ P - identity).square().sum() + (Q @ Q.T - identity).square().sum()

    @torch.no_grad()
    def compact(self) -> Tensor:
        """Drop pruned triplets from memory and return the (R',) indices that were kept.

        P, Λ and Q become new, smaller parameters: an optimizer, or any list of parameters, must
        be told. ``rank_budget.compact`` does that for the optimizer and its state.
        """
        kept = self.mask.nonzero().flatten()
        for name, dimension in RANK_DIMENSIONS.items():
            old: nn.Parameter = getattr(self, name)
            # New objects: autograd remembers the shape of the old ones while a graph lives.
            smaller = old.detach().index_select(dimension, kept)
            setattr(self, name, nn.Parameter(smaller, requires_grad=old.requires_grad))
        self.mask = self.mask[kept]
        return kept

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Casting a model to half precision must leave Λ, too, in FP32.
        lam = self.lam.detach()
        super()._apply(fn, recurse)
        if self.lam.dtype != torch.float32:
            self.lam.data = lam.to(self.lam.device)
        return self


def orthogonality_penalty(adapters: Mapping[str, nn.Module]) -> Tensor:
    """Return the mean over SVD adapters of ``SVDLinear.orthogonality``, () FP32.

    Parameters
    ----------
    adapters : name → layer; others than SVD adapters are left out.

    Notes
    -----
    This is L_ortho of the paper's Eq. 2, to be weighted by λ_ortho. A layer of rank 0 adds
    nothing but counts in the mean, so that pruning a layer away does not raise the pressure on
    the others. Without SVD adapters the penalty is zero.
    """
    terms = [a.orthogonality() for a in adapters.values() if isinstance(a, SVDLinear)]
    return torch.stack(terms).mean() if terms else torch.zeros(())


def _orthonormal(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    # Q of the QR decomposition of a Gaussian matrix is uniformly distributed over orthonormal
    # bases once R's diagonal is made positive (Mezzadri 2007); without that its signs depend on
    # the library. FP64 on the CPU, signs fixed: the same basis on every device and LAPACK.
    gaussian = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    basis, triangle = torch.linalg.qr(gaussian)
    signed: Tensor = basis * torch.where(triangle.diagonal() < 0, -1.0, 1.0)
    return _rows(signed)


def _rows(matrix: Tensor) -> Tensor:
    # LAPACK's columns lie one after another; a matrix product rounds by layout, and an adapter
    # rebuilt from a checkpoint is to compute as the pruned one did, to the bit. ``contiguous``
    # would leave the strides of a single row or column as they are.
    return matrix.clone(memory_format=torch.contiguous_format)
