import math

import numpy as np
import pandas as pd
import pytest

from adalora_qat.errors import DataError
from adalora_qat.evaluate.summaries import NO_CLASS, POOLED, summarize, summary_table


def test_summary_by_hand() -> None:
    found = summarize([2, 4, 4, 10, math.nan, math.inf])
    assert (found.n, found.dropped, found.mean, found.median) == (4, 2, 5, 4)
    assert found.sd == pytest.approx(math.sqrt((9 + 1 + 1 + 25) / 3))
    assert (found.q1, found.q3, found.minimum, found.maximum) == (3.5, 5.5, 2, 10)


def test_one_value_has_no_deviation() -> None:
    found = summarize([0.5])
    assert (found.n, found.mean, found.median) == (1, 0.5, 0.5) and math.isnan(found.sd)


def test_without_values_only_counts_are_left() -> None:
    found = summarize([math.nan, math.nan])
    assert (found.n, found.dropped) == (0, 2)
    assert math.isnan(found.mean) and math.isnan(found.maximum)


def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": "m", "box": "oracle", "altered": "as-read", "target": ["lung"] * 4 + ["heart"],
            "source": ["x", "x", "y", "y", "x"], "label": ["ill", None, "ill", None, None],
            "status": ["ok", "ok", "ok", "no oracle box: the truth is empty", "ok"],
            "empty": ["no", "prediction", "no", "truth", "no"],
            "dsc": [0.9, 0.0, 0.6, np.nan, 0.7],
        }
    )  # fmt: skip


def test_groups_are_pooled_by_source_and_by_class() -> None:
    found = summary_table(table(), ["dsc"])
    lung = found[found["target"] == "lung"].set_index(["by", "group"])
    assert lung["n"].to_dict() == {
        (POOLED, POOLED): 3,
        ("source", "x"): 2,
        ("source", "y"): 1,
        ("label", NO_CLASS): 1,
        ("label", "ill"): 2,
    }
    assert lung.loc[("source", "x"), "mean"] == pytest.approx(0.45)
    assert lung["dropped"].tolist() == [1, 0, 1, 1, 0]
    assert lung["empty"].tolist() == [1, 1, 0, 1, 0]
    assert found[found["target"] == "heart"]["n"].tolist() == [1, 1, 1]


def test_every_case_is_in_one_group_of_each_column() -> None:
    found = summary_table(table(), ["dsc"])
    found["all"] = found["n"] + found["dropped"]
    assert found.groupby("by")["all"].sum().to_dict() == {POOLED: 5, "source": 5, "label": 5}


def test_an_unknown_column_is_refused() -> None:
    with pytest.raises(DataError, match="no column nsd"):
        summary_table(table(), ["nsd"])
