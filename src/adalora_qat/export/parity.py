"""How far an exported model agrees with the quantized model it came from.

Integer sums are exact on both sides, but layer norms, GELU and softmax are float32 in two
implementations. Where they differ in the last bit, now and then a value falls on the other
side of a rounding boundary, and later layers see one integer step. So the gate asks for equal
masks, not for equal bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adalora_qat.config import ExportConfig
from adalora_qat.errors import ExportError
from adalora_qat.progress import Progress

# (image (3, S, S), boxes (N, 4) in the model frame; of a model with structures also which of
# them each mask shall be, (N,)) → logits (N, L, L), predicted IoU (N).
Model = Callable[..., tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True)
class ParityCase:
    """One image in the model frame (3, S, S), its boxes (N, 4) and its valid extent (h, w).

    ``structures`` (N,) int64 says which structure each mask shall be, −1 for none; None where
    the model has no learned prompts.
    """

    name: str
    image: NDArray[np.float32]
    boxes: NDArray[np.float32]
    valid_hw: tuple[int, int]
    structures: NDArray[np.int64] | None = None

    @property
    def prompt(self) -> tuple[NDArray[Any], ...]:
        """What a model is asked with, beside the image."""
        return (self.boxes,) if self.structures is None else (self.boxes, self.structures)


@dataclass(frozen=True)
class Parity:
    """Agreement of two models over some cases.

    Attributes
    ----------
    cases : how many masks were compared.
    dice_min, dice_mean : of the two models' masks with each other.
    pixel_agreement : share of equal pixels, over all masks without their padding.
    logit_difference, iou_difference : the largest absolute ones.
    worst : the case of ``dice_min``.
    """

    cases: int
    dice_min: float
    dice_mean: float
    pixel_agreement: float
    logit_difference: float
    iou_difference: float
    worst: str

    def figures(self) -> dict[str, float]:
        """Return the numbers, for metadata and summaries."""
        return {key: value for key, value in asdict(self).items() if key != "worst"}

    def check(self, gate: ExportConfig) -> None:
        """Refuse models that do not agree.

        Raises
        ------
        ExportError
            If a mask's Dice or the share of equal pixels is below the gate.
        """
        if self.dice_min >= gate.min_dice and self.pixel_agreement >= gate.min_pixel_agreement:
            return
        raise ExportError(
            f"the exported model does not do what the trained one does: Dice with each other at "
            f"least {self.dice_min:.4f} ({self.worst}; must be {gate.min_dice:g}), equal pixels "
            f"{self.pixel_agreement:.4%} (must be {gate.min_pixel_agreement:.2%}), over "
            f"{self.cases} masks. A model that quantization disturbs this much is not accurate "
            "either: use per-channel scales, another observer or a policy that leaves more in "
            "float32, and train stage 2"
        )


def measure_parity(
    reference: Model,
    candidate: Model,
    cases: Sequence[ParityCase],
    threshold: float = 0.0,
    progress: Progress | None = None,
) -> Parity:
    """Compare two models case by case.

    Parameters
    ----------
    reference, candidate : image (3, S, S) and boxes (N, 4) → logits (N, L, L) and IoU (N,).
    cases : at least one.
    threshold : a pixel is foreground where its logit exceeds this.
    progress : is told of each case.

    Raises
    ------
    ExportError
        If there is no case, or a logit is not finite.
    """
    if not cases:
        raise ExportError("no image to check the exported model with; give validation images")
    dice: list[tuple[float, str]] = []
    equal = total = 0
    logit_difference = iou_difference = 0.0
    for done, case in enumerate(cases, start=1):
        logits, iou = reference(case.image, *case.prompt)
        other_logits, other_iou = candidate(case.image, *case.prompt)
        if not (np.isfinite(logits).all() and np.isfinite(other_logits).all()):
            raise ExportError(f"{case.name}: the model gives values that are not finite")
        logit_difference = max(logit_difference, float(np.abs(logits - other_logits).max()))
        iou_difference = max(iou_difference, float(np.abs(iou - other_iou).max()))
        mask, other = (_valid(x, case) > threshold for x in (logits, other_logits))
        equal, total = equal + int((mask == other).sum()), total + mask.size
        dice += [(_dice(a, b), case.name) for a, b in zip(mask, other, strict=True)]
        if progress is not None:
            progress(done, len(cases), "parity")
    worst = min(dice)
    mean = float(np.mean([value for value, _ in dice]))
    return Parity(
        len(dice), worst[0], mean, equal / total, logit_difference, iou_difference, worst[1]
    )


def _valid(logits: NDArray[np.float32], case: ParityCase) -> NDArray[np.float32]:
    """Leave out the low-resolution pixels that hold nothing but padding."""
    factor = logits.shape[-1] / case.image.shape[-1]
    height, width = (int(np.ceil(n * factor)) for n in case.valid_hw)
    return logits[:, :height, :width]


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the Dice of two masks; two empty ones agree."""
    together = int(a.sum()) + int(b.sum())
    return 1.0 if not together else 2 * int((a & b).sum()) / together
