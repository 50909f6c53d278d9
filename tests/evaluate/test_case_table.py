import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from adalora_qat.errors import DataError
from adalora_qat.evaluate.case_table import (
    CASE_COLUMNS,
    case_table,
    finished,
    read_cases,
    write_cases,
)


def rows() -> pd.DataFrame:
    # "NA" is a label, not a missing value; the third case was never predicted.
    facts = [("a", "NA", 0.1 + 0.2, 5), ("b", None, 1 / 3, 0), ("c", "x", np.nan, None)]
    return case_table(
        {"id": i, "label": label, "dsc": dsc, "truth_area_px": area, "target": "lung",
         "truth_resized": 0, "status": "ok", "empty": "no", "model": "m", "box": "oracle"}
        for i, label, dsc, area in facts
    )  # fmt: skip


def written(folder: Path) -> pd.DataFrame:
    table = rows()
    write_cases(folder, table, {"model": "m"}, {"lung": 2})
    return table


def test_every_column_is_there_with_one_dtype() -> None:
    table = rows()
    assert tuple(table.columns) == CASE_COLUMNS
    assert case_table([]).dtypes.equals(table.dtypes)


@pytest.mark.parametrize("name", ["", "cases.parquet", "cases.csv"])
def test_reads_back_exactly_what_was_written(tmp_path: Path, name: str) -> None:
    table = written(tmp_path)
    pd.testing.assert_frame_equal(read_cases(tmp_path / name), table, check_exact=True)


def test_the_side_file_says_what_is_in_the_table(tmp_path: Path) -> None:
    written(tmp_path)
    told = json.loads((tmp_path / "cases.json").read_text())
    assert told["rows"] == 3 and told["without_target"] == {"lung": 2}
    assert told["status"] == {"ok": 3}


def test_a_table_of_something_else_is_not_returned(tmp_path: Path) -> None:
    assert finished(tmp_path, {"model": "m"}) is None
    table = written(tmp_path)
    found = finished(tmp_path, {"model": "m"})
    assert found is not None
    pd.testing.assert_frame_equal(found, table)
    with pytest.raises(DataError, match='model: "m" there, "n" now'):
        finished(tmp_path, {"model": "n"})


def test_a_table_that_was_changed_is_refused(tmp_path: Path) -> None:
    table = written(tmp_path)
    table.iloc[:2].to_parquet(tmp_path / "cases.parquet")
    with pytest.raises(DataError, match=r"not the file its cases\.json describes"):
        read_cases(tmp_path)
    with pytest.raises(DataError, match=r"not the file its cases\.json describes"):
        finished(tmp_path, {"model": "m"})


def test_bad_tables_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="evaluate first"):
        read_cases(tmp_path)
    table = rows()
    table.drop(columns=["dsc", "box"]).to_csv(tmp_path / "short.csv", index=False)
    with pytest.raises(DataError, match="lacks the columns box, dsc"):
        read_cases(tmp_path / "short.csv")
    pd.concat([table, table.iloc[:1]]).to_csv(tmp_path / "double.csv", index=False)
    with pytest.raises(DataError, match="lists the case a / lung / m / oracle"):
        read_cases(tmp_path / "double.csv")
    (tmp_path / "noise.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match="cannot be read as a per-case table"):
        read_cases(tmp_path / "noise.parquet")
    (tmp_path / "cases.json").write_text("{")
    with pytest.raises(DataError, match=r"cases.json is damaged"):
        finished(tmp_path, {})
