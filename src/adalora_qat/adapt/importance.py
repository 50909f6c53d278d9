"""How much a triplet matters: by the paper's measure, or by PEFT's for comparison.

A triplet i of a layer is its (P[:, i], λ[i], Q[i, :]); R triplets a layer.

What enters: the gradients that ``backward`` left, unscaled and not yet clipped, of the whole loss
L = L_BCE + L_Dice + λ_ortho·L_ortho + λ_iou·L_iou. L_ortho holds no Λ, so ∂L/∂λ has no part of it.
L_iou, the squared error of the decoder's predicted IoU, does depend on Λ through the embeddings:
where a recipe sets ``lambda_iou`` above 0 it is a part of the task loss that triplets are judged
by, with this weight. The paper (Eq. 2) has no such term, nor have recipes that leave it at 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from adalora_qat.adapt.svd_linear import RANK_DIMENSIONS, SVDLinear
from adalora_qat.errors import TrainingError

Adapters = Mapping[str, SVDLinear]


class Importance(Protocol):
    """A running score of every triplet, updated once an optimizer step."""

    def update(self, adapters: Adapters, *, checked: bool = False) -> None:
        """Read the gradients of this step, after ``backward`` and before they are clipped.

        Parameters
        ----------
        adapters : the layers that the measure was begun with, by name.
        checked : they are known to be finite, so the device need not be waited for.

        Raises
        ------
        TrainingError
            If a gradient is missing or not finite; the scores stay as they were.
        """
        ...

    def scores(self) -> dict[str, Tensor]:
        """Return layer → (R,) FP32, the higher the more important."""
        ...

    def restart(self) -> None:
        """Start again after a pruning, if the measure does so."""
        ...

    def keep(self, name: str, indices: Tensor) -> None:
        """Drop the triplets of layer ``name`` that are not in ``indices``, (R',) int64."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return the state itself (not copies), by key."""
        ...


class SensitivitySum:
    """Σ over steps of |λ|·|∂L/∂λ| (paper, Sec. 2.2), started again at every pruning.

    To first order, |λ·∂L/∂λ| is what the loss would change by if the triplet were set to zero
    (Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019). A sum
    over steps, not over samples: the absolute value is taken of a whole step's gradient.
    """

    def __init__(self, adapters: Adapters) -> None:
        self.total = {name: torch.zeros_like(a.lam.detach()) for name, a in adapters.items()}

    def update(self, adapters: Adapters, *, checked: bool = False) -> None:
        """Add |λ|·|∂L/∂λ| of this step."""
        fresh = sensitivities(adapters, ("lam",))
        # Before anything is added: one NaN would stay in the sums until the next pruning.
        if not checked:
            check_finite(fresh)
        if fresh:
            totals = [self.total[key.removesuffix(".lam")] for key in fresh]
            torch._foreach_add_(totals, list(fresh.values()))

    def scores(self) -> dict[str, Tensor]:
        """Return layer → (R,) sums."""
        return self.total

    def restart(self) -> None:
        """Set every sum to zero."""
        for total in self.total.values():
            total.zero_()

    def keep(self, name: str, indices: Tensor) -> None:
        """Drop the triplets of layer ``name`` that are not in ``indices``, (R',) int64."""
        self.total[name] = self.total[name][indices]

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums by key."""
        return {f"importance.{name}": total for name, total in self.total.items()}


class SmoothedSensitivity:
    """AdaLoRA's own measure, which PEFT implements (Zhang et al. 2023, Eq. 7–11).

    For every entry w of P, Λ and Q: I = |w·∂L/∂w|; Ī ← β₁Ī + (1−β₁)I;
    Ū ← β₂Ū + (1−β₂)|I − Ī|; s = Ī·Ū. A triplet scores s(λ) + mean s(P[:, i]) + mean s(Q[i, :]).
    Entries of P and Q take part, so the orthogonality penalty does enter here, as it does there.
    The averages run on through prunings.

    Parameters
    ----------
    adapters : layer → adapter.
    beta1, beta2 : momentum of the sensitivity and of its uncertainty, in [0, 1).
    """

    def __init__(self, adapters: Adapters, beta1: float = 0.85, beta2: float = 0.85) -> None:
        self.beta1, self.beta2 = beta1, beta2
        self.sensitivity: dict[str, Tensor] = {}
        self.uncertainty: dict[str, Tensor] = {}
        self.layers = list(adapters)
        for name, adapter in adapters.items():
            for leaf in RANK_DIMENSIONS:
                like = getattr(adapter, leaf).detach()
                for kind in (self.sensitivity, self.uncertainty):
                    kind[f"{name}.{leaf}"] = torch.zeros_like(like, dtype=torch.float32)

    def update(self, adapters: Adapters, *, checked: bool = False) -> None:
        """Move both averages by the gradients of this step."""
        fresh = sensitivities(adapters, tuple(RANK_DIMENSIONS))
        if not checked:
            check_finite(fresh)
        for key, score in fresh.items():
            # Eq. 9: Ī first, as Eq. 10 measures how far this step is from the new average.
            self.sensitivity[key].lerp_(score, 1 - self.beta1)
            spread = (score - self.sensitivity[key]).abs()
            self.uncertainty[key].lerp_(spread, 1 - self.beta2)

    def scores(self) -> dict[str, Tensor]:
        """Return layer → (R,) combined scores."""
        return {name: self._triplet_scores(name) for name in self.layers}

    def restart(self) -> None:
        """Do nothing: the averages forget by themselves."""

    def keep(self, name: str, indices: Tensor) -> None:
        """Drop the triplets of layer ``name`` that are not in ``indices``, (R',) int64."""
        for leaf, dimension in RANK_DIMENSIONS.items():
            for kind in (self.sensitivity, self.uncertainty):
                key = f"{name}.{leaf}"
                kind[key] = kind[key].index_select(dimension, indices)

    def tensors(self) -> dict[str, Tensor]:
        """Return both averages by key."""
        means = {f"sensitivity.{key}": value for key, value in self.sensitivity.items()}
        return means | {f"uncertainty.{key}": value for key, value in self.uncertainty.items()}

    def _triplet_scores(self, name: str) -> Tensor:
        # Eq. 11, s = Ī·Ū, entry by entry: (out, R), (R,) and (R, in).
        P, lam, Q = (
            self.sensitivity[f"{name}.{leaf}"] * self.uncertainty[f"{name}.{leaf}"]
            for leaf in ("P", "lam", "Q")
        )
        # Eq. 7: means, so that long columns of P and rows of Q do not drown the one λ.
        return lam + P.mean(dim=0) + Q.mean(dim=1)


def sensitivities(adapters: Adapters, leaves: Sequence[str]) -> dict[str, Tensor]:
    """Return "layer.leaf" → |w|·|∂L/∂w| of parameters of the adapters, FP32, in their shapes.

    Parameters
    ----------
    adapters : layer → adapter, after ``backward``.
    leaves : which of "P", "lam" and "Q" are read.

    Raises
    ------
    TrainingError
        If one has no gradient.
    """
    parameters, gradients = {}, []
    for name, adapter in adapters.items():
        for leaf in leaves:
            parameter: nn.Parameter = getattr(adapter, leaf)
            if parameter.grad is None:
                raise TrainingError(
                    f"adapter {name} has no gradient on {leaf}: it must be trainable, take part "
                    "in the forward pass, and be read after backward and before the gradients "
                    "are zeroed"
                )
            parameters[f"{name}.{leaf}"] = parameter.detach()
            gradients.append(parameter.grad)
    if not parameters:
        return {}
    # All layers at once: launches are what this costs.
    products = torch._foreach_mul(list(parameters.values()), gradients)
    torch._foreach_abs_(products)
    return {key: product.float() for key, product in zip(parameters, products, strict=True)}


def check_finite(scores: Mapping[str, Tensor]) -> None:
    """Refuse scores that are not finite.

    Parameters
    ----------
    scores : "layer.leaf" → scores of any shape.

    Raises
    ------
    TrainingError
        Naming every adapter with such a score.
    """
    if not scores:
        return
    # One transfer for all layers: a check for each would stall the device twelve times a step.
    finite = torch.stack([score.isfinite().all() for score in scores.values()]).tolist()
    bad = [key.removesuffix(".lam") for key, fine in zip(scores, finite, strict=True) if not fine]
    if bad:
        raise TrainingError(
            f"non-finite importance |w|·|∂L/∂w| in adapter {', '.join(bad)}: the gradient "
            "overflowed or the loss is not finite; lower the learning rate or use bf16/fp32"
        )
