"""The processes of a run: one, or as many as ``torchrun`` or ``accelerate launch`` started.

Nothing here launches anything: the launcher sets the environment, Accelerate reads it.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs

from adalora_qat.errors import ConfigError, UserError

Precision = Literal["fp32", "tf32", "bf16", "fp16"]

_MIXED = {"fp32": "no", "tf32": "no", "bf16": "bf16", "fp16": "fp16"}
# The others wait while one decodes every image: hours for a large set, NCCL allows 10 minutes.
_PATIENCE = timedelta(hours=12)


def autocast_dtype(precision: Precision) -> torch.dtype:
    """Return what products are computed in under autocast."""
    halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return halves.get(precision, torch.float32)


def join(*, cpu: bool) -> PartialState:
    """Join the other processes of this launch, if there are any; on the CPU through gloo."""
    return PartialState(cpu=cpu, timeout=_PATIENCE)


def accelerator_for(
    precision: Precision, *, cpu: bool, track: Sequence[str] = (), folder: Path | None = None
) -> Accelerator:
    """Return the accelerator of a run, with its precision and trackers.

    Parameters
    ----------
    track : what is told the losses; TensorBoard's files go into ``folder``.

    Raises
    ------
    UserError
        If a tracker is not installed.
    ConfigError
        If the device cannot compute in the precision.
    """
    check_trackers(track)
    state = join(cpu=cpu)
    if precision == "fp16" and state.device.type == "cpu":
        raise ConfigError(
            "precision=fp16 needs a GPU: its loss scaling is not for the CPU; "
            "take precision=fp32 or bf16 there"
        )
    # The name that older versions of torch know; newer ones take it too, and complain.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return Accelerator(
        mixed_precision=_MIXED[precision],
        cpu=cpu,
        log_with=list(track) or None,
        project_dir=folder,
        # Buffers are frozen statistics, and masks, which ``broadcast_masks`` sends itself.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        ],
    )


def check_trackers(track: Sequence[str]) -> None:
    """Refuse a tracker that is unknown or not installed: Accelerate would go on without it.

    Raises
    ------
    UserError
        Names the tracker and how to install it.
    """
    for name in track:
        if name not in {"tensorboard", "mlflow"}:
            raise UserError(f"unknown tracker {name!r}; known: tensorboard, mlflow")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"tracking with {name} needs its package: run pip install {name}")
