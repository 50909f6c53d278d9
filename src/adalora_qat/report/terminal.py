"""Tables for a terminal: as many columns as its width takes, and which ones were left out."""

from __future__ import annotations

from typing import Final

import rich.table
from rich import box
from rich.cells import cell_len
from rich.text import Text

from adalora_qat.report.tables import MISSING, Table

FIRST: Final = 24
"""Cells the first column may take before its text is broken over lines."""
GAP: Final = 2


def fitted(table: Table, width: int) -> tuple[rich.table.Table, list[str]]:
    """Return a table no wider than a terminal, and the headings that it leaves out.

    Columns without any value go first and are not told; then columns are taken from the left
    while they fit. Headings are broken at words, the first column anywhere; no number is cut.

    Parameters
    ----------
    width : of the terminal, in cells.
    """
    cells = [[column.shown(row[i]) for row in table.rows] for i, column in enumerate(table.columns)]
    filled = [i for i, texts in enumerate(cells) if i == 0 or set(texts) - {MISSING}]
    wide = {i: _width(table.columns[i].name, cells[i]) for i in filled}
    wide[0] = min(wide[0], FIRST, max(1, width))
    shown, used = [0], wide[0]
    for i in filled[1:]:
        if used + GAP + wide[i] > width:
            break
        shown.append(i)
        used += GAP + wide[i]
    # A column's gap is its padding and the divider of the box, one cell each.
    drawn = rich.table.Table(
        title=Text(table.title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, GAP - 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for i in shown:
        drawn.add_column(
            Text(table.columns[i].name),
            justify="right" if table.numeric(i) else "left",
            width=wide[i],
            overflow="fold",
            style="dim" if table.columns[i].faint else "",
        )
    for row in range(len(table.rows)):
        style = "bold" if row in table.emphasised else ""
        drawn.add_row(*(Text(cells[i][row]) for i in shown), style=style)
    return drawn, [table.columns[i].name for i in filled if i not in shown]


def _width(heading: str, texts: list[str]) -> int:
    """Return the cells a column needs: its widest value, or the longest word of its heading."""
    return max(map(cell_len, [*heading.split(), *texts]))
