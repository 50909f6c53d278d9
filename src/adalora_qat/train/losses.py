"""Losses and the Dice that validation watches: pure functions of logits and truth.

Shapes: B samples, N masks per sample, L low-resolution side. ``valid`` (B, 1, L, L) is 1
inside the image and 0 in the padding of the model frame, which counts for nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def summable(values: Tensor) -> Tensor:
    """Return values in float32 at least: sums over 65,536 pixels want it."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def bce_loss(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy of each sample, (B,), averaged over its valid pixels.

    logits, truth : (B, N, L, L); truth may be soft, in [0, 1].
    """
    loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    pixels = valid.sum(dim=(1, 2, 3)) * logits.shape[1]
    return (loss * valid).sum(dim=(1, 2, 3)) / pixels


def one_by_one(masks: Tensor) -> Tensor:
    """Return masks (B, N, L, L) as samples of their own, (B·N, 1, L, L)."""
    return masks.flatten(0, 1)[:, None]


def over_known(
    each: Callable[[Tensor, Tensor, Tensor], Tensor],
    logits: Tensor,
    truth: Tensor,
    valid: Tensor,
    known: Tensor,
) -> Tensor:
    """Average a loss or score over the masks whose truth is known, (B,).

    Parameters
    ----------
    each : a function of logits, truth (M, 1, L, L) and valid (M, 1, L, L) that gives (M,).
    logits, truth : (B, N, L, L).
    valid : (B, 1, L, L).
    known : (B, N), the weight of each mask, 0 where its truth is unknown.
    """
    size = logits.shape[:2]
    values = each(one_by_one(logits), one_by_one(truth), one_by_one(valid.expand_as(logits)))
    return (values.view(size) * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)


def dice_loss(logits: Tensor, truth: Tensor, valid: Tensor, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss of each sample, (B,), averaged over its masks.

    1 − (2·Σ p·y + s)/(Σ p + Σ y + s), Milletari et al., "V-Net" (2016), with plain sums in
    the denominator; s keeps an empty mask defined.
    """
    probability = logits.sigmoid() * valid
    truth = truth * valid
    overlap = (probability * truth).sum(dim=(2, 3))
    total = probability.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))
    return (1 - (2 * overlap + smooth) / (total + smooth)).mean(dim=1)


def hard_dice(logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Dice of the thresholded masks, (B,), averaged over masks; both empty counts as 1."""
    prediction = (logits > 0) & (valid > 0)
    target = (truth > 0.5) & (valid > 0)
    overlap = (prediction & target).sum(dim=(2, 3))
    total = prediction.sum(dim=(2, 3)) + target.sum(dim=(2, 3))
    dice = torch.where(total > 0, 2 * overlap / total.clamp(min=1), torch.ones_like(overlap))
    return dice.to(torch.float32).mean(dim=1)


def iou_loss(predicted: Tensor, logits: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Squared error of the predicted IoU, (B,), averaged over masks.

    The target is the IoU that the thresholded mask has: Kirillov et al., "Segment Anything"
    (2023), Sec. 3. predicted : (B, N).
    """
    mask = ((logits > 0) & (valid > 0)).detach()
    target = (truth > 0.5) & (valid > 0)
    overlap = (mask & target).sum(dim=(2, 3)).to(predicted.dtype)
    union = (mask | target).sum(dim=(2, 3)).clamp(min=1).to(predicted.dtype)
    return (predicted - overlap / union).square().mean(dim=1)


def divergence(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """KL divergence of a soft mask from another's, (B,), averaged over valid pixels.

    Cross-entropy with the target's probabilities (Hinton et al., "Distilling the Knowledge in a
    Neural Network", 2015, at temperature 1) less the target's own entropy, so that equal masks
    cost nothing. logits, target : (B, N, L, L), both logits.
    """
    probability = target.sigmoid()
    return bce_loss(logits, probability, valid) - bce_loss(target, probability, valid)


def relative_error(values: Tensor, target: Tensor) -> Tensor:
    """Squared error of each sample's features, (B,), as a share of the target's mean square."""
    values, target = summable(values.flatten(1)), summable(target.flatten(1))
    size = target.square().mean(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return (values - target).square().mean(dim=1) / size
