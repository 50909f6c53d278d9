"""What a record says of named structures: given, derived, or unknown.

Data sets name different things. JSRT gives each lung and the heart; Shenzhen gives both lungs as
one mask. A union is split by side where it falls into two clear halves; where it does not, the
sides are unknown but their union is still true. What a set does not draw is unknown, not
background: a heart without a mask is still a heart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from adalora_qat.corpus.records import COMPOSED, Record

# Sides are the patient's: the right lung is on the left of the picture.
SIDES = ("right_lung", "left_lung")
UNION = "lung"
# The smaller of two lungs has at least this share of the larger one's area ...
_LEAST_BALANCE = 0.3
# ... their centres lie this far apart, as a share of the width ...
_LEAST_APART = 0.2
# ... and what belongs to neither has at most this share of the whole.
_MOST_REST = 0.01


@dataclass(frozen=True)
class Truth:
    """Masks of the structures of one image.

    Attributes
    ----------
    masks : (N, h, w) bool; all False where nothing is known.
    known : (N,) bool.
    merged : whether the masks of both lungs hold their union, which alone is known.
    """

    masks: NDArray[np.bool_]
    known: NDArray[np.bool_]
    merged: bool


def wanted(record: Record, structures: Sequence[str]) -> tuple[str, ...]:
    """Return the masks to read of a record: those that it gives, and a union to be split."""
    given = tuple(name for name in structures if record.mask_parts(name))
    sides = any(name in SIDES and name not in given for name in structures)
    return (*given, UNION) if sides and UNION in record.masks else given


def usable(
    records: Sequence[Record], targets: Sequence[str], structures: Sequence[str] = ()
) -> list[Record]:
    """Return the records that have every target or, of a model with structures, at least one."""
    if structures:
        return [record for record in records if wanted(record, structures)]
    return [record for record in records if all(map(record.mask_parts, targets))]


def assemble(masks: NDArray[np.bool_], names: Sequence[str], structures: Sequence[str]) -> Truth:
    """Return the truth of structures from the masks (M, h, w) that were read, by ``names``."""
    read = dict(zip(names, masks, strict=True))
    truth = np.zeros((len(structures), *masks.shape[1:]), dtype=np.bool_)
    known = np.array([name in read for name in structures])
    for index, name in enumerate(structures):
        if name in read:
            truth[index] = read[name]
    missing = [i for i, name in enumerate(structures) if name in SIDES and not known[i]]
    if not missing or UNION not in read:
        return Truth(truth, known, merged=False)
    halves = split_sides(read[UNION])
    for index in missing:
        truth[index] = read[UNION] if halves is None else halves[SIDES.index(structures[index])]
        known[index] = halves is not None
    return Truth(truth, known, merged=halves is None and len(missing) == len(COMPOSED[UNION]))


def split_sides(union: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Split the union (h, w) of two lungs into (right, left), (2, h, w).

    Returns
    -------
    None where the two largest components are not clearly one lung each: lungs that touch, one
    that is nearly gone, or pieces that could belong to either.
    """
    x, y, across, down = cv2.boundingRect(union.view(np.uint8))
    box = slice(y, y + down), slice(x, x + across)
    # 16 bits are faster, and enough for as many components as a quarter of the pixels.
    count, labels, stats, centres = cv2.connectedComponentsWithStats(
        union[box].view(np.uint8),
        ltype=cv2.CV_16U if across * down < 2**17 else cv2.CV_32S,
    )
    if count < 3:
        return None
    areas = stats[1:, cv2.CC_STAT_AREA]
    first, second = (1 + int(i) for i in np.argsort(-areas, kind="stable")[:2])
    rest = 1 - (stats[first, cv2.CC_STAT_AREA] + stats[second, cv2.CC_STAT_AREA]) / areas.sum()
    balance = stats[second, cv2.CC_STAT_AREA] / stats[first, cv2.CC_STAT_AREA]
    apart = abs(centres[first][0] - centres[second][0]) / union.shape[1]
    if balance < _LEAST_BALANCE or apart < _LEAST_APART or rest > _MOST_REST:
        return None
    right, left = sorted((first, second), key=lambda label: float(centres[label][0]))
    halves = np.zeros((2, *union.shape), np.bool_)
    halves[0][box], halves[1][box] = labels == right, labels == left
    return halves
