"""The page without a server: the model in the browser, held against the library."""

import base64
import gzip
import hashlib
import io
import json
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from browser_pages import Seen, chromium
from PIL import Image

from adalora_qat.errors import CheckpointError
from adalora_qat.phantom.phantom import phantom
from adalora_qat.runtime.graph_file import names_of
from adalora_qat.runtime.model import Model
from adalora_qat.runtime.packaged import MODEL, weights_folder
from adalora_qat.serve.page import built_page
from adalora_qat.serve.static_site import part, write_site

# One browser, so one process: each start compiles and loads some 30 MB.
pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("alone")]
FILE = weights_folder() / MODEL


@pytest.fixture(scope="module")
def site(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (built_page() / "alone.html").is_file():
        pytest.skip("the page is not built: `make web`")
    if "points" not in names_of(FILE.read_bytes()).inputs:
        pytest.skip("the packaged model is of an earlier form, which cannot be cut in two")
    out = tmp_path_factory.mktemp("site")
    write_site(model, FILE, out)
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with chromium() as started:
        yield started


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / max(1, one.sum() + other.sum())


def test_from_the_disk_it_finds_what_the_library_finds(
    browser,
    site: Path,
    model: Model,
    dicom: Path,
    tmp_path: Path,
) -> None:
    deep = tmp_path / "deep.png"
    Image.fromarray(phantom(8, side=300).image.astype(np.uint16) * 40).save(deep)
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    seen = Seen(context, (site / "index.html").as_uri())
    seen.add(dicom, deep)
    page = seen.page
    for file in (dicom, deep):
        page.locator("#list button", has_text=file.name).click()
        facts = json.loads(seen.saved("Result JSON"))
        mask = np.asarray(Image.open(io.BytesIO(seen.saved("Mask PNG")))) > 0
        result = model(file)
        assert dice(mask, result.mask) >= 0.998
        assert facts["confidence"] is None or abs(facts["confidence"] - result.confidence) < 0.02
        page.keyboard.press("b")
        seen.drag(0.35, 0.2, 0.6, 0.8)
        page.locator("#structures li").nth(len(result.masks)).wait_for()
        facts = json.loads(seen.saved("Result JSON"))
        mask = np.asarray(Image.open(io.BytesIO(seen.saved()))) > 0
        assert dice(mask, model(file, box=facts["box"]).mask) >= 0.995
    assert seen.complaints == []
    assert all(url.startswith(("file:", "blob:", "data:")) for url in seen.requests)
    context.close()


def altered(site: Path, out: Path, change) -> Path:
    """Copy a site with another decoder, whose hash is put right."""
    for file in site.rglob("*"):
        if file.is_file():
            target = out / file.relative_to(site)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file)
    script = out / "data" / "decoder.js"
    text = script.read_text()
    packed = re.search(r'"gz": "([^"]+)"', text)
    assert packed
    data = change(gzip.decompress(base64.b64decode(packed[1])))
    script.unlink()
    script.write_text(part("decoder", data))
    return out


def test_a_model_that_computes_something_else_is_refused(
    browser,
    site: Path,
    tmp_path: Path,
) -> None:
    def other_weights(data: bytes) -> bytes:
        # Bytes in the middle of the largest tensors: a model that loads, and is wrong.
        wrong = bytearray(data)
        for place in range(len(data) // 4, len(data) // 2, 3):
            wrong[place] = (wrong[place] + 64) % 256 if wrong[place] not in (8, 10, 18) else 8
        return bytes(wrong)

    broken = altered(site, tmp_path / "site", other_weights)
    context = browser.new_context()
    seen = Seen(context, (broken / "index.html").as_uri(), ready="failed")
    assert seen.page.locator("#hint").inner_text()
    seen.page.set_input_files("#files", str(tmp_path / "site" / "assets" / "icon.svg"))
    assert seen.page.locator(".entry-state.fine").count() == 0
    context.close()


def test_a_damaged_part_is_refused_before_it_runs(
    browser,
    site: Path,
    tmp_path: Path,
) -> None:
    broken = altered(site, tmp_path / "site", lambda data: data)
    script = broken / "data" / "decoder.js"
    text = script.read_text()
    digest = re.search(r'"sha256": "(\w+)"', text)
    assert digest
    script.write_text(text.replace(digest[1], hashlib.sha256(b"another").hexdigest()))
    context = browser.new_context()
    seen = Seen(context, (broken / "index.html").as_uri(), ready="failed")
    assert "is not the file that was made" in seen.page.locator("#hint").inner_text()
    context.close()


def test_it_works_offline_after_the_first_visit(browser, site: Path, dicom: Path) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    context = browser.new_context(bypass_csp=True)
    seen = Seen(context, address)
    seen.page.evaluate("navigator.serviceWorker.ready.then(() => true)")
    assert all(url.startswith((address, "blob:")) for url in seen.requests)
    server.shutdown()
    server.server_close()
    again = Seen(context, address)
    again.add(dicom)
    context.close()


def test_a_file_of_an_earlier_form_is_refused(model: Model, tmp_path: Path) -> None:
    if not (built_page() / "alone.html").is_file():
        pytest.skip("the page is not built: `make web`")
    if "points" in names_of(FILE.read_bytes()).inputs:
        pytest.skip("the packaged model is of the present form")
    with pytest.raises(CheckpointError, match="export its model again"):
        write_site(model, FILE, tmp_path)
