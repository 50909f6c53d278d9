"""Draw docs/images/phantom.png: phantoms with the outlines of their exact masks.

Run it from anywhere: ``python docs/make_picture.py``. The same phantoms give the same picture.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adalora_qat.phantom.phantom import phantom

TARGET = Path(__file__).parent / "images" / "phantom.png"
SEEDS = (1, 4)
SIDE = 256
GAP = 8
COLOURS = {"left_lung": (80, 170, 255), "right_lung": (255, 150, 60), "heart": (120, 220, 120)}


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of a mask that have a neighbour outside, two pixels wide."""
    inner = mask
    for _ in range(2):
        padded = np.pad(inner, 1)
        inner = inner & padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    return mask & ~inner


def tiles(seed: int) -> list[NDArray[np.uint8]]:
    """Return a phantom as it is and with the outlines of its masks, each (S, S, 3)."""
    made = phantom(seed, SIDE)
    plain = np.repeat(made.image[:, :, None], 3, axis=2)
    drawn = plain.copy()
    for organ, colour in COLOURS.items():
        drawn[outline(made.masks[organ])] = colour
    return [plain, drawn]


def main() -> None:
    """Write the picture: for each seed the phantom, then its truth."""
    row = [tile for seed in SEEDS for tile in tiles(seed)]
    gap = np.full((SIDE, GAP, 3), 255, dtype=np.uint8)
    parts = [part for tile in row for part in (gap, tile)][1:]
    picture = Image.fromarray(np.concatenate(parts, axis=1))
    TARGET.parent.mkdir(exist_ok=True)
    # 128 colours are enough for grey film and three outlines, and a third of the bytes.
    picture.quantize(128, dither=Image.Dither.NONE).save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
