"""The whole page from a run folder, what it keeps, and that it goes on where it stopped."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

from adalora_qat.corpus.splits import read_manifest, records_of
from adalora_qat.errors import DataError
from adalora_qat.export.onnx import export_onnx
from adalora_qat.export.run import golden_case
from adalora_qat.model.sam import random_segmenter
from adalora_qat.study import measure as measure_module
from adalora_qat.study.entries import entries_of
from adalora_qat.study.measure import Bench, Measured, forecast, some
from adalora_qat.study.models import Model, models_of, shared_structures
from adalora_qat.study.study import ModelFacts
from adalora_qat.study.study_page import Scope, choose_baseline, report_study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SMALL = Scope(
    full=True, jitter_cases=2, robustness_cases=2, speed_cases=0, gallery_cases=4, paper=True
)


class Silent:
    """Counts the work that it is told of."""

    def __init__(self) -> None:
        self.phases: list[str] = []

    def phase(self, name: str) -> None:
        self.phases.append(name)

    def progress(self, done: int, total: int, what: str) -> None:
        pass


def bench(trained: Any, folder: Path) -> Bench:
    records = records_of(read_manifest(trained.data), "test", "lung")
    return Bench(tuple(records), "lung", folder, Silent(), cpu=True)


@pytest.fixture(scope="module")
def page(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    chosen = bench(trained, out.with_name("report_files"))
    report_study(models_of([str(trained.run)]), chosen, out, None, SMALL)
    return out


def test_the_page_has_each_table_and_figure_of_the_paper(page: Path) -> None:
    html = page.read_text("utf-8")
    for slug in (
        "table-1-segmentation", "table-1-differences", "table-2-efficiency", "table-3-ablation",
        "fig-2-ssim", "fig-3-weight-error", "fig-3-by-layer", "fig-3-layer-0", "weight-error",
        "curves-run", "ranks-run", "rank-table-run", "box-jitter", "degradations", "worst-cases",
        "dice-by-area", "front", "per-case", "cases",
    ):  # fmt: skip
        assert html.count(f'id="{slug}"') == 1, slug
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    # Nothing is asked of the network, every table can be taken away, every figure is explained.
    assert not re.search(r'(?:src|href)="https?:', html)
    assert html.count('<table class="data') == html.count('href="data:text/csv')
    assert html.count("figure-block") - html.count(".figure-block") <= html.count("Look for")
    curves = html[html.index('id="curves-decoder-only"') :]
    assert "Stage 1: Decoder fine-tuning" in curves[: curves.index("</figure>")]
    assert "2.7e-05" in html
    assert "7.8e-03" in html


def test_tables_stand_beside_the_page_too(page: Path) -> None:
    tables = page.with_name("report_files") / "tables"
    assert "Full QAT" in (tables / "table-1-segmentation.md").read_text("utf-8")
    assert "booktabs" in (tables / "table-2-efficiency.tex").read_text("utf-8")


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390, 360])
def test_the_page_opens_in_a_browser_at_any_width(page: Path, width: int) -> None:
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    problems: list[str] = []
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = chromium.new_page(viewport={"width": width, "height": 800})
        view.on("console", lambda message: problems.append(message.text))
        view.on("pageerror", lambda error: problems.append(str(error)))
        view.goto(page.as_uri())
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        shown = view.locator("#cases article:visible").count()
        view.locator("#cases input[type=search]").fill("no such case")
        assert shown == 4
        assert view.locator("#cases article:visible").count() == 0
        chromium.close()
    assert problems == []


def test_every_drawing_stands_beside_the_page_as_a_picture_of_its_own(page: Path) -> None:
    folder = page.with_name("report_files") / "figures"
    for name in ("fig-2-ssim", "fig-3-weight-error", "degradations", "front"):
        root = ElementTree.parse(folder / f"{name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.get("viewBox")
    # The page's colours are its own; a file outside it has ink.
    assert not any("var(--" in file.read_text("utf-8") for file in folder.iterdir())


def test_the_folder_names_what_the_last_report_compared(page: Path) -> None:
    folder = page.with_name("report_files")
    leftover = folder / "cases" / "adalora-of-an-older-training"
    shutil.copytree(next(folder.glob("cases/adalora-*")), leftover)
    names = [entry.name for entry in entries_of(str(folder))]
    shutil.rmtree(leftover)
    assert names == [
        "Random weights", "Decoder fine-tuning", "AdaLoRA", "PTQ", "Full QAT", "Full QAT, ONNX",
    ]  # fmt: skip


def test_what_was_measured_is_not_measured_again(
    page: Path, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = page.with_name("report_files")
    tables = {p: p.stat().st_mtime_ns for p in folder.rglob("cases.parquet")}
    # Six models; two of them under 6 kinds of boxes and 30 degrees of damage.
    assert len(tables) == 6 + 2 * (6 + 30)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a finished sweep was measured again")

    monkeypatch.setattr(measure_module, "evaluate_prompts", forbidden)
    monkeypatch.setattr(measure_module, "evaluate_degradations", forbidden)
    again = page.with_name("again.html")
    report_study(models_of([str(trained.run)]), bench(trained, folder), again, None, SMALL)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("cases.parquet")} == tables
    assert again.is_file()


def test_by_default_each_case_is_predicted_once_and_the_file_stands_for_its_simulation(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    open_model = Model.open

    def counted(model: Model, *, cpu: bool = True) -> Any:
        opened.append(model.name)
        return open_model(model, cpu=cpu)

    monkeypatch.setattr(Model, "open", counted)
    models = models_of([str(trained.run)])
    out, chosen = tmp_path / "report.html", bench(trained, tmp_path / "files")
    study = report_study(models, chosen, out, None, Scope())
    measured = [m.name for m in models if m.name != "Full QAT"]
    assert study.models == opened == measured
    html = out.read_text("utf-8")
    for slug in (
        "table-1-segmentation", "table-1-differences", "table-2-efficiency", "table-3-ablation",
        "fig-3-weight-error", "weight-error", "curves-run", "ranks-run", "front", "per-case",
        "cases", "provenance",
    ):  # fmt: skip
        assert html.count(f'id="{slug}"') == 1, slug
    for slug in ("fig-2-ssim", "fig-3-layer-0", "box-jitter", "degradations", "worst-cases"):
        assert f'id="{slug}"' not in html, slug
    assert "Full QAT: measured as exported" in html
    # What the page does not measure or was not asked to quote, it does not speak of.
    for words in ("atency compare", "the paper", ", paper", "CPU latency:", "min: "):
        assert words not in html, words
    opened.clear()
    report_study(models, chosen, tmp_path / "again.html", None, Scope())
    assert opened == []  # kept from before: no model is loaded


def test_the_forecast_is_of_the_seconds_that_were_measured(trained: Any, tmp_path: Path) -> None:
    chosen = bench(trained, tmp_path)
    float_model, _, onnx = models_of([str(trained.run)])[-3:]
    assert (float_model.kind, onnx.kind) == ("ptq", "onnx")
    cases = pd.DataFrame({"seconds": [60.0, 60.0, 90.0]})
    found = [Measured(m, cases, ModelFacts(), tmp_path) for m in (float_model, onnx)]
    # One minute a case: 2 × 2 × 30 images; boxes: each image once, and six times for the file.
    assert forecast(chosen, found, 2, 2) == (
        "about 134 min: 2 models × 2 cases × 30 alterations + 2 models × 2 cases × 6 boxes"
    )
    assert forecast(chosen, found[:1], 0, 1) == "about 30 min: 1 model × 1 case × 30 alterations"
    assert forecast(chosen, found, 0, 0) == ""


def test_a_single_model_has_a_page_without_differences(trained: Any, tmp_path: Path) -> None:
    only = models_of([str(trained.run / "int8.onnx")])
    none = Scope(speed_cases=2, gallery_cases=0, title="My lungs")
    out = tmp_path / "one.html"
    study = report_study(only, bench(trained, tmp_path / "one_files"), out, None, none)
    html = out.read_text("utf-8")
    assert 'id="table-1-segmentation"' in html
    assert "<h1>My lungs</h1>" in html
    assert "<title>My lungs</title>" in html
    assert 'id="differences"' not in html
    assert "compared with" not in html
    assert 'id="box-jitter"' not in html
    assert 'id="fig-2-ssim"' not in html  # one model has nothing to be held against
    assert (study.facts[only[0].name].latency_ms or 0) > 0


def test_nothing_is_written_for_what_cannot_be_done(trained: Any, tmp_path: Path) -> None:
    models = models_of([str(trained.run)])
    out = tmp_path / "report.html"
    chosen = bench(trained, tmp_path / "report_files")
    with pytest.raises(DataError, match="'unet' is none of the models: Random weights; Decoder"):
        report_study(models, chosen, out, "unet", SMALL)
    with pytest.raises(DataError, match="no case with a mask of lung"):
        report_study(models, Bench((), "lung", out, Silent()), out, None, SMALL)
    with pytest.raises(DataError, match="must be 0"):
        Scope(jitter_cases=-1)
    assert (Scope().sweeps, Scope().timed_images) == ((0, 0), 0)
    assert (Scope(full=True).sweeps, Scope(full=True).timed_images) == ((24, 8), 5)
    assert Scope(full=True, jitter_cases=0).sweeps == (0, 8)
    assert not list(tmp_path.iterdir())


def test_decoder_fine_tuning_is_the_baseline_where_there_is_one(trained: Any) -> None:
    models: Sequence[Model] = models_of([str(trained.run)])
    assert choose_baseline(models, None) == "Decoder fine-tuning"
    assert (
        choose_baseline([m for m in models if m.name != "Decoder fine-tuning"], None) == "AdaLoRA"
    )
    assert choose_baseline(models[-1:], None) == "Full QAT, ONNX"


def test_some_cases_are_spread_and_always_the_same(trained: Any) -> None:
    records = records_of(read_manifest(trained.data), None, "lung")
    few = some(records, 5)
    assert [r.id for r in few] == [r.id for r in some(list(reversed(records)), 5)]
    assert len({r.id for r in few}) == 5
    assert len(some(records, 1000)) == len(records)


def test_a_model_of_structures_has_a_row_for_each_and_the_ratio(
    trained: Any, tmp_path: Path
) -> None:
    names = ("left_lung", "right_lung", "heart")
    segmenter = random_segmenter("tiny-test", 0, structures=names)
    case = golden_case(segmenter.variant.frame, names)
    export_onnx(segmenter, tmp_path / "m.onnx", [case], policy="none", sources={}, structures=names)
    models = models_of([str(tmp_path / "m.onnx")])
    assert shared_structures(models) == names
    records = records_of(read_manifest(trained.data), "test")
    asked = Bench(
        tuple(records), "lung", tmp_path / "files", Silent(), True, 2, (*names, "lung"), "automatic"
    )  # fmt: skip
    scope = Scope(gallery_cases=2, weight_error=False)
    study = report_study(models, asked, tmp_path / "report.html", None, scope)
    assert set(study.cases["target"]) == {*names, "lung"}
    assert set(study.cases["box"]) == {"automatic"}
    html = (tmp_path / "report.html").read_text("utf-8")
    shown = html[html.index('id="structures-table"') : html.index('id="ratio-table"')]
    for words in ("left lung", "right lung", "heart", "lung", "mean"):
        assert f">{words}<" in shown.replace("\n", "").replace("  ", "")
