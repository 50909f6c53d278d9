"""The house's training loop for networks of another kind: running statistics, dropout, no box.

Segment Anything models train with frozen statistics and without dropout. A baseline has both:
its running statistics are state that is saved, averaged and put back with its weights, and its
dropout is drawn from (seed, step) alone, so that a resumed run goes on as an unbroken one would.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from adalora_qat.baselines.networks import BaselineNet
from adalora_qat.config import Stage1Config
from adalora_qat.model.sam import Segmenter
from adalora_qat.train.average import Average
from adalora_qat.train.loop import Loop
from adalora_qat.train.objective import LossWeights, Objective
from adalora_qat.train.sampling import MicroBatch


class BaselineObjective(Objective):
    """L = L_BCE + L_Dice of a network that sees the image alone."""

    def __init__(self, net: BaselineNet, accumulate: int = 1) -> None:
        # Only its parameters and its ``image_encoder`` are asked for.
        super().__init__(cast(Segmenter, net), LossWeights(), "image", accumulate)

    def answer(
        self, inputs: Tensor, boxes: Tensor, structures: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the inputs, logits (B, 1, S, S), and no predicted IoU: zeros (B, 1)."""
        logits = cast(BaselineNet, self.segmenter)(inputs)
        return inputs, logits, logits.new_zeros(logits.shape[:2], dtype=torch.float32)


class BaselineLoop(Loop):
    """``Loop`` for a ``BaselineObjective``; it takes what ``Loop`` takes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        net = self.plain.segmenter
        state = {name: cast(nn.Parameter, buffer) for name, buffer in net.named_buffers()}
        self.parameters = {**self.parameters, **state}
        if self.average is not None:
            # Counters of batches cannot be averaged; running means and variances can.
            real = {name: p for name, p in self.parameters.items() if p.is_floating_point()}
            self.average = Average(real, self.average.decay)

    def optimizer_step(self, micros: Sequence[MicroBatch]) -> dict[str, float]:
        """Do one step in training mode, dropout drawn from seed and step."""
        self.plain.segmenter.train()
        with _drawn_from(self.settings.seed, self.state.step, self.accelerator.device):
            return super().optimizer_step(micros)

    def validate(self) -> float:
        """Return the mean Dice on the validation samples, in inference mode."""
        self.plain.segmenter.eval()
        return super().validate()

    def _plan(self, epoch: int) -> list[list[MicroBatch]]:
        return [[_two_at_least(micro) for micro in step] for step in super()._plan(epoch)]


def parameter_groups(net: BaselineNet, config: Stage1Config) -> list[dict[str, Any]]:
    """Return AdamW's groups: backbone and the rest, norms and biases undecayed."""
    backbone = list(net.image_encoder.parameters())
    known = set(map(id, backbone))
    rest = [parameter for parameter in net.parameters() if id(parameter) not in known]
    groups = [
        {"params": [p for p in part if (p.ndim > 1) == wide], "lr": lr, "weight_decay": decay}
        for part, lr in ((backbone, config.lr_encoder), (rest, config.lr_decoder))
        for wide, decay in ((True, config.weight_decay), (False, 0.0))
    ]
    return [group for group in groups if group["params"]]


@contextlib.contextmanager
def _drawn_from(seed: int, step: int, device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(np.random.default_rng((seed, step)).integers(2**31)))
        yield


def _two_at_least(micro: MicroBatch) -> MicroBatch:
    # A batch norm over one image whose features are one pixel has no variance. The sample comes
    # twice, the second time with weight zero.
    if len(micro.indices) > 1:
        return micro
    return MicroBatch(micro.indices * 2, (*micro.weights, 0.0))
