import math

import pytest
import torch

from adalora_qat.train.losses import (
    bce_loss,
    dice_loss,
    divergence,
    hard_dice,
    iou_loss,
    relative_error,
)

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


def test_a_mask_does_not_diverge_from_itself() -> None:
    logits = torch.tensor([[[[-3.0, 0.0], [2.0, 9.0]]]])
    valid = torch.ones(1, 1, 2, 2)
    assert float(divergence(logits, logits, valid)) == pytest.approx(0, abs=1e-7)
    # One pixel of p = 0.5 against q = 0.5, and one of q = 0.8: log(0.5/0.8)/2 + log(0.5/0.2)/2.
    other = torch.tensor([[[[0.0, math.log(4)]]]])
    found = divergence(other, torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    expected = (math.log(0.5 / 0.8) + math.log(0.5 / 0.2)) / 2 / 2
    assert float(found) == pytest.approx(expected, rel=1e-6)
    # Padding counts for nothing.
    valid = torch.tensor([[[[1.0, 0.0]]]])
    assert float(divergence(other, torch.zeros(1, 1, 1, 2), valid)) == pytest.approx(0, abs=1e-7)


def test_relative_error_has_no_unit() -> None:
    target = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    values = torch.tensor([[3.0, 5.0], [0.0, 0.0]])
    assert relative_error(values, target).tolist() == pytest.approx([1 / 25, 0.0])
    assert relative_error(10 * values, 10 * target).tolist() == pytest.approx([1 / 25, 0.0])
