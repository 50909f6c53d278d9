"""What is minimised: the segmenter and its loss as one module, which DDP and compile wrap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adalora_qat.adapt.inject import svd_adapters
from adalora_qat.adapt.svd_linear import orthogonality_penalty
from adalora_qat.model.sam import Segmenter
from adalora_qat.samples.structures import SIDES
from adalora_qat.train.losses import (
    bce_loss,
    dice_loss,
    divergence,
    hard_dice,
    iou_loss,
    one_by_one,
    over_known,
    relative_error,
    summable,
)

Entry = Literal["image", "stem", "embedding"]
"""Where a sample enters the network: frozen prefixes are computed once and kept."""


class Losses(NamedTuple):
    """The terms of one forward pass; ``total`` is what is differentiated."""

    total: Tensor
    bce: Tensor
    dice: Tensor
    ortho: Tensor
    iou: Tensor
    distill: Tensor


@dataclass(frozen=True)
class LossWeights:
    """λ_ortho of the paper's Eq. 2, the predicted IoU's weight, and those of a teacher."""

    ortho: float = 0.0
    iou: float = 0.0
    distill: float = 0.0
    """Of the divergence from the teacher's masks."""
    embeddings: float = 0.0
    """Of the distance from the teacher's embeddings."""

    @property
    def needs_teacher(self) -> bool:
        """Whether any weight asks for a teacher."""
        return self.distill > 0 or self.embeddings > 0


class Objective(nn.Module):
    """L = L_BCE + L_Dice + λ_ortho·L_ortho (paper, Eq. 2; Eq. 4 without the last term).

    To which λ_iou·L_iou is added, 0 by default. L_ortho is the mean over adapters of
    ‖PᵀP − I‖²_F + ‖QQᵀ − I‖²_F, so that λ_ortho does not depend on how many are adapted.
    A ``teacher``, which sees the same images, adds L_distill (Hinton et al. 2015): the weighted
    divergence of its soft masks, and the relative squared error of its embeddings.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        weights: LossWeights,
        entry: Entry,
        accumulate: int = 1,
        teacher: Segmenter | None = None,
    ) -> None:
        super().__init__()
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)
        self.accumulate = accumulate
        self.segmenter = segmenter
        self.weights = weights
        self.entry = entry

    def forward(self, tensors: Mapping[str, Tensor]) -> Losses:
        """Compute the weighted losses of a micro-batch.

        ``tensors``: ``inputs`` (images, stem features or embeddings, by ``entry``), ``boxes``
        (B, N, 4), ``masks`` (B, N, S, S), ``valid`` (B, 1, S, S), ``weights`` (B,).
        """
        embeddings, logits, predicted_iou = self.answer(
            tensors["inputs"], tensors["boxes"], tensors.get("structures")
        )
        logits, predicted_iou = summable(logits), summable(predicted_iou)
        truth, valid = at_side(tensors["masks"], logits), at_side(tensors["valid"], logits)
        weights = tensors["weights"]
        if "known" in tensors:
            each = known_losses(
                logits, predicted_iou, truth, valid, tensors["known"], tensors["merged"],
                self.segmenter.structures,
            )  # fmt: skip
        else:
            each = (
                bce_loss(logits, truth, valid),
                dice_loss(logits, truth, valid),
                iou_loss(predicted_iou, logits, truth, valid),
            )
        # The IoU's also at weight 0: DDP wants a gradient, if a zero one, for every parameter.
        bce, dice, iou = ((weights * loss).sum() for loss in each)
        ortho = self._orthogonality(bce)
        total = bce + dice + self.weights.ortho * ortho + self.weights.iou * iou
        if self.teacher is None:
            return Losses(total, bce, dice, ortho, iou, torch.zeros_like(bce))
        distill = self._distillation(self.teacher, tensors, embeddings, logits, valid)
        return Losses(total + distill, bce, dice, ortho, iou, distill)

    def logits(
        self, inputs: Tensor, boxes: Tensor, structures: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Segment from wherever ``inputs`` enter: logits (B, N, L, L), IoU (B, N)."""
        return self.answer(inputs, boxes, structures)[1:]

    def answer(
        self, inputs: Tensor, boxes: Tensor, structures: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return embeddings (B, D, E, E), logits and predicted IoU."""
        embeddings = self.embed(inputs)
        return (embeddings, *self.segmenter.decode(embeddings, boxes, structures))

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the embeddings (B, D, E, E) of images, stem features, or of embeddings."""
        if self.entry == "image":
            return self.segmenter.encode(inputs)
        if self.entry == "stem":
            return self.segmenter.image_encoder.trunk(inputs)
        return inputs

    def dice(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the hard Dice of each sample, (B,)."""
        logits, _ = self.logits(tensors["inputs"], tensors["boxes"], tensors.get("structures"))
        truth, valid = at_side(tensors["masks"], logits), at_side(tensors["valid"], logits)
        if "known" in tensors:
            return over_known(hard_dice, logits, truth, valid, tensors["known"])
        return hard_dice(logits, truth, valid)

    def _distillation(
        self,
        teacher: Segmenter,
        tensors: Mapping[str, Tensor],
        embeddings: Tensor,
        logits: Tensor,
        valid: Tensor,
    ) -> Tensor:
        with torch.no_grad():
            known = teacher.encode(tensors["inputs"])
            target, _ = teacher.decode(known, tensors["boxes"], tensors.get("structures"))
        loss = self.weights.distill * divergence(logits, summable(target), valid)
        loss = loss + self.weights.embeddings * relative_error(embeddings, known)
        return (tensors["weights"] * loss).sum()

    def _orthogonality(self, like: Tensor) -> Tensor:
        adapters = svd_adapters(self.segmenter)
        if not adapters or self.weights.ortho == 0:
            return torch.zeros_like(like)
        # Summed over the micro-batches of a step it counts once, as every sample does.
        return orthogonality_penalty(adapters) / self.accumulate


def known_losses(
    logits: Tensor,
    predicted_iou: Tensor,
    truth: Tensor,
    valid: Tensor,
    known: Tensor,
    merged: Tensor,
    structures: Sequence[str],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return BCE, Dice and IoU loss of each sample, (B,), over what is known of it.

    Parameters
    ----------
    logits, truth : (B, N, L, L).
    predicted_iou, known : (B, N).
    valid : (B, 1, L, L).
    merged : (B,), 1 where the truth of each lung is the union of both: then the larger of their
        two logits at each pixel, that of the union, is held against it.
    structures : the N names.
    """
    sides = [index for index, name in enumerate(structures) if name in SIDES]
    parts = [over_known(loss, logits, truth, valid, known) for loss in (bce_loss, dice_loss)]
    if len(sides) == len(SIDES):
        union, whole = logits[:, sides].amax(dim=1, keepdim=True), truth[:, sides[:1]]
        # As much as one mask weighs in a sample without any other that is known.
        share = merged / (known.sum(dim=1) + merged).clamp(min=1)
        parts = [
            (1 - share) * part + share * loss(union, whole, valid)
            for part, loss in zip(parts, (bce_loss, dice_loss), strict=True)
        ]
    iou = iou_loss(
        predicted_iou.reshape(-1, 1),
        one_by_one(logits),
        one_by_one(truth),
        one_by_one(valid.expand_as(logits)),
    ).view_as(known)
    return parts[0], parts[1], (iou * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)


def at_side(masks: Tensor, logits: Tensor) -> Tensor:
    """Return masks (B, N, S, S) at the side of the logits: area means, so truth may be soft."""
    if masks.shape[-2:] == logits.shape[-2:]:
        return masks
    return F.interpolate(masks, size=logits.shape[-2:], mode="area")
