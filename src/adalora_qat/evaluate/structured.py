"""Models that find structures without a box: what they are asked for, and how they agree.

A model's left and right lung are also measured together against the union that many data sets
draw alone. What a set does not draw is unknown, not background: such a case has no row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from adalora_qat.corpus.records import COMPOSED, Record
from adalora_qat.errors import DataError
from adalora_qat.evaluate.clinical import BlandAltman, bland_altman
from adalora_qat.predictor import Prediction


class Found(NamedTuple):
    """The masks of the targets of one image, from those of the structures."""

    masks: dict[str, NDArray[np.bool_]]
    scores: dict[str, float]
    boxes: dict[str, NDArray[np.float32]]


def default_targets(structures: Sequence[str], records: Sequence[Record]) -> list[str]:
    """Return what a model with structures is measured on: they, and what they make up.

    Only what some record gives.
    """
    made = [name for name in COMPOSED if name not in structures and _parts(name, structures)]
    named = [*structures, *made]
    return [name for name in named if any(record.mask_parts(name) for record in records)]


def check_targets(structures: Sequence[str], targets: Sequence[str], model: str) -> None:
    """Refuse targets that a model with structures cannot give without a box.

    Raises
    ------
    DataError
        Names the target, the model's structures and what to do.
    """
    for target in targets:
        if not _parts(target, structures):
            raise DataError(
                f"{model} finds {', '.join(structures)} without a box, no {target}: choose "
                "another target, or another box"
            )


def targets_of(prediction: Prediction, structures: Sequence[str], targets: Sequence[str]) -> Found:
    """Return the masks of targets from those of structures.

    Parameters
    ----------
    prediction : (N, H, W) masks in the order of ``structures``.
    targets : structures, or what they make up: the union of their masks, the mean of their
        scores, the box round their boxes.
    """
    found = Found({}, {}, {})
    for target in targets:
        rows = [structures.index(name) for name in _parts(target, structures)]
        boxes = prediction.boxes_xyxy_original[rows]
        found.masks[target] = np.logical_or.reduce(prediction.masks[rows])
        found.scores[target] = float(prediction.scores[rows].mean())
        found.boxes[target] = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
    return found


def ratio_agreement(cases: pd.DataFrame) -> BlandAltman | None:
    """Return how the cardiothoracic ratio of predicted masks agrees with that of true masks.

    Cases that lack a lung or the heart are left out; None where all do.
    """
    if not {"ctr_truth", "ctr_prediction"} <= set(cases.columns):
        return None
    rows = cases[cases["ctr_truth"].notna()]
    if not len(rows):
        return None
    return bland_altman(rows["ctr_truth"].tolist(), rows["ctr_prediction"].tolist())


def _parts(target: str, structures: Sequence[str]) -> tuple[str, ...]:
    """Return the structures that make up a target; empty where some are missing."""
    if target in structures:
        return (target,)
    parts = COMPOSED.get(target, ())
    return parts if all(part in structures for part in parts) else ()
