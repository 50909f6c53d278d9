"""Pages read well on a code host: links lead somewhere, words are the field's, none is empty."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("README.md", "docs/**/*.md", "results/**/*.md")
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
# Words of a workshop, with the field's beside them.
WORDS = {
    "film": "radiograph, image",
    "peer": "baseline",
    "spoilt": "degraded",
    "house": "package",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    links = LINK.findall(page.read_text("utf-8"))
    inside = [link for link in links if not link.startswith(("http://", "https://"))]
    lost = [link for link in inside if not (page.parent / link).exists()]
    assert not lost, f"{page}: {lost}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_words_of_its_own_and_of_the_field(page: Path) -> None:
    text = page.read_text("utf-8")
    prose = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    assert len(prose.split()) >= 8, f"{page} is a placeholder"
    for word, better in WORDS.items():
        found = re.search(rf"\b{word}s?\b", prose, flags=re.IGNORECASE)
        assert found is None, f"{page}: {found and found[0]!r}; say {better}"
