import numpy as np
import pytest

from adalora_qat.config import ExportConfig
from adalora_qat.errors import ExportError
from adalora_qat.export.parity import Model, Parity, ParityCase, measure_parity


def square(size: int, shift: int = 0, scale: float = 1.0) -> Model:
    """Mark a square of the top left, ``shift`` columns to the right."""

    def run(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = np.full((len(boxes), 16, 16), -1.0, np.float32)
        logits[:, :size, shift : size + shift] = 1.0
        return logits * scale, np.full(len(boxes), 0.9, np.float32)

    return run


def case(valid_hw: tuple[int, int] = (32, 32), boxes: int = 1) -> ParityCase:
    return ParityCase(
        "a", np.zeros((3, 32, 32), np.float32), np.zeros((boxes, 4), np.float32), valid_hw
    )


def test_figures_of_a_shifted_square() -> None:
    parity = measure_parity(square(4), square(4, shift=1, scale=2.0), [case(), case(boxes=2)])
    # 16 pixels each, 12 in common; 8 of 256 differ.
    assert parity.dice_min == parity.dice_mean == pytest.approx(24 / 32)
    assert parity.pixel_agreement == pytest.approx(248 / 256)
    assert parity.logit_difference == 3.0  # 1 against −2
    assert parity.iou_difference == 0.0
    assert parity.cases == 3
    assert "worst" not in parity.figures()


def test_padding_does_not_count() -> None:
    # Valid are 8 of 32 rows: 2 of... the low-resolution 16 rows, 4.
    parity = measure_parity(square(4), square(4, shift=1), [case(valid_hw=(8, 32))])
    assert parity.pixel_agreement == pytest.approx(1 - 8 / 64)


def test_two_empty_masks_agree() -> None:
    assert measure_parity(square(0), square(0), [case()]).dice_min == 1.0


@pytest.mark.parametrize(
    ("dice", "pixels", "passes"),
    [(0.995, 0.999, True), (0.9949, 0.9999, False), (0.999, 0.9989, False)],
)
def test_the_gate(dice: float, pixels: float, passes: bool) -> None:
    parity = Parity(3, dice, 0.999, pixels, 0.1, 0.01, "the worst")
    if passes:
        parity.check(ExportConfig(min_dice=0.995, min_pixel_agreement=0.999))
    else:
        with pytest.raises(ExportError, match=r"does not do what the trained one does.*the worst"):
            parity.check(ExportConfig(min_dice=0.995, min_pixel_agreement=0.999))


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ExportError, match="not finite"):
        measure_parity(square(4), square(4, scale=np.inf), [case()])


def test_there_must_be_cases() -> None:
    with pytest.raises(ExportError, match="no image"):
        measure_parity(square(4), square(4), [])
