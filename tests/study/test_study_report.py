"""A study on a page, and a run folder's artefacts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from adalora_qat.report.page import Case, Figure, Gallery, Section, Table, render
from adalora_qat.study.study import ModelFacts, Study, compare_models
from adalora_qat.study.study_report import (
    case_figures,
    curves_note,
    results_table,
    run_content,
    run_headline,
    study_content,
)


def cases(shift: float) -> pd.DataFrame:
    n = 12
    dsc = 0.9 + 0.005 * np.arange(n) + shift
    return pd.DataFrame(
        {
            "id": [f"c/{i}" for i in range(n)], "source": ["a", "b"] * (n // 2),
            "label": None, "patient": None, "target": "lung", "box": "oracle",
            "altered": "as-read", "status": "ok", "empty": "no", "height": 64, "width": 64,
            "truth_resized": 0, "truth_area_px": 500 + np.arange(n), "score": 0.9, "dsc": dsc,
            "iou": dsc / (2 - dsc), "nsd_deepmind2d_2px": dsc, "nsd_medsam_2px": dsc,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def study() -> Study:
    facts = {"base": ModelFacts(bytes=4_000_000), "int8": ModelFacts(bytes=1_000_000)}
    return compare_models(
        {"base": cases(0), "int8": cases(-0.03)}, "base", facts, metrics=("dsc",), resamples=50
    )


def test_page_has_every_table_once_and_the_pooled_verdicts(study: Study) -> None:
    content = study_content("Study", "Two models.", study)
    assert [section.slug for section in content.sections] == [
        "segmentation", "differences", "efficiency", "ablation", "by-case",
    ]  # fmt: skip
    verdicts = [block for block in content.sections[1].blocks if isinstance(block, str)]
    assert len(verdicts) == 1  # pooled; the two data sets stand in the table
    assert verdicts[0].startswith("DSC (lung), int8 against base: 12 cases")
    base, int8 = content.facts
    assert (base.value, base.beside, base.note) == ("0.9275", "", "the baseline, n = 12")
    assert (int8.label, int8.value, int8.beside) == ("DSC, int8", "0.8975", "Δ −0.0300")
    assert int8.note == "worse against base, n = 12"
    page = render(content)
    assert "0.8975 <small>Δ −0.0300</small>" in page
    for slug in ("table-1-segmentation", "table-2-efficiency", "table-3-ablation", "front"):
        assert page.count(f'id="{slug}"') == 1


def test_figures_that_say_nothing_are_left_out(study: Study) -> None:
    slugs = [figure.slug for figure in case_figures(study.cases)]
    assert slugs == ["dice-by-source", "dice-by-area", "reliability"]  # no class is known
    bare = study.cases.assign(score=np.nan, source="a")
    assert [figure.slug for figure in case_figures(bare)] == ["dice-by-area"]


def test_models_without_a_size_have_no_front() -> None:
    plain = compare_models({"a": cases(0), "b": cases(0)}, "a", metrics=("dsc",), resamples=50)
    blocks = study_content("S", "s", plain).sections[2].blocks
    assert not any(isinstance(block, Figure) for block in blocks)


def test_the_front_speaks_of_latency_only_where_it_was_measured(study: Study) -> None:
    def front(given: Study) -> Figure:
        return next(
            block
            for section in study_content("S", "s", given).sections
            for block in section.blocks
            if isinstance(block, Figure) and block.slug == "front"
        )

    timed = replace(study, facts={**study.facts, "int8": ModelFacts(bytes=9, latency_ms=2.0)})
    assert "atency" not in front(study).title + front(study).alt
    assert "latency" in front(timed).title
    assert "latency" in front(timed).alt


def test_curves_speak_of_integers_only_where_they_were_trained() -> None:
    one = pd.DataFrame({"stage": ["Stage 1"]})
    both = pd.DataFrame({"stage": ["Stage 1", "Stage 2"]})
    assert "INT8" not in curves_note(one)
    assert "INT8" in curves_note(both)


def test_further_sections_stand_before_the_galleries(study: Study) -> None:
    content = study_content("S", "s", study, sections=[Section("more", "More", ("Words.",))])
    assert [section.slug for section in content.sections][-1] == "more"
    # A section without content would be an empty heading.
    empty = study_content("S", "s", study, sections=[Section("none", "None", ())])
    assert "none" not in [section.slug for section in empty.sections]


def test_one_model_alone_has_no_differences() -> None:
    table = cases(0).assign(model="only")
    alone = Study("only", table, {"only": ModelFacts()}, ())
    content = study_content("S", "s", alone)
    assert "differences" not in [section.slug for section in content.sections]
    assert not content.attachments


@pytest.fixture
def summary() -> dict[str, Any]:
    def row(name: str, dice: float) -> dict[str, Any]:
        return {"name": name, "dice_mean": dice, "dice_std": 0.01, "iou_mean": dice - 0.03, "n": 8}

    rows = [row("zero_shot", 0.9), row("stage1", 0.97), row("int8_runtime", 0.969)]
    return {
        "rows": rows,
        "sizes_bytes": {"fp32": 39_000_000, "int8_onnx": 13_000_000},
        "ranks": {"a.qkv": 7},
        "parity": {"dice_min": 0.9991, "pixel_agreement": 0.99987},
        "seconds": {"stage1": 60.0, "export": 30.0},
        "seed": 0,
        "versions": {"torch": "2.13", "numpy": "2.4"},
        "git_commit": None,
    }


def one_case() -> Case:
    image = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    mask = np.zeros((64, 64), bool)
    mask[8:40, 8:40] = True
    return Case("p/1", image, mask, {"FP32": mask, "INT8": ~mask}, {"INT8": {"dsc": 0.5}})


def test_results_tell_the_gap_to_stage_one(summary: dict[str, Any]) -> None:
    table = results_table(summary["rows"])
    column = [c.name for c in table.columns].index("Δ DSC to stage 1")
    assert [row[column] for row in table.rows] == pytest.approx([-0.07, 0.0, -0.001])
    assert table.emphasised == {2}


def test_headline_of_a_run(summary: dict[str, Any]) -> None:
    facts = {fact.label: fact for fact in run_headline(summary)}
    assert facts["Dice, INT8 as shipped"].value == "0.9690"
    assert facts["Dice, INT8 as shipped"].note == "−0.0010 against FP32, n = 8"
    assert facts["Size of the model"].value == "13.0 MB"
    assert "3.00× smaller" in facts["Size of the model"].note
    assert facts["Time"].value == "1.5 min"


def test_page_of_a_whole_run(left_by_training: Path, summary: dict[str, Any]) -> None:
    content = run_content(
        "Demo", "A run.", summary, left_by_training, [one_case()], {"Config": "seed: 0"}
    )
    slugs = [section.slug for section in content.sections]
    assert slugs == ["results", "training", "size", "cases-section", "time"]
    gallery = content.sections[3].blocks[0]
    assert isinstance(gallery, Gallery)
    assert gallery.compared == ("FP32", "INT8")
    assert content.provenance == {"seed": "0", "versions": "torch 2.13, numpy 2.4"}
    page = render(content)
    assert "4,096 of 4,096 px" in page


def test_page_without_histories_or_cases(tmp_path: Path, summary: dict[str, Any]) -> None:
    content = run_content("Demo", "A run.", summary, tmp_path, [])
    assert [section.slug for section in content.sections] == ["results", "size", "time"]
    assert all(isinstance(b, Table) for b in content.sections[0].blocks)
    render(content)
