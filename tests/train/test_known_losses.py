"""Losses of structures of which some are unknown."""

import torch
from torch import Tensor

from adalora_qat.train.losses import bce_loss, dice_loss, iou_loss
from adalora_qat.train.objective import known_losses


def _chest() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "logits": torch.randn(2, 3, 8, 8, generator=generator),
        "iou": torch.rand(2, 3, generator=generator),
        "truth": (torch.rand(2, 3, 8, 8, generator=generator) > 0.5).float(),
        "valid": torch.ones(2, 1, 8, 8),
    }


CHEST = ("left_lung", "right_lung", "heart")


def test_where_all_is_known_the_losses_are_the_plain_ones() -> None:
    chest = _chest()
    found = known_losses(
        chest["logits"], chest["iou"], chest["truth"], chest["valid"], torch.ones(2, 3),
        torch.zeros(2), CHEST,
    )  # fmt: skip
    expected = (
        bce_loss(chest["logits"], chest["truth"], chest["valid"]),
        dice_loss(chest["logits"], chest["truth"], chest["valid"]),
        iou_loss(chest["iou"], chest["logits"], chest["truth"], chest["valid"]),
    )
    for loss, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(loss, plain)


def test_an_unknown_mask_pulls_at_nothing() -> None:
    chest = _chest()
    logits = chest["logits"].requires_grad_()
    known = torch.tensor([[1.0, 1, 0], [1, 1, 1]])
    losses = known_losses(
        logits, chest["iou"], chest["truth"], chest["valid"], known, torch.zeros(2), CHEST
    )
    (gradient,) = torch.autograd.grad(losses[0].sum() + losses[1].sum(), logits)
    assert not gradient[0, 2].any() and gradient[0, :2].any() and gradient[1, 2].any()


def test_a_merged_union_is_held_against_the_larger_logit() -> None:
    chest = _chest()
    logits = chest["logits"].requires_grad_()
    union = chest["truth"][:, :1]
    truth = torch.cat([union, union, torch.zeros_like(union)], dim=1)
    losses = known_losses(
        logits, chest["iou"], truth, chest["valid"], torch.zeros(2, 3), torch.ones(2), CHEST
    )
    larger = chest["logits"][:, :2].amax(dim=1, keepdim=True)
    torch.testing.assert_close(losses[0], bce_loss(larger, union, chest["valid"]))
    (gradient,) = torch.autograd.grad(losses[0].sum(), logits)
    # Each pixel's pull goes to one of the two lungs, and none to the heart.
    assert not gradient[:, 2].any()
    assert ((gradient[:, 0] != 0) ^ (gradient[:, 1] != 0)).all()
