"""A study on a page."""

import numpy as np
import pandas as pd
import pytest

from adalora_qat.report.page import Figure, Section, render
from adalora_qat.study.study import ModelFacts, Study, compare_models
from adalora_qat.study.study_report import case_figures, study_content


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
    assert content.facts[0].value == "−0.0300"
    assert content.facts[0].note == "worse against base, n = 12"
    page = render(content)
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
