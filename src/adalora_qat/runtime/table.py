"""``segments.csv``: one row an image, there while a run goes on and in order when it ends."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adalora_qat.errors import DataError, UserError, printable
from adalora_qat.files import write_text

TABLE = "segments.csv"
DONE, FAILED, SKIPPED = "done", "failed", "skipped"
# Of the measures of a chest; empty for other models, and where a value is withheld.
MEASURES = (
    "left_lung_area", "right_lung_area", "right_left_area_ratio", "thorax_width", "thorax_height",
    "cardiothoracic_ratio",
)  # fmt: skip
COLUMNS = (
    "path", "status", "result", "area_px", "area_mm2", "confidence", "warnings", "seconds", "error",
    *MEASURES, "withheld",
)  # fmt: skip
_HEADER = ",".join(COLUMNS)
# Those that the tables of every version begin with.
_FIRST = ",".join(COLUMNS[:9])

Row = Mapping[str, Any]


def done_row(path: Path, result: str, facts: Mapping[str, Any]) -> Row:
    """Return the row of an image with a result.

    Parameters
    ----------
    path : of the image.
    result : path of the JSON file below the folder of results.
    facts : its content; areas are those of the union of the masks.
    """
    return {
        "path": printable(path),
        "status": DONE,
        "result": printable(result),
        **{name: facts[name] for name in ("area_px", "area_mm2", "confidence")},
        "warnings": " ".join(warning["code"] for warning in facts["warnings"]),
        "seconds": round(sum(facts["seconds"].values()), 4),
        **_measures(facts.get("measures", {})),
    }


def _measures(found: Mapping[str, Any]) -> Row:
    """Return the values of a chest, and why any of them is withheld."""
    taken = {name: found[name] for name in MEASURES if name in found}
    reasons = {code: None for one in taken.values() for code in one["withheld"]}
    values = {name: one["value"] for name, one in taken.items() if one["value"] is not None}
    return {**values, "withheld": " ".join(reasons)}


def left_out_row(path: Path, reason: str, *, failed: bool) -> Row:
    """Return the row of an image, or of another file, without a result."""
    status = FAILED if failed else SKIPPED
    return {"path": printable(path), "status": status, "error": reason}


def is_table(path: Path) -> bool:
    """Return whether a file starts as a table of this package does."""
    try:
        with path.open("rb") as handle:
            return handle.read(len(_FIRST)) == _FIRST.encode()
    except OSError:
        return False


class Table:
    """The table of a folder of results.

    Rows are added as images are done, so that a run that is killed leaves those it came to;
    ``close`` writes the table anew, whole or not at all. Rows of earlier runs stay where their
    results do.

    Parameters
    ----------
    folder : of results; made if it is not there.

    Raises
    ------
    DataError
        If another file has the table's name.
    UserError
        If the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / TABLE
        try:
            there = self.path.exists()
        except OSError:
            there = False  # writing says so, and what to do
        if not there:
            write_text(self.path, _HEADER + "\n")
        elif not is_table(self.path):
            raise DataError(
                f"{printable(self.path)} exists and is not a table of adalora-qat; choose another "
                "folder"
            )
        self._write("", torn=not self.path.read_bytes().endswith(b"\n"))
        if there and not self.path.read_bytes().startswith(f"{_HEADER}\n".encode()):
            self.close([])  # a table of an earlier version has fewer columns

    def add(self, row: Row) -> None:
        """Add a row at the end."""
        self._write(_lines([row]))

    def close(self, rows: Iterable[Row]) -> None:
        """Write the table anew: rows of earlier runs, then those of this one, in order."""
        mine = list(rows)
        results = {row["result"] for row in mine if row["status"] == DONE}
        paths = {row["path"] for row in mine}
        with self.path.open(newline="", encoding="utf-8", errors="replace") as handle:
            earlier = [
                row
                for row in csv.DictReader(handle)
                if row["status"] == DONE
                and row["result"] not in results
                and row["path"] not in paths
                and (self.path.parent / str(row["result"])).is_file()
            ]
        write_text(self.path, _HEADER + "\n" + _lines([*earlier, *mine]))

    def _write(self, text: str, *, torn: bool = False) -> None:
        try:
            # In one call, so that no kill leaves half a row.
            with self.path.open("ab", buffering=0) as handle:
                handle.write((b"\n" if torn else b"") + text.encode())
        except OSError as error:
            raise UserError(
                f"cannot write {printable(self.path)}: {error.strerror}; choose a folder that can "
                "be written and has room"
            ) from error


def _lines(rows: Iterable[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writerows(rows)
    return text.getvalue()
