"""The page in a browser: what a hand can do, and what must not happen."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from browser_pages import Seen, chromium
from PIL import Image

from adalora_qat.imaging.memory_file import MemoryFile
from adalora_qat.phantom.phantom import phantom
from adalora_qat.runtime.model import Model

pytestmark = pytest.mark.browser
AXE = Path(__file__).parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with chromium() as started:
        yield started


@pytest.fixture
def radiograph(tmp_path: Path) -> Path:
    path = tmp_path / "phantom <b>7.png"
    Image.fromarray(phantom(7, side=400).image).save(path)
    return path


def test_a_radiograph_from_drop_to_downloads(
    browser,
    client: httpx.Client,
    model: Model,
    radiograph: Path,
    dicom: Path,
) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    seen = Seen(context, str(client.base_url))
    seen.add(radiograph, dicom)
    page = seen.page
    result = model(MemoryFile(radiograph.name, radiograph.read_bytes()))

    expected = result.save(radiograph.parent / "out")
    assert seen.saved("Mask PNG") == expected[0].read_bytes()
    assert seen.saved("Overlay PNG") == expected[1].read_bytes()
    facts = json.loads(seen.saved("Result JSON"))
    wanted = json.loads(json.dumps(result.to_json()))
    assert {**facts, "seconds": 0} == {**wanted, "seconds": 0}
    assert f"{result.confidence:.2f}" in page.locator("#trust-value").inner_text()

    # A box: an object of its own, whose mask is the library's for that box.
    page.keyboard.press("b")
    seen.drag(0.35, 0.2, 0.6, 0.8)
    page.locator("#structures li").nth(len(result.masks)).wait_for()
    facts = json.loads(seen.saved("Result JSON"))
    again = model(MemoryFile(radiograph.name, radiograph.read_bytes()), box=facts["box"])
    assert facts["area_px"] == again.to_json()["area_px"]

    # The brush changes the chosen mask, and undo gives it back to the byte.
    page.locator("#structures .pick").first.click()
    before = seen.saved()
    page.keyboard.press("d")
    seen.drag(0.48, 0.5, 0.52, 0.5)
    corrected = seen.saved()
    shape = Image.open(io.BytesIO(corrected)).size
    assert shape == (400, 400)
    assert not np.array_equal(*(np.asarray(Image.open(io.BytesIO(x))) for x in (before, corrected)))
    page.keyboard.press("Control+z")
    restored = seen.saved()
    assert restored == before
    first = np.asarray(Image.open(io.BytesIO(before))) > 0
    assert np.array_equal(first, result.masks[0])

    # HTML in a name, or in the tags of a DICOM file, is text.
    assert radiograph.name in page.locator("#list").inner_text()
    assert page.locator("#list b").count() == 0
    page.keyboard.press("ArrowDown")
    assert "1.100 mm" in page.locator("#readout").inner_text()
    own = str(client.base_url)
    assert all(url.startswith((own, "blob:", "data:")) for url in seen.requests)
    assert seen.complaints == []
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_serious_fault_for_those_who_cannot_see(
    browser,
    client: httpx.Client,
    radiograph: Path,
    scheme: str,
    width: int,
) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: `npm ci` in web/")
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True
    )
    seen = Seen(context, str(client.base_url))
    seen.add(radiograph)
    seen.page.add_script_tag(path=str(AXE))
    for tab in ("worklist", "stage", "findings") if width < 700 else ("stage",):
        if width < 700:
            seen.page.click(f".tabs [data-tab={tab}]")
        found = seen.page.evaluate("axe.run()")["violations"]
        grave = [each["id"] for each in found if each["impact"] in ("serious", "critical")]
        assert grave == []
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_a_file_that_is_no_image_is_said_to_be_none(browser, client, tmp_path: Path) -> None:
    context = browser.new_context()
    seen = Seen(context, str(client.base_url))
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    seen.page.set_input_files("#files", str(bad))
    seen.page.locator(".entry-state.failed").wait_for(timeout=60_000)
    assert "bad.png" in seen.page.locator("#hint").inner_text()
    context.close()
