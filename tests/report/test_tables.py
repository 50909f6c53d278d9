"""One table, four faces."""

import csv
import io
from pathlib import Path

import pytest

from adalora_qat.report.tables import (
    Column,
    Link,
    Spread,
    Table,
    csv_text,
    latex,
    markdown,
    metric_digits,
    metric_label,
    write_tables,
)


@pytest.fixture
def table() -> Table:
    return Table(
        "t",
        "Title",
        "5 % of cases & more.",
        (
            Column("Model"),
            Column("DSC", 4),
            Column("Bytes"),
            Column("Δ", 3, signed=True),
            Column("Paper", 2, faint=True),
        ),
        (
            ("base_line|x", Spread(0.9559, 0.0647), 39370479, -0.25, 95.5),
            (Link("case *1*", "#c1"), Spread(0.5, float("nan")), 12, 0.25, None),
        ),
        frozenset({1}),
    )


def test_values_as_a_reader_sees_them() -> None:
    column = Column("x", 3, signed=True)
    assert column.shown(-0.5) == "−0.500"
    assert column.shown(0.5) == "+0.500"
    assert Column("n").shown(1234567) == "1\u2009234\u2009567"
    assert column.shown(None) == column.shown(float("nan")) == "–"
    assert Column("x", 2).shown(Spread(0.987, 0.012)) == "0.99 ± 0.01"
    assert Column("x", 2).shown(Spread(float("nan"), 0.1)) == "–"


def test_markdown(table: Table) -> None:
    assert markdown(table).splitlines() == [
        "**Title**",
        "",
        "| Model | DSC | Bytes | Δ | Paper |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| base_line\\|x | 0.9559 ± 0.0647 | 39\u2009370\u2009479 | −0.250 | *95.50* |",
        "| **case \\*1\\*** | **0.5000** | **12** | **+0.250** | – |",
        "",
        "5 % of cases & more.",
    ]


def test_latex_escapes_and_sets_others_figures_apart(table: Table) -> None:
    text = latex(table)
    assert "\\caption{Title. 5 \\% of cases \\& more.}" in text
    assert (
        "base\\_line\\textbar{}x & 0.9559 $\\pm$ 0.0647 & 39\\,370\\,479 & $-$0.250 & "
        "\\textcolor{gray}{95.50} \\\\" in text
    )
    assert "\\textbf{case *1*}" in text
    assert text.count("\\toprule") == text.count("\\bottomrule") == 1
    assert "\\begin{tabular}{lrrrr}" in text


def test_csv_keeps_full_precision_and_splits_spreads(table: Table) -> None:
    rows = list(csv.reader(io.StringIO(csv_text(table))))
    assert rows[0] == ["Model", "DSC", "DSC sd", "Bytes", "Δ", "Paper"]
    assert rows[1] == ["base_line|x", "0.9559", "0.0647", "39370479", "-0.25", "95.5"]
    assert rows[2] == ["case *1*", "0.5", "nan", "12", "0.25", ""]


def test_rows_must_fit_the_columns() -> None:
    with pytest.raises(ValueError, match="row 1 has 1 values for 2 columns"):
        Table("t", "T", "", (Column("a"), Column("b")), ((1, 2), (1,)))


def test_three_files_a_table(table: Table, tmp_path: Path) -> None:
    names = [path.name for path in write_tables([table], tmp_path)]
    assert names == ["t.md", "t.tex", "t.csv"]
    assert (tmp_path / "t.csv").read_text().startswith("Model,DSC")


def test_metrics_are_named_with_their_units() -> None:
    assert metric_label("hd95_px") == "HD95 (px)"
    assert metric_label("assd_mm") == "ASSD (mm)"
    assert metric_label("nsd_medsam_2px") == "NSD (MedSAM protocol, 2 px)"
    assert metric_label("unknown") == "unknown"
    assert (metric_digits("dsc"), metric_digits("hd95_px"), metric_digits("nsd_medsam_2px")) == (
        4,
        2,
        4,
    )
