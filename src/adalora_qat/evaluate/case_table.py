"""The per-case table, the only thing later steps read: its columns, and its files.

One row per (id, target, model, box, altered). The table is written whole or not at all, as
Parquet and CSV, with a ``cases.json`` that says what made it and what it left out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from adalora_qat.errors import DataError
from adalora_qat.evaluate.journal import check_identity
from adalora_qat.evaluate.metrics import METRICS
from adalora_qat.files import atomic_write, sha256_file, write_json

TABLE_FORMAT = 1
"""Raised whenever a column or a definition changes; older results are not resumed."""
TEXT_COLUMNS = (
    "id", "source", "label", "patient", "target", "model", "box", "altered", "status", "empty",
)  # fmt: skip
WHOLE_COLUMNS = (
    "height", "width", "truth_resized", "boxes_in_call", "truth_area_px", "prediction_area_px",
    "truth_components", "prediction_components",
)  # fmt: skip
REAL_COLUMNS = (
    "score", "seconds", "box_x0", "box_y0", "box_x1", "box_y1",
    "truth_area_mm2", "prediction_area_mm2", "ctr_truth", "ctr_prediction", *METRICS,
)  # fmt: skip
CASE_COLUMNS = (*TEXT_COLUMNS, *WHOLE_COLUMNS, *REAL_COLUMNS)
"""Columns of the per-case table.

model : the predictor's name.  box : ``oracle``, ``oracle+jitter5``, ``whole-image``, ``automatic``,
    ``none``.
altered : name of the alteration of the image, ``as-read`` without one.
status : ``ok``, or why there is no result; the metrics are then NaN.
empty : ``no``, or which mask has no foreground: ``truth``, ``prediction``, ``both``.
truth_resized : 1 where the true mask had another size than the image (nearest neighbour).
score : the model's own estimate of its IoU.
seconds : wall time of the predict call, which served ``boxes_in_call`` boxes of the image.
box_* : the box used, pixels of the original.
ctr_* : cardiothoracic ratio, on rows of the target ``heart`` where the lungs were predicted too.
"""


def case_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Build the per-case table from rows, with every column and one dtype each."""
    return _with_dtypes(pd.DataFrame(list(rows), columns=list(CASE_COLUMNS)))


def _with_dtypes(table: pd.DataFrame) -> pd.DataFrame:
    for column in TEXT_COLUMNS:
        values = table[column].astype(object)
        table[column] = values.where(values.notna(), None)
    for column in WHOLE_COLUMNS:
        table[column] = table[column].astype("Int64")
    for column in REAL_COLUMNS:
        table[column] = table[column].astype("float64")
    return table


def read_cases(path: Path | str) -> pd.DataFrame:
    """Read a per-case table: its folder, the Parquet or the CSV file.

    Raises
    ------
    DataError
        If there is none, it was changed after it was made, lacks columns, or lists one
        (id, target, model, box, altered) twice.
    """
    path = Path(path)
    file = path / "cases.parquet" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{file} does not exist; evaluate first")
    told = _told(file.parent)
    if path.is_dir() and told and told.get("sha256") != sha256_file(file):
        raise DataError(f"{file} is not the file its cases.json describes; evaluate anew")
    try:
        table = _read_file(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as a per-case table: {error}") from error
    lacking = [column for column in CASE_COLUMNS if column not in table]
    if lacking:
        raise DataError(f"{file} lacks the columns {', '.join(lacking)}; evaluate anew")
    key = ["id", "target", "model", "box", "altered"]
    if (doubled := table.duplicated(key)).any():
        first = table.loc[doubled, key].iloc[0].tolist()
        raise DataError(f"{file} lists the case {' / '.join(map(str, first))} twice")
    return _with_dtypes(table.loc[:, list(CASE_COLUMNS)].copy())


def _read_file(file: Path) -> pd.DataFrame:
    if file.suffix == ".csv":
        # Only an empty field is missing: "NA" and "null" are possible ids and labels. Numbers
        # are converted from their text, which is exact to the last bit.
        text = pd.read_csv(file, dtype="object", keep_default_na=False, na_values=[""])
        whole = {
            column: text[column].astype("float64") for column in WHOLE_COLUMNS if column in text
        }
        return text.assign(**whole)
    return pd.read_parquet(file)


def finished(out: Path, identity: Mapping[str, Any]) -> pd.DataFrame | None:
    """Return the table in a folder if it was made by exactly this, None if there is none.

    Raises
    ------
    DataError
        If there is a table of something else.
    """
    told = _told(out)
    if told is None or not (out / "cases.parquet").is_file():
        return None
    check_identity(out / "cases.json", told.get("identity", {}), identity)
    return read_cases(out)


def _told(folder: Path) -> dict[str, Any] | None:
    file = folder / "cases.json"
    if not file.is_file():
        return None
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is damaged; delete it and evaluate anew") from error
    return told if isinstance(told, dict) else None


def write_cases(
    out: Path, table: pd.DataFrame, identity: Mapping[str, Any], without_target: Mapping[str, int]
) -> None:
    """Write ``cases.parquet``, ``cases.csv`` and, last, ``cases.json`` that vouches for them.

    ``without_target`` counts the records that gave no row for a target.
    """
    with atomic_write(out / "cases.parquet") as temporary:
        table.to_parquet(temporary, index=False)
    with atomic_write(out / "cases.csv") as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    told = {
        "identity": identity,
        "sha256": sha256_file(out / "cases.parquet"),
        "rows": len(table),
        "status": _counts(table["status"]),
        "empty": _counts(table["empty"]),
        "truth_resized": int(table["truth_resized"].sum()),
        "without_target": dict(without_target),
    }
    write_json(out / "cases.json", told)


def _counts(column: pd.Series[Any]) -> dict[str, int]:
    return {str(value): int(n) for value, n in Counter(column).items()}
