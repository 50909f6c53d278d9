"""What to do about a batch that the memory does not hold: found by trying, not by guessing."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from adalora_qat.errors import TrainingError


@contextmanager
def advising_on_memory(
    stage: str,
    *,
    images: int,
    accumulate: int,
    attempt: Callable[[int], None] | None,
    options: str,
) -> Iterator[None]:
    """Turn "out of memory" inside the context into an error that says what would fit.

    Parameters
    ----------
    images : those that one process computes at once.
    accumulate : micro-batches of a step, as it is set.
    attempt : does the forward and backward pass of so many images, to find what fits; None where
        it cannot be tried, since other processes would have to take part.
    options : other ways to save memory, to end the message with.

    Raises
    ------
    TrainingError
        In place of the error of the allocator.
    """
    reason = ""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # Frames of the failed step hold the very tensors that fill the memory.
        traceback.clear_frames(error.__traceback__)
        reason = str(error).splitlines()[0]
    else:
        return
    fits = None if attempt is None else _largest_that_fits(images, attempt)
    raise TrainingError(
        f"{stage}: {images} images at once do not fit in the memory; "
        f"{_advice(stage, images, accumulate, fits, tried=attempt is not None)}{options}. "
        f"(The allocator said: {reason})"
    )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, of a GPU or of the machine."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    # The CPU's allocator has no class of its own for it.
    return "DefaultCPUAllocator" in str(error)


def _largest_that_fits(images: int, attempt: Callable[[int], None]) -> int:
    count = images // 2
    while count >= 1:
        _free()
        if _succeeds(attempt, count):
            return count
        count //= 2
    return 0


def _succeeds(attempt: Callable[[int], None], count: int) -> bool:
    try:
        attempt(count)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        return False
    return True


def _advice(stage: str, images: int, accumulate: int, fits: int | None, *, tried: bool) -> str:
    if fits is None and not tried:
        return f"try {stage}.accumulate={2 * accumulate}, which computes the same step in halves"
    if not fits:
        return "not even one does: only less per image helps"
    # The smallest multiple that shares out a step evenly with at most ``fits`` images at once.
    factor = next(n for n in range(2, images + 1) if images % n == 0 and images // n <= fits)
    return (
        f"{images // factor} do (tried): set {stage}.accumulate={accumulate * factor}, which "
        "computes the same step"
    )


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
