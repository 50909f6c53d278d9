"""The picture of a result: masks over the image, boxes, the lines of a ratio, a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from adalora_qat.chest.measures import RATIO, Measure
from adalora_qat.imaging.geometry import last_pixels, to_grey_uint8

Colour = tuple[int, int, int]
_UNNAMED: Colour = (230, 70, 40)
# Told apart by people of every colour vision (Okabe and Ito 2008, "Color Universal Design").
_COLOURS: Mapping[str, Colour] = {
    "left_lung": (86, 180, 233), "right_lung": (0, 158, 115), "heart": (213, 94, 0),
}  # fmt: skip
_OTHERS: Sequence[Colour] = ((204, 121, 167), (240, 228, 66), (230, 159, 0))
_OPACITY = 0.4
_BOX: Colour = (70, 160, 255)
_LINE: Colour = (255, 255, 255)
_SHADE: Colour = (0, 0, 0)


def draw_overlay(
    image: NDArray[Any],
    masks: NDArray[np.bool_],
    structures: Sequence[str],
    boxes: NDArray[np.float32],
    measures: Mapping[str, Measure],
) -> Image.Image:
    """Draw masks (N, H, W) over an image (H, W) or (H, W, 3).

    Structures have colours of their own and a legend; masks without names are of one colour,
    with the boxes (N, 4) that they were asked for with. A cardiothoracic ratio that is not
    withheld is drawn with its two lines.

    Returns
    -------
    An RGB picture of the image's own size, W × H.
    """
    picture = np.repeat(to_grey_uint8(image)[:, :, None], 3, axis=2).astype(np.float32)
    colours = colours_of(structures)
    if colours:
        for mask, name in zip(masks, structures, strict=True):
            _tint(picture, mask, colours[name])
    else:
        _tint(picture, np.asarray(masks.any(axis=0)), _UNNAMED)
    drawn = Image.fromarray(picture.astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    width = max(1, round(max(drawn.size) / 400))
    if colours:
        _legend(pen, drawn.size, colours, measures.get(RATIO), width)
        return drawn
    for box in boxes:
        x0, y0, x1, y1 = last_pixels(box).tolist()
        pen.rectangle((x0, y0, x1, y1), outline=_BOX, width=width)
    return drawn


def colours_of(structures: Sequence[str]) -> dict[str, Colour]:
    """Return structure → its colour, the same in every picture."""
    names = list(dict.fromkeys(structures))
    others = [name for name in names if name not in _COLOURS]
    return {
        name: _COLOURS.get(name) or _OTHERS[others.index(name) % len(_OTHERS)] for name in names
    }


def _tint(picture: NDArray[np.float32], mask: NDArray[np.bool_], colour: Colour) -> None:
    picture[mask] += _OPACITY * (np.array(colour, np.float32) - picture[mask])


def _legend(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    colours: Mapping[str, Colour],
    ratio: Measure | None,
    width: int,
) -> None:
    for start, end in () if ratio is None else ratio.lines.values():
        # The last pixel of a line is the one before its end.
        ends = (start[0], start[1], max(start[0], end[0] - 1), end[1])
        pen.line(ends, fill=_SHADE, width=3 * width)
        pen.line(ends, fill=_LINE, width=width)
    words = [(name.replace("_", " "), colour) for name, colour in colours.items()]
    if ratio is not None:
        value = "withheld" if ratio.value is None else f"{ratio.value:.2f}"
        words.append((f"CTR {value}", _LINE))
    height = max(9, max(size) // 45)
    font = ImageFont.load_default(height)
    for row, (word, colour) in enumerate(words):
        place = (height // 2, height // 2 + row * (height + height // 3))
        pen.text(place, word, fill=colour, font=font, stroke_width=width, stroke_fill=_SHADE)
