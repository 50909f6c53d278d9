"""The page as data, as HTML, and in a real browser."""

import base64
import io
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from adalora_qat.errors import DataError
from adalora_qat.phantom.phantom import phantom
from adalora_qat.report.figures import file_sizes
from adalora_qat.report.page import (
    Case,
    Fact,
    Figure,
    Gallery,
    ReportContent,
    Section,
    case_table,
    drawn,
    reduced,
    render,
    write_report,
)
from adalora_qat.report.tables import Column, Spread, Table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def shifted(mask: np.ndarray, pixels: int) -> np.ndarray:
    return np.roll(mask, pixels, axis=1)


def case(seed: int, side: int = 128) -> Case:
    drawn_phantom = phantom(seed, side=side)
    truth = drawn_phantom.masks["left_lung"] | drawn_phantom.masks["right_lung"]
    return Case(
        f"phantom/{seed:03d}",
        drawn_phantom.image,
        truth,
        {"FP32": shifted(truth, 1), "INT8": shifted(truth, 1 + seed % 3)},
        {"FP32": {"dsc": 0.97}, "INT8": {"dsc": 0.97 - 0.01 * seed, "hd95_px": 3.0}},
        {"source": "phantom" if seed % 2 else "other", "class": "normal"},
        (10.0, 12.0, 100.0, 110.0),
    )


def gallery(count: int = 4, side: int = 128) -> Gallery:
    cases = tuple(case(seed, side) for seed in range(count))
    return Gallery("cases", "Test cases", cases, ("FP32", "INT8"), ("FP32", "INT8"))


def content(count: int = 4, side: int = 128) -> ReportContent:
    sizes = pd.DataFrame({"name": ["FP32", "INT8"], "bytes": [40_000_000, 12_000_000]})
    table = Table(
        "results",
        "Accuracy",
        "Mean ± sd.",
        (Column("Model"), Column("DSC", 4), Column("n"), Column("Paper DSC", 4, faint=True)),
        (
            ("b <model>", Spread(0.5, 0.1), 10, None),
            ("a", Spread(0.9, 0.2), 9, 0.95),
            ("c", Spread(0.7, 0.2), 100, 0.96),
        ),
        frozenset({1}),
    )
    pixel = io.BytesIO()
    Image.new("L", (8, 8), 128).save(pixel, "PNG")
    shown = gallery(count, side)
    return ReportContent(
        'A run & its "results"',
        "What was run.",
        (
            Section("results-section", "Results", ("Prose.", table)),
            Section(
                "figures-section",
                "Figures",
                (
                    drawn("sizes", "Sizes", "the last bar.", "Bars of sizes", file_sizes(sizes)),
                    Figure("picture", "A picture", "the grey.", "A grey square", pixel.getvalue()),
                ),
            ),
            Section("cases-section", "Cases", (shown, case_table(shown, ["dsc"]))),
        ),
        (Fact("Dice", "0.97", "of 1"),),
        {"Seed": "0"},
        {"Configuration": "seed: 0 # <none>"},
    )


class Structure(HTMLParser):
    """Collects ids, references and outside addresses; fails on doubled ids."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.inner: list[str] = []
        self.outer: list[str] = []
        self.pictures: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("id"):
            self.ids.append(values["id"] or "")
        for key in ("href", "src", "xlink:href"):
            link = values.get(key) or ""
            if link.startswith("#"):
                self.inner.append(link[1:])
            elif link and not link.startswith("data:"):
                self.outer.append(link)
        if tag == "img" or (tag == "svg" and values.get("aria-hidden") != "true"):
            self.pictures.append({"tag": tag, **values})


@pytest.fixture(scope="module")
def page() -> str:
    return render(content())


def test_every_reference_stays_inside_the_page(page: str) -> None:
    found = Structure()
    found.feed(page)
    assert found.outer == []
    assert sorted(found.ids) == sorted(set(found.ids))
    assert set(found.inner) <= set(found.ids)
    assert "default-src 'none'" in page


def test_every_picture_has_a_text(page: str) -> None:
    found = Structure()
    found.feed(page)
    assert len(found.pictures) > 20
    for picture in found.pictures:
        text = picture.get("alt") if picture["tag"] == "img" else picture.get("aria-label")
        assert text, picture


def test_names_from_outside_are_escaped(page: str) -> None:
    assert "b &lt;model&gt;" in page
    assert "b <model>" not in page
    assert "<title>A run &amp; its &#34;results&#34;</title>" in page


def test_figures_follow_the_theme(page: str) -> None:
    svg = re.search(r'<svg[^>]*aria-label="Bars of sizes".*?</svg>', page, re.DOTALL)
    assert svg
    assert "var(--ink)" in svg[0]
    assert "#1b2027" not in svg[0]


def test_csv_in_the_page_is_the_table(page: str) -> None:
    uri = re.search(r'download="results.csv" href="data:text/csv;base64,([^"]+)"', page)
    assert uri
    lines = base64.b64decode(uri[1]).decode().splitlines()
    assert lines[0] == "Model,DSC,DSC sd,n,Paper DSC"
    assert lines[2] == "a,0.9,0.2,9,0.95"


def test_case_of_another_size_is_refused() -> None:
    with pytest.raises(DataError, match=r"x/1.*'INT8'.*\(4, 4\).*\(8, 8\)"):
        Case("x/1", np.zeros((8, 8)), None, {"INT8": np.zeros((4, 4), bool)})


def test_doubled_and_missing_are_refused() -> None:
    one = case(0)
    with pytest.raises(DataError, match="doubled case ids: phantom/000"):
        Gallery("g", "G", (one, one), ("FP32",))
    with pytest.raises(DataError, match=r"phantom/000 has no mask of INT4"):
        Gallery("g", "G", (one,), ("INT4",))
    with pytest.raises(DataError, match="at most 4"):
        Gallery("g", "G", (one,), tuple("abcde"))


def test_a_reduced_case_looks_the_same_and_counts_as_before() -> None:
    whole = case(2, side=600)
    small = reduced(whole, ("FP32", "INT8"), side=448)
    assert small.image.shape == (448, 448)
    assert small.size == (600, 600)
    differing = int((whole.masks["FP32"] != whole.masks["INT8"]).sum())
    pages = [
        render(
            ReportContent(
                "T", "s", (Section("c", "C", (Gallery("g", "G", (each,), ("FP32", "INT8"),
                ("FP32", "INT8")),)),)
            )
        )
        for each in (whole, small)
    ]  # fmt: skip
    for page in pages:
        assert f"{differing:,} of 360,000 px" in page
        assert "600 × 600" in page
    boxes = [re.search(r'<rect class="box" (.*?)/>', page) for page in pages]
    assert boxes[0] and boxes[1]
    assert boxes[0][1] == boxes[1][1]


def test_hundred_cases_weigh_less_than_ten_megabytes() -> None:
    one = case(1, side=512)
    cases = tuple(
        Case(f"p/{i}", np.roll(one.image, i, 1), one.truth, one.masks, one.metrics, one.facts)
        for i in range(10)
    )
    alone = len(render(ReportContent("t", "s", ())))
    shown = Gallery("g", "G", cases, ("FP32", "INT8"), ("FP32", "INT8"))
    ten = len(render(ReportContent("t", "s", (Section("c", "C", (shown,)),))))
    assert alone + 10 * (ten - alone) < 9_000_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    write_report(content(), tmp_path / "report.html")
    view = browser.new_page(viewport={"width": 1280, "height": 800})
    problems: list[str] = []
    view.on("console", lambda message: problems.append(message.text))
    view.on("pageerror", lambda error: problems.append(str(error)))
    view.set_default_timeout(5000)
    view.on(
        "request",
        lambda asked: asked.url.startswith(("file:", "data:")) or problems.append(asked.url),
    )
    view.goto((tmp_path / "report.html").as_uri())
    yield view
    assert problems == []
    view.close()


@pytest.mark.browser
def test_pictures_load(opened: Any) -> None:
    broken = opened.evaluate(
        """async () => {
          const sources = [...document.querySelectorAll("img, svg image")]
            .map((node) => node.getAttribute("src") ?? node.getAttribute("href"));
          const load = (source) => new Promise((done) => {
            const image = new Image();
            image.onload = () => done(image.naturalWidth > 0);
            image.onerror = () => done(false);
            image.src = source;
          });
          const loaded = await Promise.all(sources.map(load));
          return [sources.length, loaded.filter((fine) => !fine).length];
        }"""
    )
    assert broken[0] >= 4 * 5
    assert broken[1] == 0


@pytest.mark.browser
def test_tables_sort_by_value_and_missing_comes_last(opened: Any) -> None:
    table = opened.locator("#results table")
    first = table.locator("tbody tr th")

    def names() -> list[str]:
        return [name.strip() for name in first.all_inner_texts()]

    table.get_by_role("button", name="n", exact=True).click()
    assert names() == ["a", "b <model>", "c"]
    table.get_by_role("button", name="DSC", exact=True).press("Enter")
    assert names() == ["b <model>", "c", "a"]
    table.get_by_role("button", name="Paper DSC").click()
    assert names() == ["a", "c", "b <model>"]
    table.get_by_role("button", name="Paper DSC").click()
    assert names() == ["c", "a", "b <model>"]
    assert table.locator("[aria-sort]").count() == 1


@pytest.mark.browser
def test_a_case_is_found_and_the_rest_hidden(opened: Any) -> None:
    visible = opened.locator(".case:visible h4")
    assert visible.count() == 4
    opened.get_by_label("Find a case").fill("002")
    assert visible.all_inner_texts() == ["phantom/002"]
    assert opened.locator(".count").inner_text() == "1 of 4 cases"
    opened.get_by_label("Find a case").fill("no such case")
    opened.get_by_role("button", name="Show all").click()
    assert visible.count() == 4
    opened.get_by_label("Source").select_option("other")
    assert visible.all_inner_texts() == ["phantom/000", "phantom/002"]
    opened.get_by_label("Order").select_option("worst")
    assert visible.all_inner_texts() == ["phantom/002", "phantom/000"]


@pytest.mark.browser
def test_layers_and_views_switch_by_mouse_and_keys(opened: Any) -> None:
    opened.locator("label.view").click()
    stage = opened.locator(".stage").first
    truth = stage.locator("[data-layer=truth]")
    difference = stage.locator("[data-layer=difference]")

    def shown(layer: Any) -> bool:
        return bool(layer.evaluate("node => getComputedStyle(node).display !== 'none'"))

    assert shown(truth)
    assert not shown(difference)
    opened.get_by_role("checkbox", name="Truth").press("Space")
    assert not shown(truth)
    enlarge = opened.locator(".enlarge").first
    enlarge.press("Enter")
    assert enlarge.get_attribute("aria-expanded") == "true"
    opened.keyboard.press("4")
    assert shown(difference)
    opened.keyboard.press("ArrowRight")
    assert opened.locator(".case.open h4").all_inner_texts() == ["phantom/001"]
    opened.keyboard.press("Escape")
    assert opened.locator(".case.open").count() == 0


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_spills_over_the_side(opened: Any, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_page(opened: Any, scheme: str) -> None:
    opened.emulate_media(color_scheme=scheme)
    colours = opened.evaluate(
        """() => [...document.querySelectorAll("p, td, th, dt, dd, h1, h2, h3, a, small")]
          .filter((node) => node.offsetParent)
          .map((node) => getComputedStyle(node).color)"""
    )
    ground = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    for colour in set(colours):
        assert contrast(colour, ground) >= 4.5, (colour, ground)


@pytest.mark.browser
def test_theme_button_turns_the_page(opened: Any) -> None:
    before = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    opened.get_by_role("button", name="Switch between light and dark").click()
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") != before


@pytest.mark.browser
def test_without_script_layers_still_switch_and_nothing_dead_is_shown(
    browser: Any, tmp_path: Path
) -> None:
    write_report(content(2), tmp_path / "report.html")
    view = browser.new_page(java_script_enabled=False)
    view.goto((tmp_path / "report.html").as_uri())
    assert view.locator("input[type=search]").is_hidden()
    assert view.locator(".enlarge").first.is_hidden()
    view.locator("label.view").click()
    assert view.locator(".stage").first.is_visible()
    view.close()


def contrast(first: str, second: str) -> float:
    """WCAG 2.1 contrast ratio of two CSS rgb() colours."""

    def luminance(colour: str) -> float:
        channels = [float(part) / 255 for part in re.findall(r"[\d.]+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
