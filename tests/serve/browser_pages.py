"""Pages in a Chromium, and what they ask for and complain of."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adalora_qat.serve.page import built_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DONE = ".entry-state.fine, .entry-state.warned"
PATIENCE_MS = 180_000


@contextmanager
def chromium() -> Iterator[object]:
    """Start a browser, or skip with the reason why not."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH")
    if not (built_page() / "index.html").is_file():
        pytest.skip("the page is not built: `make web`")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Seen:
    """A page, and what it asked for and complained of."""

    def __init__(self, context, address: str, ready: str = "true") -> None:
        self.page = context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address, wait_until="commit")
        self.page.locator(f"body[data-ready={ready}]").wait_for(timeout=PATIENCE_MS)

    def add(self, *files: Path) -> None:
        self.page.set_input_files("#files", [str(file) for file in files])
        last = self.page.locator(DONE).nth(len(files) - 1)
        last.wait_for(state="attached", timeout=PATIENCE_MS)

    def saved(self, words: str | None = None) -> bytes:
        """Return what a button of downloads gives; the last is that of the chosen mask."""
        buttons = self.page.locator("#downloads button")
        with self.page.expect_download() as download:
            (buttons.filter(has_text=words).first if words else buttons.last).click()
        return Path(download.value.path()).read_bytes()

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Drag between places given as shares of the canvas."""
        area = self.page.locator("#canvas").bounding_box()

        def at(x: float, y: float) -> tuple[float, float]:
            return area["x"] + area["width"] * x, area["y"] + area["height"] * y

        self.page.mouse.move(*at(x0, y0))
        self.page.mouse.down()
        self.page.mouse.move(*at(x1, y1), steps=3)
        self.page.mouse.up()
        self.page.locator("#canvas:not([aria-busy=true])").wait_for(timeout=PATIENCE_MS)
