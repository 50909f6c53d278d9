"""How every figure looks: one palette, one set of rules, and how a figure leaves the house.

Colours are those of Okabe and Ito (jfly.uni-koeln.de/color, 2008), told apart by readers
with any common colour vision; series differ by marker or dash as well, so that a figure
survives a grey printer. Figures are drawn with the object interface only (no pyplot, no
global state), so drawing is safe in threads and leaks no windows.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adalora_qat.files import atomic_write

# Okabe–Ito, in the order in which series take them.
BLUE: Final = "#0072B2"
ORANGE: Final = "#E69F00"
GREEN: Final = "#009E73"
VERMILION: Final = "#D55E00"
PURPLE: Final = "#CC79A7"
SKY: Final = "#56B4E9"
SERIES: Final = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
MARKERS: Final = ("o", "s", "^", "D", "v", "P")
DASHES: Final = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))

# Ink and grid are placeholders that the page replaces by its own colours, light or dark.
INK: Final = "#1b2027"
FAINT: Final = "#6b7280"
GRID: Final = "#e3e5e8"

_PAGE_COLOURS: Final = ((INK, "--ink"), (FAINT, "--faint"), (GRID, "--grid"), (BLUE, "--blue"))

# Any: matplotlib's own stubs type the keys in some versions and not in others.
_RULES: Final[dict[Any, Any]] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Liberation Sans", "Arial", "Helvetica", "DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "image.cmap": "viridis",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Apply the rules for the length of the block."""
    with matplotlib.rc_context(_RULES):
        yield


def canvas(width: float = 6.4, height: float = 3.2) -> Figure:
    """Return an empty figure (inches) with an Agg canvas; call inside ``house_style``."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def bare(axes: Axes) -> Axes:
    """Strip an axes of ticks, spines and grid, for pictures."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def save_figure(figure: Figure, stem: Path, dpi: int = 200) -> list[Path]:
    """Write ``<stem>.svg``, ``.pdf`` and ``.png`` (white ground); return the paths.

    The files of equal figures are equal byte for byte: no dates, no random ids.
    """
    undated: dict[str, dict[str, None]] = {
        ".svg": {"Date": None},
        ".pdf": {"CreationDate": None},
        ".png": {},
    }
    paths = []
    with matplotlib.rc_context({**_RULES, "svg.hashsalt": stem.name}):
        for suffix, metadata in undated.items():
            path = stem.with_name(stem.name + suffix)
            with atomic_write(path) as temporary:
                figure.savefig(temporary, dpi=dpi, metadata=metadata, facecolor="white")
            paths.append(path)
    return paths


def inline_svg(figure: Figure, slug: str, alt: str) -> str:
    """Return a figure as an ``<svg>`` element that takes its ink from the page around it.

    Text stays text, selectable; ink, faint tones, grid and blue become CSS variables
    (``--ink``, …) that the page sets for light and dark; ids carry ``slug`` so that several
    figures can share a page.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**_RULES, "svg.fonttype": "none", "svg.hashsalt": slug}):
        figure.savefig(buffer, format="svg", dpi=150, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{slug}-', svg)
    svg = re.sub(r"url\(#", f"url(#{slug}-", svg)
    svg = re.sub(r'href="#', f'href="#{slug}-', svg)
    for colour, variable in _PAGE_COLOURS:
        svg = svg.replace(colour.lower(), f"var({variable})")
    return _labelled(svg, alt)


def standalone_svg(svg: str) -> str:
    """Return an element that ``inline_svg`` made as a file of its own, ink on white."""
    for colour, variable in _PAGE_COLOURS:
        svg = svg.replace(f"var({variable})", colour.lower())
    head, rest = svg.split(">", 1)
    head = re.sub(r'\sstyle="[^"]*"', "", head)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{head} style="background:#ffffff">{rest}\n'


def _labelled(svg: str, alt: str) -> str:
    """Give the root element its role, its name, and a size that follows the page.

    A wide page may enlarge a figure by a quarter (1 pt is 4/3 CSS px), not more.
    """
    escaped = alt.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    head, rest = svg.split(">", 1)
    width = re.search(r'width="([\d.]+)pt"', head)
    head = re.sub(r'\s(width|height)="[\d.]+pt"', "", head)
    limit = f' style="max-width:{float(width[1]) * 4 / 3 * 1.25:.0f}px"' if width else ""
    return f'{head} role="img" aria-label="{escaped}"{limit}>{rest}'
