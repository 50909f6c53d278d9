"""Tables 1, 2 and 3 from per-case tables."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from adalora_qat.errors import DataError
from adalora_qat.evaluate.case_table import case_table
from adalora_qat.report.tables import Spread, Table, latex
from adalora_qat.study.study import ModelFacts, Study, compare_models, write_study

N = 12
DECODER = 0.9 + 0.005 * np.arange(N)


def cases(dsc: np.ndarray, model: str = "same name", box: str = "oracle") -> pd.DataFrame:
    return case_table(
        {
            "id": f"jsrt/{i}",
            "source": "jsrt",
            "target": "lung",
            "model": model,
            "box": box,
            "altered": "as-read",
            "status": "ok",
            "empty": "no",
            "height": 512,
            "width": 512,
            "truth_resized": 0,
            "truth_area_px": 1000 + i,
            "dsc": value,
            "iou": value / (2 - value),
            "nsd_deepmind2d_2px": value,
            "nsd_medsam_2px": value - 0.1,
        }
        for i, value in enumerate(dsc)
    )


@pytest.fixture(scope="module")
def study() -> Study:
    wobble = np.where(np.arange(N) % 2, 1e-4, -1e-4)
    facts = {
        "decoder only": ModelFacts(
            9_786_000, 4_058_340, 39_000_000, 400.0, "frozen", "full", "decoder"
        ),
        "Full QAT": ModelFacts(
            10_160_000, 4_425_000, 12_300_000, 200.0, "AdaLoRA, INT8", "INT8", "fullqat"
        ),
    }
    tables = {
        "decoder only": cases(DECODER),
        "Full QAT": cases(DECODER + wobble),
        "zero-shot": cases(DECODER - 0.05),
    }
    return compare_models(tables, "decoder only", facts, paper=True, resamples=200)


def column(table: Table, name: str) -> list[object]:
    place = [c.name for c in table.columns].index(name)
    return [row[place] for row in table.rows]


def test_table_one_has_means_and_the_papers_figures_apart(study: Study) -> None:
    table = study.tables[0]
    assert column(table, "Model") == ["decoder only", "Full QAT", "zero-shot"]
    mean = column(table, "DSC")[0]
    assert isinstance(mean, Spread)
    assert mean.mean == pytest.approx(0.9275)
    assert mean.sd == pytest.approx(0.005 * np.sqrt(13))  # sd of 0..11 is √13
    assert column(table, "n") == [N] * 3
    assert column(table, "DSC median [IQR]")[0] == "0.9275 [0.9138, 0.9413]"
    assert column(table, "DSC, paper") == [Spread(0.9555, 0.0664), Spread(0.9559, 0.0647), None]
    assert all(c.faint == c.name.endswith("paper") for c in table.columns)
    assert "Prompt: oracle; target: lung; image sides 512 px." in table.caption


def test_differences_are_one_family_and_say_what_is_shown(study: Study) -> None:
    table = study.tables[1]
    assert len(table.rows) == 2 * 4
    assert {c.wilcoxon_family for c in study.comparisons} == {8}
    found = dict(
        zip(zip(column(table, "Model"), column(table, "Metric"), strict=True),
            column(table, "Shown"), strict=True)
    )  # fmt: skip
    assert found[("Full QAT", "DSC")] == "equivalent"
    assert found[("zero-shot", "DSC")] == "worse"
    difference = column(table, "Δ mean")
    assert difference[0] == pytest.approx(0, abs=1e-12)
    assert difference[4] == pytest.approx(-0.05)
    assert len(study.verdicts) == 8


def test_table_two_counts_megabytes_and_reduction(study: Study) -> None:
    table = study.tables[2]
    assert column(table, "Total (M)") == [pytest.approx(9.786), pytest.approx(10.16), None]
    assert column(table, "Reduction (×)")[0] == pytest.approx(9_786_000 / 4_058_340)
    assert column(table, "File (MB)") == [pytest.approx(39.0), pytest.approx(12.3), None]
    assert column(table, "DSC (%)")[0] == pytest.approx(92.75)
    assert column(table, "Trainable (M), paper") == [3.8, 5.4, None]


def test_table_three_shares(study: Study) -> None:
    table = study.tables[3]
    assert column(table, "Train (%)")[0] == pytest.approx(100 * 4_058_340 / 9_786_000)
    assert column(table, "Encoder") == ["frozen", "AdaLoRA, INT8", "–"]
    assert column(table, "Method, paper") == ["Decoder-only FT", "Hybrid + Full QAT", None]


def test_fully_trained_models_have_no_reduction() -> None:
    facts = {"a": ModelFacts(100, 100), "b": ModelFacts(100, 0, paper=None)}
    found = compare_models({"a": cases(DECODER), "b": cases(DECODER)}, "a", facts, resamples=50)
    assert column(found.tables[2], "Reduction (×)") == [None, None]
    assert column(found.tables[1], "Shown") == ["identical"] * 4


def test_other_prompts_are_told() -> None:
    tables = {"a": cases(DECODER), "b": cases(DECODER, box="whole-image")}
    found = compare_models(tables, "a", resamples=50)
    assert "Prompt: oracle (a), whole-image (b)" in found.tables[0].caption
    assert "different prompts" in found.verdicts[0]


def test_missing_results_are_counted() -> None:
    gap = DECODER.copy()
    gap[3] = np.nan
    found = compare_models({"a": cases(DECODER), "b": cases(gap)}, "a", resamples=50)
    assert column(found.tables[0], "n") == [12, 11]
    assert column(found.tables[0], "dropped") == [0, 1]
    assert column(found.tables[1], "dropped") == [1] * 4


def test_files(study: Study, tmp_path: Path) -> None:
    names = {path.name for path in write_study(study, tmp_path)}
    assert {"table-1-segmentation.tex", "table-2-efficiency.md", "table-3-ablation.csv"} <= names
    with (tmp_path / "table-1-segmentation.csv").open(newline="") as handle:
        first = next(csv.DictReader(handle))
    assert float(first["DSC"]) == pytest.approx(0.9275)
    assert float(first["DSC, paper sd"]) == 0.0664
    read = json.loads((tmp_path / "comparisons.json").read_text())
    assert len(read) == 8
    assert read[0]["wilcoxon"]["n"] == N
    assert (tmp_path / "verdicts.md").read_text().startswith("Baseline: decoder only\n\n- DSC")


def test_what_cannot_be_compared_is_told() -> None:
    one = {"a": cases(DECODER)}
    with pytest.raises(DataError, match=r"at least two models.*got a; baseline 'b'"):
        compare_models(one, "b")
    two = one | {"b": cases(DECODER)}
    with pytest.raises(DataError, match="facts of c"):
        compare_models(two, "a", {"c": ModelFacts()})
    with pytest.raises(DataError, match="'unet' is no published model; known: adalora, decoder"):
        ModelFacts(paper="unet")


def test_latex_holds_only_what_pdflatex_sets(study: Study) -> None:
    # Typographic quotes and accents are in its UTF-8 tables, Greek and mathematics are not.
    for table in study.tables:
        beyond = {c for c in latex(table) if ord(c) > 0x7F} - set("’“”")
        assert not beyond, (table.slug, beyond)


def test_how_latencies_were_taken_stands_in_the_caption() -> None:
    two = {"a": cases(DECODER), "b": cases(DECODER)}
    found = compare_models(two, "a", resamples=50, latency_note="On one machine, in turn.")
    assert "On one machine, in turn." in found.tables[2].caption


def test_the_papers_columns_stand_only_where_they_were_asked_for(study: Study) -> None:
    ours = replace(study, paper=False)
    for table, quoting in zip(ours.tables, study.tables, strict=True):
        names = [c.name for c in table.columns]
        assert names == [c.name for c in quoting.columns if not c.faint]
        assert all(len(row) == len(names) for row in table.rows)
        assert "paper" not in table.caption
    assert all("paper" in study.tables[i].caption for i in (0, 2, 3))


def test_latency_is_spoken_of_only_where_it_was_measured() -> None:
    two = {"a": cases(DECODER), "b": cases(DECODER)}
    assert "atenc" not in compare_models(two, "a", resamples=50).tables[2].caption
    timed = compare_models(two, "a", {"a": ModelFacts(latency_ms=3.0)}, resamples=50)
    assert "Latencies compare only within one run" in timed.tables[2].caption
