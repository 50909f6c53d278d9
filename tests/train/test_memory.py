"""A batch that does not fit: what would is tried and said."""

import pytest
import torch

from adalora_qat.errors import TrainingError
from adalora_qat.train.memory import advising_on_memory


def machine(room: int, seen: list[int]) -> object:
    """Return a pass that holds ``room`` images."""

    def attempt(count: int) -> None:
        seen.append(count)
        if count > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")

    return attempt


def overflow(room: int, *, images: int, accumulate: int = 1) -> tuple[str, list[int]]:
    seen: list[int] = []
    attempt = machine(room, seen)
    with (
        pytest.raises(TrainingError) as caught,
        advising_on_memory(
            "stage1", images=images, accumulate=accumulate, attempt=attempt, options=""
        ),
    ):
        attempt(images)
    return str(caught.value), seen


def test_it_says_what_fits() -> None:
    message, tried = overflow(5, images=16)
    assert tried == [16, 8, 4]
    assert "16 images at once do not fit" in message
    assert "4 do (tried): set stage1.accumulate=4" in message
    assert "Tried to allocate 2.00 GiB" in message
    assert "More." not in message


def test_accumulation_that_is_set_already_is_multiplied() -> None:
    assert "2 do (tried): set stage1.accumulate=6" in overflow(2, images=4, accumulate=3)[0]


def test_shares_stay_even() -> None:
    # 6 images: 3 fit at once, so two parts of 3.
    assert "3 do (tried): set stage1.accumulate=2" in overflow(4, images=6)[0]


@pytest.mark.parametrize("images", [1, 8])
def test_where_nothing_fits_it_says_so(images: int) -> None:
    assert "not even one does" in overflow(0, images=images)[0]


def test_other_processes_cannot_take_part_in_a_trial() -> None:
    with (
        pytest.raises(TrainingError, match=r"try stage2.accumulate=4, .* or else"),
        advising_on_memory("stage2", images=8, accumulate=2, attempt=None, options=", or else"),
    ):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


def test_other_errors_pass() -> None:
    with (
        pytest.raises(RuntimeError, match="shape"),
        advising_on_memory("stage1", images=2, accumulate=1, attempt=None, options=""),
    ):
        raise RuntimeError("shape mismatch")
