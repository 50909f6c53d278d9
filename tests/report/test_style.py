"""Figures leave the house as files that repeat, and as SVG that follows the page."""

import re
import threading
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from adalora_qat.report.style import SERIES, canvas, house_style, inline_svg, save_figure


def simple() -> Figure:
    with house_style():
        figure = canvas(3, 2)
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=SERIES[0], label="line")
        axes.fill_between([0, 1], [0, 1], hatch="//", clip_on=True)
        axes.set(title="T", xlabel="x")
    return figure


def test_three_files_and_the_same_bytes_again(tmp_path: Path) -> None:
    first = {p.suffix: p.read_bytes() for p in save_figure(simple(), tmp_path / "a" / "fig.1")}
    second = {p.suffix: p.read_bytes() for p in save_figure(simple(), tmp_path / "b" / "fig.1")}
    assert first.keys() == {".svg", ".pdf", ".png"}
    assert first == second
    with Image.open(tmp_path / "a" / "fig.1.png") as picture:
        assert picture.size == (600, 400)
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_inline_svg_is_xml_with_a_name_and_own_ids() -> None:
    svg = inline_svg(simple(), "fig-a", 'Loss < 1 & "falling"')
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == 'Loss < 1 & "falling"'
    assert root.get("role") == "img"
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert ids
    assert all(name.startswith("fig-a-") for name in ids)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    assert used
    assert used <= set(ids)


def test_inline_svg_takes_the_pages_colours_and_keeps_text() -> None:
    svg = inline_svg(simple(), "fig-b", "alt")
    for variable in ("--ink", "--faint", "--grid", "--blue"):
        assert f"var({variable})" in svg
    assert ">T</text>" in svg


def test_style_does_not_leak() -> None:
    before = dict(matplotlib.rcParams)
    simple()
    assert dict(matplotlib.rcParams) == before


def test_series_can_be_told_apart_without_colour_vision() -> None:
    """Deuteranopia by Viénot et al. 1999: colours stay at least 10 apart in lightness or hue."""

    def seen(colour: str) -> tuple[float, float]:
        r, g, b = (((int(colour[i : i + 2], 16) / 255) ** 2.2) for i in (1, 3, 5))
        yellow = 0.2924 * r + 0.7076 * g
        light = 0.2126 * r + 0.7152 * g + 0.0722 * b
        return 116 * light ** (1 / 3) - 16, 100 * (yellow ** (1 / 3) - b ** (1 / 3))

    places = [seen(colour) for colour in SERIES]
    for i, one in enumerate(places):
        for other in places[:i]:
            assert max(abs(one[0] - other[0]), abs(one[1] - other[1])) > 10


def test_figures_can_be_drawn_in_threads(tmp_path: Path) -> None:
    figure = simple()
    worker = threading.Thread(target=save_figure, args=(figure, tmp_path / "t"))
    worker.start()
    worker.join()
    assert (tmp_path / "t.png").is_file()
