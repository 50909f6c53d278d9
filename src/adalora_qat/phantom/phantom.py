"""Procedural images with exact masks: the data set that ships with the package.

A phantom is a random anatomy (smooth closed formulas, so that every mask is exact at any
size), the picture a scanner would make of it, and the masks. ``chest`` is the radiograph that
everything here was made for; ``abdomen``, a slice of a computed tomogram, is a second domain
with structures of its own. S is the side of the picture in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adalora_qat.errors import DataError
from adalora_qat.files import atomic_write
from adalora_qat.phantom.abdomen import draw_abdomen
from adalora_qat.phantom.chest import draw_chest
from adalora_qat.progress import Progress

SMALLEST_SIDE = 32

Drawn = tuple[NDArray[np.uint8], dict[str, NDArray[np.bool_]]]
Kind = Literal["chest", "abdomen"]


class _Domain(NamedTuple):
    """How a kind of phantom is made.

    ``stream`` keeps other users of a seed apart: one anatomy for one seed at every side.
    ``stem`` begins the names of its files.
    """

    stream: int
    stem: str
    draw: Callable[[np.random.Generator, int], Drawn]


_DOMAINS: Mapping[str, _Domain] = {
    "chest": _Domain(0xC4E57, "phantom", draw_chest),
    "abdomen": _Domain(0xABD0, "abdomen", draw_abdomen),
}


@dataclass(frozen=True)
class Phantom:
    """One phantom.

    Attributes
    ----------
    image : (S, S) uint8, dense is bright, the patient's left on the right of the picture.
    masks : structure → (S, S) bool, disjoint: ``left_lung``, ``right_lung`` and ``heart`` of a
        chest, ``liver`` and ``kidneys`` of an abdomen.
    """

    image: NDArray[np.uint8]
    masks: Mapping[str, NDArray[np.bool_]]


def phantom(seed: int, side: int = 256, kind: Kind = "chest") -> Phantom:
    """Draw the phantom of a seed; the same seed at another side is the same patient.

    Parameters
    ----------
    seed : at least 0.
    side : S in pixels, at least 32.
    kind : ``chest`` or ``abdomen``.

    Raises
    ------
    DataError
        If one of them is something else.
    """
    if side < SMALLEST_SIDE or seed < 0 or kind not in _DOMAINS:
        raise DataError(
            f"phantom(seed={seed}, side={side}, kind={kind!r}): the seed must be at least 0, the "
            f"side at least {SMALLEST_SIDE} pixels, and the kind one of {', '.join(_DOMAINS)}"
        )
    domain = _DOMAINS[kind]
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([domain.stream, seed])))
    return Phantom(*domain.draw(rng, side))


def write_phantoms(
    folder: Path,
    count: int,
    seed: int = 0,
    side: int = 256,
    progress: Progress | None = None,
    *,
    kind: Kind = "chest",
) -> None:
    """Write phantoms ``seed`` … ``seed + count − 1``, as the reader ``phantom`` takes them.

    The folder gets ``images/phantom_<seed>.png`` (``abdomen_<seed>.png``) and a mask of the same
    name in each ``masks/<structure>/`` (0/255). Files that are there already are written again,
    to the same bytes.

    Parameters
    ----------
    folder : made if it is not there.
    count : how many, at least 1.
    seed, side, kind : as for ``phantom``.
    progress : called with (done, count, "phantoms").

    Raises
    ------
    DataError
        If a number is out of its range or the kind unknown.
    UserError
        If the folder cannot be written.
    """
    if count < 1:
        raise DataError(f"count={count}: ask for at least one phantom")
    for done in range(count):
        made = phantom(seed + done, side, kind)
        name = f"{_DOMAINS[kind].stem}_{seed + done:06d}.png"
        _save(folder / "images" / name, made.image)
        for structure, mask in made.masks.items():
            _save(folder / "masks" / structure / name, mask.astype(np.uint8) * np.uint8(255))
        if progress is not None:
            progress(done + 1, count, "phantoms")


def _save(path: Path, pixels: NDArray[Any]) -> None:
    with atomic_write(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
