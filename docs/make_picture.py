"""Draw docs/images/masks.png: phantom radiographs, and what the packaged model says of them.

Run it from anywhere: ``python docs/make_picture.py``. The same phantoms and the same model give the
same picture, up to pixels on which two processors round apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

import adalora_qat as aq
from adalora_qat.phantom.phantom import phantom

TARGET = Path(__file__).parent / "images" / "masks.png"
SEEDS = (7, 4)
SIDE = 512
INCHES = 2.9
DARK, LIGHT, FAINT = "#0f1419", "#f2f4f7", "#9aa4b2"
MASK, CAUTION = "#35c2f0", "#ffb224"


class Panel(NamedTuple):
    """A picture, the mask over it, and two lines below it."""

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None
    title: str
    words: str
    colour: str = LIGHT


def panels(model: Any) -> list[Panel]:
    """Return a phantom as it is, the same with its mask, and one that the model warns of."""
    upright, other = (phantom(seed, SIDE).image for seed in SEEDS)
    turned = np.ascontiguousarray(np.rot90(other))
    found, doubted = model(upright), model(turned)
    codes = ", ".join(warning.code for warning in doubted.warnings)
    return [
        Panel(upright, None, "Radiograph", "a procedural phantom"),
        Panel(upright, found.mask, "Mask of both lungs", _sure(found), MASK),
        Panel(turned, doubted.mask, "Turned by mistake: warnings", codes, CAUTION),
    ]


def _sure(result: Any) -> str:
    return f"confidence {result.confidence:.2f}"


def draw(axes: Axes, panel: Panel) -> None:
    """Draw one panel: the image, the mask's area and outline, the words."""
    axes.imshow(panel.image, cmap="gray", interpolation="lanczos")
    if panel.mask is not None:
        inside = panel.mask.astype(float)
        axes.contourf(inside, levels=[0.5, 1.5], colors=[panel.colour], alpha=0.22)
        axes.contour(inside, levels=[0.5], colors=[panel.colour], linewidths=1.6)
    axes.set_axis_off()
    below: dict[str, Any] = {"transform": axes.transAxes, "ha": "left", "va": "top"}
    axes.text(0.0, -0.035, panel.title, color=LIGHT, fontsize=11, fontweight="bold", **below)
    colour = panel.colour if panel.mask is not None else FAINT
    axes.text(0.0, -0.125, panel.words, color=colour, fontsize=10, **below)


def picture(shown: Sequence[Panel]) -> NDArray[np.uint8]:
    """Return the row of panels, (H, W, 3)."""
    count = len(shown)
    with mpl.rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure((count * INCHES, INCHES * 1.24), dpi=150, facecolor=DARK)
        canvas = FigureCanvasAgg(figure)
        grid = {"left": 0.012, "right": 0.988, "top": 0.965, "bottom": 0.165, "wspace": 0.045}
        for axes, panel in zip(figure.subplots(1, count, gridspec_kw=grid), shown, strict=True):
            draw(axes, panel)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


def main() -> None:
    """Write the picture."""
    TARGET.parent.mkdir(exist_ok=True)
    made = Image.fromarray(picture(panels(aq.load())))
    # 192 colours are enough for grey images and two hues, and a third of the bytes.
    made.quantize(192, dither=Image.Dither.NONE).save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
