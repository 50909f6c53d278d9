"""Tables as data, and their four faces: Markdown, LaTeX (booktabs), CSV and the report page.

A table is built once, from values, and never parsed back from text. Figures that are
someone else's (the paper's) stand in ``faint`` columns, so that every writer sets them
apart from what was measured here.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adalora_qat.evaluate.metrics import METRICS
from adalora_qat.files import write_text

MISSING = "–"

_OTHER_LABELS = {"seconds": "Seconds", "score": "Predicted IoU"}


def metric_label(name: str) -> str:
    """Return how print names a column of the per-case table: ``hd95_px`` → ``HD95 (px)``."""
    return METRICS[name].title if name in METRICS else _OTHER_LABELS.get(name, name)


def metric_digits(name: str) -> int:
    """Return the decimals a metric deserves: four for shares of one, two for lengths."""
    return 2 if name in METRICS and METRICS[name].unit else 4


@dataclass(frozen=True)
class Spread:
    """A mean with its standard deviation, shown as ``mean ± sd``."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Link:
    """Text that leads somewhere within the report page; plain text everywhere else."""

    text: str
    href: str


Value = str | int | float | Spread | Link | None


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes
    ----------
    name : the heading, unit included ("Latency (ms)").
    digits : decimals shown for floats; integers are shown whole, with thousands spaced.
    faint : the figures are not ours: set apart by every writer.
    signed : show a plus sign before positive numbers (differences).
    """

    name: str
    digits: int = 3
    faint: bool = False
    signed: bool = False

    def shown(self, value: Value) -> str:
        """Return the value as a reader sees it; missing and NaN become an en dash."""
        if isinstance(value, Link):
            return value.text
        if isinstance(value, str):
            return value
        if isinstance(value, Spread):
            return self._spread(value)
        if value is None or math.isnan(value):
            return MISSING
        return self._number(value)

    def _spread(self, value: Spread) -> str:
        if math.isnan(value.mean):
            return MISSING
        mean = self._number(value.mean)
        return mean if math.isnan(value.sd) else f"{mean} ± {value.sd:.{self.digits}f}"

    def _number(self, value: float) -> str:
        sign = "+" if self.signed else ""
        # U+2009 thin space between thousands, U+2212 minus: how print sets numbers.
        form = f"{value:{sign},d}" if isinstance(value, int) else f"{value:{sign},.{self.digits}f}"
        return form.replace(",", "\u2009").replace("-", "−")


@dataclass(frozen=True)
class Table:
    """A captioned table; every row as long as the columns.

    Attributes
    ----------
    slug : short name for anchors and files, ``[a-z0-9-]``.
    title : what it is, in a few words.
    caption : what the reader needs to read it: n, units, what the marks mean.
    columns : headings and how their values are shown.
    rows : values, one tuple a row.
    emphasised : indices of rows to set in bold (the proposed method).

    Raises
    ------
    ValueError
        If a row is not as long as the columns.
    """

    slug: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    emphasised: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.slug}: row {index} has {len(row)} values for "
                    f"{len(self.columns)} columns"
                )

    def numeric(self, column: int) -> bool:
        """Return whether a column holds numbers only (and at least one)."""
        values = [row[column] for row in self.rows if row[column] is not None]
        return bool(values) and all(isinstance(value, int | float | Spread) for value in values)


def markdown(table: Table) -> str:
    """Return a GitHub-flavoured Markdown table, title and caption included."""
    heads = [_escape_markdown(column.name) for column in table.columns]
    rules = ["---:" if table.numeric(i) else "---" for i in range(len(heads))]
    lines = [f"**{table.title}**", "", _bars(heads), _bars(rules)]
    for index, row in enumerate(table.rows):
        cells = [
            _mark(_escape_markdown(column.shown(value)), column.faint, index in table.emphasised)
            for column, value in zip(table.columns, row, strict=True)
        ]
        lines.append(_bars(cells))
    return "\n".join([*lines, "", table.caption, ""])


def latex(table: Table) -> str:
    r"""Return a ``table`` environment for the booktabs package; faint columns need xcolor."""
    align = "".join("r" if table.numeric(i) else "l" for i in range(len(table.columns)))
    heads = [_latex_cell(c.name, c.faint, bold=False) for c in table.columns]
    lines = [
        "% needs \\usepackage{booktabs} and, for the faint columns, \\usepackage{xcolor}",
        "\\begin{table}[t]",
        "\\centering",
        f"\\caption{{{_escape_latex(table.title)}. {_escape_latex(table.caption)}}}",
        f"\\label{{tab:{table.slug}}}",
        f"\\begin{{tabular}}{{{align}}}",
        "\\toprule",
        " & ".join(heads) + " \\\\",
        "\\midrule",
    ]
    for index, row in enumerate(table.rows):
        cells = [
            _latex_cell(column.shown(value), column.faint, index in table.emphasised)
            for column, value in zip(table.columns, row, strict=True)
        ]
        lines.append(" & ".join(cells) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}", ""])


def csv_text(table: Table) -> str:
    """Return comma-separated values at full precision; a spread becomes two columns."""
    spread = [any(isinstance(row[i], Spread) for row in table.rows) for i in _range(table)]
    heads: list[str] = []
    for column, wide in zip(table.columns, spread, strict=True):
        heads += [column.name, f"{column.name} sd"] if wide else [column.name]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(heads)
    for row in table.rows:
        cells: list[object] = []
        for value, wide in zip(row, spread, strict=True):
            cells += _raw(value, wide)
        writer.writerow(cells)
    return buffer.getvalue()


def write_tables(tables: Sequence[Table], folder: Path) -> list[Path]:
    """Write each table as ``<slug>.md``, ``.tex`` and ``.csv``; return the paths."""
    written = []
    for table in tables:
        for suffix, face in ((".md", markdown), (".tex", latex), (".csv", csv_text)):
            path = folder / f"{table.slug}{suffix}"
            write_text(path, face(table))
            written.append(path)
    return written


def _range(table: Table) -> range:
    return range(len(table.columns))


def _raw(value: Value, wide: bool) -> list[object]:
    if isinstance(value, Spread):
        return [value.mean, value.sd]
    plain = value.text if isinstance(value, Link) else value
    return [plain, None] if wide else [plain]


def _bars(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _mark(text: str, faint: bool, bold: bool) -> str:
    if text in ("", MISSING):
        return text
    if faint:
        return f"*{text}*"
    return f"**{text}**" if bold else text


def _escape_markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


def _latex_cell(text: str, faint: bool, bold: bool) -> str:
    escaped = _escape_latex(text)
    if faint:
        return f"\\textcolor{{gray}}{{{escaped}}}"
    return f"\\textbf{{{escaped}}}" if bold else escaped


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "–": "--", "≤": r"$\leq$", "≥": r"$\geq$",
    "\u2009": r"\,", "Δ": r"$\Delta$", "Λ": r"$\Lambda$", "†": r"$\dagger$", "→": r"$\to$",
    "<": r"$<$", ">": r"$>$", "·": r"$\cdot$", "°": r"$^\circ$", "½": r"$\frac{1}{2}$",
    "√": r"$\surd$", "σ": r"$\sigma$", "μ": r"$\mu$", "λ": r"$\lambda$", "⁶": "$^6$",
    "²": "$^2$", "∞": r"$\infty$", "|": r"\textbar{}",
}  # fmt: skip


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
