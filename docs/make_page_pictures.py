"""Draw docs/images/page_*.png: the page of `adalora-qat serve` on phantoms, by a real Chromium.

Run it from anywhere: ``python docs/make_page_pictures.py``. It needs the built page (`make web`),
Chromium and playwright; the server ends with it.
"""

from __future__ import annotations

import io
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from adalora_qat.phantom.phantom import phantom

IMAGES = Path(__file__).parent / "images"
SEEDS = (0, 1, 5, 3, 8)
TURNED = 3
# Name → width, height, colour scheme, scale.
VIEWS = {
    "page_light": (1280, 800, "light", 1),
    "page_dark": (1280, 800, "dark", 1),
    "page_phone": (390, 780, "dark", 1),
}
COLOURS = 256


def main() -> None:
    """Start a server, look at it, and write what is seen."""
    folder = Path(tempfile.mkdtemp())
    files = []
    for seed in SEEDS:
        picture = Image.fromarray(phantom(seed, side=900).image)
        files.append(folder / f"phantom_{seed:03d}.png")
        (picture.rotate(90) if seed == TURNED else picture).save(files[-1])
    command = [sys.executable, "-m", "adalora_qat.cli", "serve", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = server.stdout.readline().split()[-1]
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            for name, view in VIEWS.items():
                _save(_seen(browser, address, files, *view), IMAGES / f"{name}.png")
            browser.close()
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def _seen(
    browser: Browser,
    address: str,
    files: Sequence[Path],
    width: int,
    height: int,
    scheme: Literal["light", "dark"],
    scale: float,
) -> bytes:
    page = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        device_scale_factor=scale,
    )
    page.goto(address)
    page.locator("body[data-ready=true]").wait_for(timeout=120_000)
    page.set_input_files("#files", [str(file) for file in files])
    done = page.locator(".entry-state.fine, .entry-state.warned")
    done.nth(len(files) - 1).wait_for(state="attached", timeout=300_000)
    if scheme == "dark" and width > 700:
        page.keyboard.press("f")
        page.locator("#sort").select_option("warnings")
    page.wait_for_timeout(400)
    return bytes(page.screenshot())


def _save(png: bytes, path: Path) -> None:
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    # By coverage: by median the few pixels of a warning's colour would go grey.
    few = picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


if __name__ == "__main__":
    main()
