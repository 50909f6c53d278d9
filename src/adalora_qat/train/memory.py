"""What to do about a batch that the memory does not hold: found by trying, not by guessing.

On a CPU it is foreseen, since a machine out of memory ends the process without a word.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from adalora_qat.errors import TrainingError

# What a forward pass keeps is not all: the backward pass has its own tensors, and the allocator
# gaps. LiteMedSAM at 256 px keeps 0.94 GB an image; a process that trained on 4 at once took
# 5.3 GB in all, 0.8 GB of it before the first step.
_PEAK_OVER_KEPT = 1.25
# Of what is free, the part that a training may plan with.
_SHARE = 0.8


def bytes_kept(module: nn.Module, *inputs: object) -> int:
    """Return what a forward pass keeps for its backward pass, in bytes, without the parameters."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    held: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(*inputs)
        return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may still take: the machine's, or its control group's.

    None where the system does not say (no Linux).
    """
    try:
        lines = (root / "proc/meminfo").read_text("ascii").splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    free = int(available.split()[1]) * 1024
    # Version 2, and version 1.
    group = root / "sys/fs/cgroup"
    bounds = (
        (group / "memory.max", group / "memory.current"),
        (group / "memory/memory.limit_in_bytes", group / "memory/memory.usage_in_bytes"),
    )
    for limit, used in bounds:
        try:
            free = min(free, int(limit.read_text()) - int(used.read_text()))
        except (OSError, ValueError):  # no such control group, or "max"
            continue
    return max(free, 0)


def parts_that_fit(images: int, accumulate: int, per_image: int, free: int) -> int:
    """Return the least ``accumulate`` with which a step's images fit, some at a time.

    Parameters
    ----------
    images : of one optimizer step.
    accumulate : as it is set; the answer is no less.
    per_image : bytes that one image keeps for its backward pass.
    free : bytes that are free.
    """
    wanted = [n for n in range(accumulate, images + 1) if images % n == 0]
    fits = [n for n in wanted if peak_bytes(images // n, per_image) <= _SHARE * free]
    return (fits or wanted[-1:] or [accumulate])[0]


def peak_bytes(images: int, per_image: int) -> float:
    """Return what so many images at once take at the peak of a step."""
    return images * per_image * _PEAK_OVER_KEPT


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
