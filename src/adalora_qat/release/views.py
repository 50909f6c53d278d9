"""How a radiograph may have been changed before it reaches a model, drawn at random.

Mild views are radiographs still: another exposure, framing, resolution, a small turn. Each
other class of ``input_check.CLASSES`` is something to warn of, made from the same radiographs
or drawn: no image that is used to test the warnings takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from adalora_qat.evaluate.robustness import DEGRADATIONS
from adalora_qat.imaging.geometry import to_grey_uint8
from adalora_qat.runtime.input_check import UPRIGHT

Grey = NDArray[np.uint8]
View = Callable[[Grey, np.random.Generator], Grey]

# Degradation → strengths that leave a radiograph readable.
_MILD = {
    "noise": (0.02, 0.05),
    "blur": (1, 2),
    "contrast": (0.5, 1.5, 2),
    "rotation": (-10, -5, 5, 10),
    "jpeg": (50, 25, 10),
    "resolution": (2, 3),
}
_UPRIGHT_VIEWS = 3


def views(image: NDArray[Any], rng: np.random.Generator) -> Iterator[tuple[str, Grey]]:
    """Yield (class, picture): upright views, and one of each other class.

    Parameters
    ----------
    image : (H, W) or (H, W, 3), any real dtype.
    rng : draws every choice.
    """
    grey = to_grey_uint8(image)
    yield from ((UPRIGHT, view) for view in upright_views(grey, rng))
    for name, view in _WRONG.items():
        # What was turned is as often a poor picture as what was not.
        yield name, view(mild(grey, rng) if rng.random() < 0.5 else grey, rng)


def upright_views(image: NDArray[Any], rng: np.random.Generator) -> Iterator[Grey]:
    """Yield the image itself, (H, W) uint8, and mild views of it.

    Parameters
    ----------
    image : (H, W) or (H, W, 3), any real dtype.
    rng : draws every choice.
    """
    grey = to_grey_uint8(image)
    yield grey
    for _ in range(_UPRIGHT_VIEWS - 1):
        yield mild(grey, rng)


def mild(grey: Grey, rng: np.random.Generator) -> Grey:
    """Reframe, change the tones, and degrade in one way.

    Parameters
    ----------
    grey : (H, W) uint8.
    rng : draws every choice.

    Returns
    -------
    uint8, of a size within an eighth of the given one on each edge.
    """
    kind = str(rng.choice(list(_MILD)))
    strength = float(rng.choice(_MILD[kind]))
    changed = DEGRADATIONS[kind].at(strength).image(_reframed(grey, rng), rng)
    unit = to_grey_uint8(changed).astype(np.float32) / 255
    curved = 255 * unit ** np.float32(2 ** rng.uniform(-0.7, 0.7))
    return curved.astype(np.uint8)


def _reframed(grey: Grey, rng: np.random.Generator) -> Grey:
    """Cut up to an eighth off each edge, or add as much of black."""
    height, width = grey.shape
    top, bottom, left, right = (
        rng.uniform(-0.08, 0.12, 4) * [height, height, width, width]
    ).astype(int)
    black = [(max(0, -top), max(0, -bottom)), (max(0, -left), max(0, -right))]
    cut = grey[max(0, top) : height - max(0, bottom), max(0, left) : width - max(0, right)]
    return np.pad(cut, black)


def _turned(quarters: int) -> View:
    return lambda grey, _: np.ascontiguousarray(np.rot90(grey, quarters))


def _inverted(grey: Grey, rng: np.random.Generator) -> Grey:
    return np.asarray(grey.max() - grey)


def _other(grey: Grey, rng: np.random.Generator) -> Grey:
    choices: tuple[View, ...] = (_shuffled, _part, _noise, _drawing)
    return choices[int(rng.integers(len(choices)))](grey, rng)


def _shuffled(grey: Grey, rng: np.random.Generator) -> Grey:
    """Cut into tiles and put them together in another order."""
    parts = int(rng.integers(2, 6))
    height, width = (length // parts for length in grey.shape)
    tiles = [
        grey[r * height : (r + 1) * height, c * width : (c + 1) * width]
        for r in range(parts)
        for c in range(parts)
    ]
    order = rng.permutation(len(tiles))
    rows = [[tiles[i] for i in order[r * parts : (r + 1) * parts]] for r in range(parts)]
    return np.block(rows)


def _part(grey: Grey, rng: np.random.Generator) -> Grey:
    """Take a window of a quarter to a half of the side."""
    share = rng.uniform(0.2, 0.5)
    height, width = (int(length * share) for length in grey.shape)
    top = int(rng.integers(grey.shape[0] - height))
    left = int(rng.integers(grey.shape[1] - width))
    return grey[top : top + height, left : left + width].copy()


def _noise(grey: Grey, rng: np.random.Generator) -> Grey:
    """Draw noise of one coarseness."""
    cells = int(2 ** rng.uniform(2, 8))
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return np.asarray(coarse.resize((256, 256), Image.Resampling.BICUBIC))


def _drawing(grey: Grey, rng: np.random.Generator) -> Grey:
    """Draw ellipses, bars and lines of any grey level on a ramp."""
    start, stop = rng.integers(0, 256, 2)
    ramp = np.linspace(start, stop, 256).astype(np.uint8)
    picture = Image.fromarray(np.tile(ramp, (256, 1)) if rng.random() < 0.5 else
                              np.tile(ramp[:, None], (1, 256)))  # fmt: skip
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(2, 30))):
        x, y = np.sort(rng.integers(0, 256, (2, 2)), axis=1).tolist()
        box, tone = (x[0], y[0], x[1], y[1]), int(rng.integers(256))
        shape = int(rng.integers(3))
        if shape == 0:
            pen.ellipse(box, fill=tone)
        elif shape == 1:
            pen.rectangle(box, fill=tone)
        else:
            pen.line(box, fill=tone, width=int(rng.integers(1, 9)))
    return np.asarray(picture)


_WRONG: Mapping[str, View] = {
    "turned_left": _turned(1),
    "upside_down": _turned(2),
    "turned_right": _turned(3),
    "inverted": _inverted,
    "other": _other,
}
