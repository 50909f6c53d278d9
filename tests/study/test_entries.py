"""What ``compare`` reads."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from adalora_qat.errors import DataError
from adalora_qat.evaluate.case_table import case_table, write_cases
from adalora_qat.study.entries import entries_of, study_of
from adalora_qat.study.facts import write_facts
from adalora_qat.study.measure import evaluate_model
from adalora_qat.study.models import models_of
from adalora_qat.study.study import ModelFacts

N = 12
CPU = {"processor": "one", "cores": 2, "gpu": None, "device": "cpu"}


def cases(model: str, shift: float = 0.0, seconds: float = 0.5, n: int = N) -> pd.DataFrame:
    dsc = 0.9 + 0.005 * np.arange(n) + shift
    return case_table(
        {
            "id": f"a/{i}", "source": "a", "target": "lung" if i % 2 else "heart", "model": model,
            "box": "oracle", "altered": "as-read", "status": "ok", "empty": "no", "height": 64,
            "width": 64, "truth_resized": 0, "truth_area_px": 500 + i, "seconds": seconds,
            "dsc": value, "iou": value / (2 - value), "nsd_deepmind2d_2px": value,
            "nsd_medsam_2px": value,
        }
        for i, value in enumerate(dsc)
    )  # fmt: skip


def write(folder: Path, table: pd.DataFrame, machine: dict[str, Any] | None = None) -> Path:
    write_cases(folder, table, {}, {})
    if machine is not None:
        facts = ModelFacts(100, 10, 4000, None, "AdaLoRA", "full", "adalora")
        write_facts(folder, f"named {folder.name}", facts, machine)
    return folder


def test_folders_csv_and_parquet_are_one(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", cases("x"))
    for path in (folder, folder / "cases.csv", folder / "cases.parquet"):
        (entry,) = entries_of(str(path))
        assert entry.name == "x"
        assert len(entry.cases) == N
    (entry,) = entries_of(f"mine={folder}")
    assert entry.name == "mine"


def test_a_folder_without_parquet_is_read_from_its_csv(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", cases("x"))
    (folder / "cases.parquet").unlink()
    (entry,) = entries_of(str(folder))
    assert len(entry.cases) == N


def test_one_table_of_several_models_is_taken_apart(tmp_path: Path) -> None:
    write(tmp_path / "both", pd.concat([cases("x"), cases("y", 0.01)], ignore_index=True))
    study = study_of([str(tmp_path / "both")], "x")
    assert study.models == ["x", "y"]
    assert study.comparisons[0].mean_difference == pytest.approx(0.01)


def test_facts_come_with_the_evaluations_and_times_only_if_asked(tmp_path: Path) -> None:
    a = write(tmp_path / "a", cases("x", seconds=0.5), CPU)
    b = write(tmp_path / "b", cases("y", 0.01, seconds=0.25), CPU)
    study = study_of([str(a), str(b)], "named a")
    assert study.facts["named b"].trainable == 10
    assert study.facts["named b"].latency_ms is None
    assert "No latency" in study.tables[2].caption
    timed = study_of([str(a), str(b)], "named a", predict_times=True)
    assert timed.facts["named b"].latency_ms == pytest.approx(250)
    assert "while evaluating" in timed.tables[2].caption


@pytest.mark.parametrize("other", [{**CPU, "processor": "two"}, {**CPU, "device": "cuda"}, None])
def test_times_of_different_machines_are_not_set_side_by_side(
    tmp_path: Path, other: dict[str, Any] | None
) -> None:
    a, b = write(tmp_path / "a", cases("x"), CPU), write(tmp_path / "b", cases("y"), other)
    with pytest.raises(DataError, match="leave --predict-times out"):
        study_of([str(a), str(b)], "named a", predict_times=True)


def test_latencies_stand_side_by_side_only_from_one_report(tmp_path: Path) -> None:
    def timed(folder: Path, model: str) -> Path:
        write(folder, cases(model))
        write_facts(folder, model, ModelFacts(latency_ms=100.0), CPU)
        return folder

    a, b = (
        timed(tmp_path / "one" / "cases" / "a", "x"),
        timed(tmp_path / "one" / "cases" / "b", "y"),
    )
    c = timed(tmp_path / "two" / "cases" / "c", "z")
    study = study_of([str(a), str(b)], "x")
    assert study.facts["y"].latency_ms == 100
    assert "as a report measured it" in study.tables[2].caption
    assert study_of([str(a), str(c)], "x").facts["z"].latency_ms is None


def test_the_baseline_may_be_a_name_or_an_argument(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", cases("x")), write(tmp_path / "b", cases("y"))
    arguments = [f"first={a}", str(b)]
    for given in ("first", f"first={a}", str(a)):
        assert study_of(arguments, given).baseline == "first"
    with pytest.raises(DataError, match=r"'nobody' is none of the models: first; y"):
        study_of(arguments, "nobody")


def test_one_name_for_two_models_is_told_apart_or_refused(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", cases("x")), write(tmp_path / "b", cases("x"))
    assert study_of([str(a), str(b)], str(a)).models == ["x · a", "x · b"]
    with pytest.raises(DataError, match="two tables would be called x · a"):
        study_of([str(a), str(a)], str(a))


def test_cases_that_one_model_lacks_are_refused_or_counted(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", cases("x")), write(tmp_path / "b", cases("y", n=N - 2))
    with pytest.raises(DataError, match="2 cases are in one table only"):
        study_of([str(a), str(b)], "x")
    study = study_of([str(a), str(b)], "x", drop_missing=True)
    assert study.comparisons[0].n == N - 2
    assert len(study.comparisons[0].dropped) == 2


def test_targets_are_chosen_by_name(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", cases("x")), write(tmp_path / "b", cases("y"))
    study = study_of([str(a), str(b)], "x", ["heart"])
    assert set(study.cases["target"]) == {"heart"}
    with pytest.raises(DataError, match="no case of infection; it has heart, lung"):
        study_of([str(a), str(b)], "x", ["infection"])


def test_what_holds_no_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        entries_of(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="holds no per-case table; make one with"):
        entries_of(str(tmp_path))
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(DataError, match="is no per-case table"):
        entries_of(str(tmp_path / "x.txt"))
    with pytest.raises(DataError, match="must be more than 0"):
        study_of([], "x", margin=-1)


def test_a_run_folder_brings_its_evaluations_and_facts(trained: Any, tmp_path: Path) -> None:
    from adalora_qat.corpus.splits import read_manifest, records_of

    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    records = records_of(read_manifest(trained.data), "test", "lung")
    by_name = {model.name: model for model in models_of([str(run)])}
    for folder, name in (
        ("decoder_only", "Decoder fine-tuning"),
        ("int8_runtime", "Full QAT, ONNX"),
    ):
        place = run / "evaluation" / folder
        evaluate_model(by_name[name], records, ["lung"], place, cpu=True)
    study = study_of([str(run)], "Decoder fine-tuning", predict_times=True)
    assert study.facts["Full QAT, ONNX"].bytes == (run / "int8.onnx").stat().st_size
    assert study.facts["Decoder fine-tuning"].encoder == "frozen"
    assert study.facts["Decoder fine-tuning"].paper == "decoder"
    assert (study.facts["Full QAT, ONNX"].latency_ms or 0) > 0


def test_without_facts_no_name_makes_a_row_the_papers(tmp_path: Path) -> None:
    write(tmp_path / "both", pd.concat([cases("decoder"), cases("qat", 0.01)], ignore_index=True))
    study = study_of([str(tmp_path / "both")], "decoder")
    assert {facts.paper for facts in study.facts.values()} == {None}
