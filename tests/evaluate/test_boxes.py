import numpy as np
import pytest

from adalora_qat.errors import DataError
from adalora_qat.evaluate.boxes import BoxPrompt, parse_box
from adalora_qat.imaging.geometry import check_box


def square(height: int = 50, width: int = 60) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[10:21, 20:41] = True
    return mask


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("oracle", "oracle"),
        ("oracle+jitter5", "oracle+jitter5"),
        (5, "oracle+jitter5"),
        (0, "oracle"),
        ("whole", "whole-image"),
        ("whole-image", "whole-image"),
        ("automatic", "automatic"),
        (BoxPrompt("oracle", 7), "oracle+jitter7"),
    ],
)
def test_modes_are_named_for_what_they_are(given: str | int | BoxPrompt, name: str) -> None:
    assert parse_box(given).name == name


@pytest.mark.parametrize("given", ["", "box", "oracle5", "oracle+jitter", "oracle+jitter-3"])
def test_unknown_modes_are_refused(given: str) -> None:
    with pytest.raises(DataError, match="give oracle"):
        parse_box(given)


def test_jitter_must_fit_its_kind() -> None:
    with pytest.raises(DataError, match="not be negative"):
        BoxPrompt("oracle", -1)
    with pytest.raises(DataError, match="moves oracle boxes"):
        BoxPrompt("whole", 3)
    with pytest.raises(DataError, match="moves oracle boxes"):
        BoxPrompt("automatic", 3)


def test_oracle_box_is_the_masks_own() -> None:
    box = BoxPrompt().box(square(), "a", "lung")
    assert box is not None and box.tolist() == [20, 10, 40, 20]


def test_an_empty_truth_has_no_box() -> None:
    assert BoxPrompt().box(np.zeros((5, 5), bool), "a", "lung") is None


def test_jitter_is_uniform_bounded_and_decided_by_seed_and_case() -> None:
    prompt = BoxPrompt("oracle", 3, seed=1)
    shifts = np.array(
        [prompt.box(square(), str(i), "lung") - np.array([20, 10, 40, 20]) for i in range(700)]  # type: ignore[operator]
    )
    values, counts = np.unique(shifts, return_counts=True)
    assert values.tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert counts.min() > 320 and counts.max() < 480  # 400 each on average, sd 18.5
    assert abs(np.corrcoef(shifts.T)[0, 1]) < 0.15

    def box(seed: int, case_id: str, target: str) -> list[float]:
        found = BoxPrompt("oracle", 30, seed).box(square(), case_id, target)
        assert found is not None
        return [float(v) for v in found]

    assert box(1, "a", "lung") == box(1, "a", "lung")
    assert len({tuple(box(*key)) for key in [(1, "a", "l"), (2, "a", "l"), (1, "b", "l")]}) == 3


def test_every_box_can_be_used_as_a_prompt() -> None:
    masks = [square()]
    for row, column in ((0, 0), (49, 59), (0, 59), (25, 30)):
        masks.append(np.zeros((50, 60), bool))
        masks[-1][row, column] = True
    for mask in masks:
        for jitter in (0, 1, 5, 40, 200):
            for number in range(20):
                box = BoxPrompt("oracle", jitter).box(mask, str(number), "lung")
                assert box is not None
                check_box(box, (50, 60))
