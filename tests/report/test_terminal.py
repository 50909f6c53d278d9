"""Tables that fit a terminal: nothing wider than it, no number cut, what is left out is told."""

import io

import pytest
from rich.console import Console

from adalora_qat.report.tables import Column, Spread, Table
from adalora_qat.report.terminal import fitted

TABLE = Table(
    "t",
    "Segmentation performance",
    "Caption.",
    (
        Column("Model"), Column("n"), Column("DSC", 4), Column("nothing known"),
        Column("NSD (surface-distance 2-D, 2 px)", 4), Column("DSC, paper", 4, faint=True),
    ),
    (
        ("Full QAT, exported to ONNX and named at length", 10, Spread(0.9512, 0.0123), None,
         Spread(0.81, 0.2), 0.9559),
        ("PTQ", 10, Spread(0.95, 0.01), None, Spread(0.8, 0.2), None),
    ),
)  # fmt: skip


def lines(width: int) -> tuple[list[str], list[str]]:
    drawn, left = fitted(TABLE, width)
    told = io.StringIO()
    Console(file=told, width=width).print(drawn)
    return told.getvalue().splitlines(), left


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(width: int) -> None:
    found, left = lines(width)
    assert max(map(len, found)) <= width
    text = "\n".join(found)
    assert "\u2026" not in text  # rich would mark what it cuts
    shown = {column.name for column in TABLE.columns} - set(left) - {"nothing known"}
    assert ("0.9512 ± 0.0123" in text) == ("DSC" in shown)
    assert ("0.8100 ± 0.2000" in text) == (len(shown) >= 4)


def test_columns_go_from_the_right_and_those_without_a_value_are_not_missed() -> None:
    assert lines(120)[1] == []
    assert lines(64)[1] == ["DSC, paper"]
    assert lines(50)[1] == ["NSD (surface-distance 2-D, 2 px)", "DSC, paper"]
    assert "known" not in "".join(lines(120)[0])


def test_a_long_name_is_broken_over_lines_and_whole() -> None:
    found, _ = lines(80)
    joined = "".join(line[:24].strip() for line in found).replace(" ", "")
    assert "FullQAT,exportedtoONNXandnamedatlength" in joined
