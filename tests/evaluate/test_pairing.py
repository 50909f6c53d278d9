import numpy as np
import pandas as pd
import pytest

from adalora_qat.errors import DataError
from adalora_qat.evaluate.pairing import (
    Dropped,
    check_one,
    clusters_of,
    group_names,
    pair,
    select,
    unit_means,
)


def cases(*ids: str, **columns: object) -> pd.DataFrame:
    return pd.DataFrame({"id": list(ids), "target": "lung", "dsc": 0.5} | columns)


def test_pairs_by_case_whatever_the_order() -> None:
    a = cases("x", "y", dsc=[0.1, 0.2])
    pairs, dropped = pair(a, cases("y", "x", dsc=[0.3, 0.4]), "dsc", "error")
    found = {r["id"]: (r["a"], r["b"]) for r in pairs.to_dict("records")}
    assert found == {"x": (0.1, 0.4), "y": (0.2, 0.3)} and dropped == ()


def test_one_id_with_two_targets_is_two_cases() -> None:
    a = cases("x", "x", target=["lung", "heart"])
    pairs, _ = pair(a, a, "dsc", "error")
    assert len(pairs) == 2


def test_every_case_is_paired_or_dropped_with_a_reason() -> None:
    a = cases("w", "x", "y", dsc=[np.nan, 0.2, 0.3])
    pairs, dropped = pair(a, cases("w", "x", "z"), "dsc", "drop")
    assert pairs["id"].tolist() == ["x"]
    assert set(dropped) == {
        Dropped("w", "lung", "dsc of A is not a number"),
        Dropped("y", "lung", "not in B"),
        Dropped("z", "lung", "not in A"),
    }


def test_another_truth_is_refused() -> None:
    with pytest.raises(DataError, match="same truth at the original size"):
        pair(cases("x", width=5), cases("x", width=6), "dsc", "error")


def test_doubled_cases_and_mixed_models_are_refused() -> None:
    check_one(cases("x", "y"), "A")
    with pytest.raises(DataError, match="table A lists x / lung twice"):
        check_one(cases("x", "x"), "A")
    with pytest.raises(DataError, match=r"table B holds several values of box \(o, w\)"):
        check_one(cases("x", "y", box=["o", "w"]), "B")


def test_a_case_without_a_class_has_one() -> None:
    table = cases("x", "y", label=["ill", None])
    assert group_names(table, "label") == ["ill", "(no class given)"]
    assert select(table, "label", "(no class given)", None)["id"].tolist() == ["y"]
    assert len(select(table, "all", "all", ["heart"])) == 0


def test_clusters_are_patients_of_one_source_or_images() -> None:
    pairs = cases(
        "1", "2", "3", "3", "4", patient=["p", "p", None, None, "p"], source=list("xxxxy")
    )
    numbers, told = clusters_of(pairs)
    assert numbers.tolist() == [0, 0, 1, 1, 2] and told == "patient where known, else image"
    assert clusters_of(cases("1", "2"))[1] == "image"


def test_unit_means_by_hand() -> None:
    d = np.array([1.0, 3.0, 0.1])
    assert unit_means(d, np.array([0, 0, 1])).tolist() == [2.0, 0.1]
    assert unit_means(d, np.array([2, 0, 1])) is d
    assert unit_means(np.zeros(0), np.zeros(0, np.int64)).size == 0
