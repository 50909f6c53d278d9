"""Whether a chest radiograph is fit to be measured: findings from masks and header together.

Each is one ``Caution``. Limits are in ``chest.limits``. What can be seen in the embeddings alone,
such as a foreign picture, is found by ``runtime.input_check``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from adalora_qat.chest.caution import Caution
from adalora_qat.chest.limits import LIMITS
from adalora_qat.chest.measures import HEART, LEFT, RIGHT
from adalora_qat.chest.shape import chest_shape, lung_area, raggedness, reduced
from adalora_qat.imaging.stated import Stated

Mask = NDArray[np.bool_]

CUT_OFF = "lung_cut_off"
MISSING = "lung_missing"
IMPLAUSIBLE = "implausible_mask"
RAGGED = "ragged_mask"
MIRRORED = "mirrored"
UPSIDE_DOWN = "upside_down"
TILTED = "tilted"
PATIENT_ROTATED = "patient_rotated"
SHALLOW = "poor_inspiration"
CHILD = "child"
LATERAL = "lateral_view"
VIEW_DISAGREES = "view_disagrees"

_EDGES = {"edge_left": "left", "edge_right": "right", "edge_top": "upper", "edge_bottom": "lower"}


def findings(masks: Mapping[str, Mask], stated: Stated | None = None) -> list[Caution]:
    """Return what speaks against measuring a chest, the gravest first.

    Parameters
    ----------
    masks : structure → (H, W), whole masks of ``left_lung``, ``right_lung`` and, if the model
        has it, ``heart``; sides are the patient's.
    stated : what the header says of view and patient.

    Returns
    -------
    Nothing where a lung is not among the structures; of masks that are no chest only that.
    """
    if LEFT not in masks or RIGHT not in masks:
        return []
    small = {name: reduced(mask) for name, mask in masks.items()}
    header = stated or Stated()
    unfit = list(_unfit(small))
    if unfit:
        return [*_stated(header, pair=False), *unfit]
    shape = chest_shape(small)
    return [
        *_stated(header, pair=True),
        *_ragged(small),
        *_placed(shape, header),
        *_cut_off(shape),
        *_posed(shape),
    ]


def header_findings(stated: Stated) -> list[Caution]:
    """Return what the header alone says against measuring: a lateral view, a child."""
    found = []
    if stated.view == "lateral":
        words = f"the header says that it is a lateral view ({stated.view_source})"
        found.append(Caution(LATERAL, words, 1, 0))
    least = LIMITS["age"].low
    if stated.age_years is not None and least is not None and stated.age_years < least:
        words = f"the patient is {stated.age_years:g} years old: the model learned from adults"
        found.append(Caution(CHILD, words, stated.age_years, least))
    return found


def _stated(stated: Stated, *, pair: bool) -> Iterator[Caution]:
    """Hold the header against the picture: whether it shows a pair of lungs from the front."""
    for caution in header_findings(stated):
        if caution.code == LATERAL and pair:
            words = "the header says lateral, the picture shows two lungs from the front"
            yield Caution(VIEW_DISAGREES, words, 1, 0)
        else:
            yield caution


def _unfit(masks: Mapping[str, Mask]) -> Iterator[Caution]:
    """Yield why masks are none of a whole pair of lungs."""
    areas = {name: int(masks[name].sum()) for name in (LEFT, RIGHT)}
    for name, area in areas.items():
        if not area:
            yield Caution(MISSING, f"no {name.replace('_', ' ')} was found", 0, 0)
    if not all(areas.values()):
        return
    yield from _outside(
        "lung_area",
        lung_area(masks),
        IMPLAUSIBLE,
        "the lungs are very small",
        "the lungs are very large",
    )
    yield from _outside(
        "right_share",
        areas[RIGHT] / sum(areas.values()),
        MISSING,
        "the right lung is missing or much too small",
        "the left lung is missing or much too small",
    )


def _ragged(masks: Mapping[str, Mask]) -> Iterator[Caution]:
    for name, mask in masks.items():
        plain = name.replace("_", " ")
        words = f"the mask of the {plain} has specks or holes"
        yield from _outside("ragged", raggedness(mask), RAGGED, "", words)
    if HEART in masks and not masks[HEART].any():
        yield Caution(IMPLAUSIBLE, "no heart was found", 0, 0)


def _placed(shape: Mapping[str, float], stated: Stated) -> Iterator[Caution]:
    """Yield which way up and round the chest is."""
    if "heart_height" in shape:
        words = "the heart lies in the upper half of the lungs: turned upside down?"
        down = list(_outside("heart_height", shape["heart_height"], UPSIDE_DOWN, words))
        yield from down
        if down:
            return
        yield from _outside(
            "heart_area", shape["heart_area"], IMPLAUSIBLE,
            "the heart is very small beside the lungs", "the heart is very large beside the lungs",
        )  # fmt: skip
    crossed = _outside("side", shape["side"], IMPLAUSIBLE, "the lungs do not lie side by side")
    yield from crossed
    if stated.orientation is not None and stated.orientation[0][0] == "R":
        yield Caution(MIRRORED, "the header says that the picture is mirrored", 1, 0)
    elif "heart_side" in shape:
        words = "the heart lies on the patient's right: a mirrored picture, or a situs inversus"
        if stated.orientation is not None and stated.orientation[0][0] == "L":
            words = "the heart lies on the patient's right, though the header gives the sides"
        yield from _outside("heart_side", shape["heart_side"], MIRRORED, words)


def _cut_off(shape: Mapping[str, float]) -> Iterator[Caution]:
    name = max(_EDGES, key=lambda edge: shape[edge])
    words = f"the lungs are cut off by the {_EDGES[name]} edge of the picture"
    yield from _outside("edge", shape[name], CUT_OFF, "", words)


def _posed(shape: Mapping[str, float]) -> Iterator[Caution]:
    """Yield how the patient stood and breathed."""
    words = "the lungs do not lie level: the patient or the picture is tilted"
    yield from _outside("tilt", shape["tilt"], TILTED, words, words)
    words = "one lung looks much larger than the other: the patient is rotated, or a lung is small"
    yield from _outside("even_share", shape["right_share"], PATIENT_ROTATED, words, words)
    words = "the lungs are short for their width: poor inspiration, a lying patient or a child"
    yield from _outside("height", shape["height"], SHALLOW, words)


def _outside(name: str, value: float, code: str, low: str, high: str = "") -> Iterator[Caution]:
    """Yield a finding if a value lies outside its limits, in the words for that side."""
    limit = LIMITS[name]
    if limit.low is not None and value < limit.low:
        yield Caution(code, low, value, limit.low)
    elif limit.high is not None and value > limit.high:
        yield Caution(code, high, value, limit.high)
