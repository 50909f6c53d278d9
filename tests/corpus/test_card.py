"""The data card."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adalora_qat.corpus.card import _curve, _outline
from adalora_qat.corpus.prepare import prepare
from adalora_qat.corpus.sources import Source
from adalora_qat.phantom.phantom import phantom, write_phantoms

VOID = {"meta", "br", "path", "image", "link", "img"}


class Outline(HTMLParser):
    """Collects tags and text, and checks that tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("card")
    write_phantoms(folder / "p", 20, side=96)
    hostile = folder / "p" / "images" / "<script>alert(1)</script>"[:8]
    Image.open(next((folder / "p" / "images").iterdir())).save(f"{hostile}.png")
    copied = sorted((folder / "p" / "images").glob("phantom*"))[0]
    copied.write_bytes(sorted((folder / "p" / "images").glob("phantom*"))[1].read_bytes())
    (folder / "p" / "images" / "notes & more.txt").write_text("x")
    Image.new("L", (96, 96), 9).save(sorted((folder / "p" / "images").glob("phantom*"))[4])
    prepare({"phantom": folder / "p"}, folder / "out", jobs=1)
    return (folder / "out" / "card.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def parsed(page: str) -> Outline:
    outline = Outline()
    outline.feed(page)
    return outline


def test_nothing_comes_from_elsewhere_and_nothing_runs(page: str, parsed: Outline) -> None:
    assert parsed.open == []
    assert not {tag for tag, _ in parsed.tags} & {"script", "link", "iframe", "img"}
    for _, attributes in parsed.tags:
        for key in ("src", "href"):
            if attributes.get(key):
                assert str(attributes[key]).startswith("data:image/jpeg;base64,")
    assert "url(" not in page and "@import" not in page
    assert "default-src 'none'" in page


def test_names_of_files_are_text(page: str) -> None:
    assert "&lt;script&gt;" in page
    assert "notes &amp; more.txt" in page


def test_it_shows_counts_and_pictures(parsed: Outline) -> None:
    text = re.sub(r"\s+", " ", parsed.text)
    assert "phantom: image unreadable" in text
    assert "Same pixels" in text
    assert "80 : 10 : 10 % for training" in text
    pictures = [a for tag, a in parsed.tags if tag == "image"]
    assert len(pictures) >= 12
    stored = base64.b64decode(str(pictures[0]["href"]).partition(",")[2])
    assert Image.open(io.BytesIO(stored)).size == (96, 96)
    outlines = [a for tag, a in parsed.tags if tag == "path" and "#ff6d5a" in str(a.get("style"))]
    assert len(outlines) >= 10


def test_it_claims_patients_only_where_ids_were_given(page: str, tmp_path: Path) -> None:
    assert "and so do the images of one patient." in page
    for name in ("images", "masks/liver"):
        (tmp_path / "a b=c" / name).mkdir(parents=True)
    for seed in range(3):
        made = phantom(seed, 64, "abdomen")
        Image.fromarray(made.image).save(tmp_path / "a b=c" / "images" / f"{seed}.png")
        Image.fromarray(made.masks["liver"]).save(tmp_path / "a b=c/masks/liver" / f"{seed}.png")
    write_phantoms(tmp_path / "p", 2, side=64)
    own = Source("pairs", tmp_path / "a b=c")
    prepare({"site_a": own}, tmp_path / "one", jobs=1)
    card = (tmp_path / "one" / "card.html").read_text(encoding="utf-8")
    assert "Duplicates stand on one side of every split. site_a: not every image has a" in card
    assert "<h2>Duplicates</h2>" in card and "patient with" not in card
    assert "stroke: var(--colour)" in card and "hsl(200 75% 62%)" in card
    prepare({"site_a": own, "phantom": tmp_path / "p"}, tmp_path / "two", jobs=1)
    card = (tmp_path / "two" / "card.html").read_text(encoding="utf-8")
    assert "of every split; so do the images of one patient of phantom. site_a: not" in card


def test_every_picture_has_a_name(parsed: Outline) -> None:
    pictures = [a for tag, a in parsed.tags if tag == "svg"]
    assert pictures and all(a["role"] == "img" and a["aria-label"] for a in pictures)


def test_an_outline_runs_round_its_mask() -> None:
    mask = np.zeros((40, 80), bool)
    mask[10:30, 20:60] = True
    numbers = [float(n) for n in re.findall(r"[\d.]+", _outline(mask, 80, 40))]
    assert min(numbers[::2]) == pytest.approx(20, abs=0.5)
    assert max(numbers[::2]) == pytest.approx(60, abs=0.5)
    assert min(numbers[1::2]) == pytest.approx(10, abs=0.5)
    assert max(numbers[1::2]) == pytest.approx(30, abs=0.5)
    assert _outline(np.zeros((4, 4), bool), 8, 8) == ""


def test_a_curve_says_where_the_levels_are() -> None:
    shares = np.zeros(64)
    shares[16:48] = 1 / 32
    curve = _curve(shares)
    assert (curve["mean"], curve["low"], curve["high"]) == (128, 68, 187)


def test_the_card_does_not_grow_with_the_images(tmp_path: Path) -> None:
    sizes = []
    for count in (30, 60):
        write_phantoms(tmp_path / str(count), count, side=64)
        prepare({"phantom": tmp_path / str(count)}, tmp_path / f"o{count}", jobs=1)
        sizes.append((tmp_path / f"o{count}" / "card.html").stat().st_size)
    assert sizes[1] < 1.2 * sizes[0]
