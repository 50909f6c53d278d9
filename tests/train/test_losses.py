import math

import pytest
import torch

from adalora_qat.train.losses import bce_loss, dice_loss, hard_dice, iou_loss

VALID = torch.ones(1, 1, 2, 2)


def image(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 2, 2)


def test_bce_by_hand() -> None:
    # Logit 0 costs log 2 whatever the truth.
    loss = bce_loss(image(0, 0, 0, 0), image(1, 0, 1, 0), VALID)
    assert loss.item() == pytest.approx(math.log(2))


def test_padding_counts_for_nothing() -> None:
    valid = image(1, 1, 0, 0)
    truth = image(1, 0, 1, 1)
    for loss in (bce_loss, dice_loss):
        first = loss(image(2, -3, 50, -50), truth, valid)
        second = loss(image(2, -3, -50, 50), truth, valid)
        torch.testing.assert_close(first, second)
    assert hard_dice(image(2, -3, 50, -50), truth, valid).item() == 1


def test_dice_by_hand() -> None:
    # p = (1, 1, 0, 0), y = (1, 0, 0, 0), s = 1: 1 − (2·1 + 1)/(2 + 1 + 1).
    logits = image(100, 100, -100, -100)
    assert dice_loss(logits, image(1, 0, 0, 0), VALID).item() == pytest.approx(0.25)
    assert hard_dice(logits, image(1, 0, 0, 0), VALID).item() == pytest.approx(2 / 3)


def test_empty_masks_agree() -> None:
    nothing = image(-9, -9, -9, -9)
    assert hard_dice(nothing, image(0, 0, 0, 0), VALID).item() == 1
    assert hard_dice(nothing, image(1, 0, 0, 0), VALID).item() == 0


def test_iou_target_is_that_of_the_mask() -> None:
    # Mask (1, 1, 0, 0) against (1, 0, 0, 0): IoU 1/2, predicted 0.75.
    loss = iou_loss(torch.tensor([[0.75]]), image(5, 5, -5, -5), image(1, 0, 0, 0), VALID)
    assert loss.item() == pytest.approx(0.0625)
