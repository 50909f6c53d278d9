"""What the base install does with the oldest versions that it allows.

``make lowest`` runs this in an environment that holds the base install at exactly the versions
of ``constraints-lowest.txt``, and pytest. It is no ``test_*.py``: elsewhere there is nothing to
prove.
"""

import importlib
import importlib.util
import json
import pkgutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from importlib.metadata import distributions, version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import adalora_qat
from adalora_qat.imaging.image_file import load_image
from adalora_qat.runtime.packaged import GOLDEN, check_golden, packaged_predictor, weights_folder

CONSTRAINTS = Path(__file__).parents[1] / "constraints-lowest.txt"
BASE = (
    "errors", "files", "progress", "ahead", "predictor", "config", "recipe", "imaging", "runtime",
    "cli",
)  # fmt: skip
# These need no torch either, but what `[data]` brings.
WITH_DATA = ("phantom", "corpus", "evaluate", "report")
NEEDS_EXTRA = {"imaging.dicom", "imaging.dicom_pixels", "runtime.openvino_network"}
DATA_PACKAGES = {
    "cv2", "jinja2", "matplotlib", "openvino", "pandas", "pyarrow", "pydicom", "scipy", "skimage",
}  # fmt: skip


def modules(rooms: tuple[str, ...]) -> Iterator[str]:
    for room in rooms:
        yield room
        found = importlib.util.find_spec(f"adalora_qat.{room}")
        assert found is not None
        places = found.submodule_search_locations or ()
        yield from (f"{room}.{m.name}" for m in pkgutil.iter_modules(places) if m.name[0] != "_")


def test_the_versions_are_exactly_the_lowest() -> None:
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if line[:1] not in ("", "#")]
    wanted = dict(line.split("==") for line in lines)
    assert {name: version(name) for name in wanted} == wanted


@pytest.mark.parametrize("name", ["torch", "transformers", "onnx", *sorted(DATA_PACKAGES)])
def test_nothing_else_is_installed(name: str) -> None:
    assert importlib.util.find_spec(name) is None


def test_the_environment_is_small() -> None:
    names = sorted({str(each.metadata["Name"]).lower() for each in distributions()})
    assert len(names) < 35, names


@pytest.mark.parametrize("module", sorted(set(modules(BASE)) - NEEDS_EXTRA))
def test_base_modules_are_imported(module: str) -> None:
    importlib.import_module(f"adalora_qat.{module}")


@pytest.mark.parametrize("module", sorted({*modules(WITH_DATA), *NEEDS_EXTRA}))
def test_other_rooms_without_torch_lack_packages_of_data_only(module: str) -> None:
    try:
        importlib.import_module(f"adalora_qat.{module}")
    except ModuleNotFoundError as error:
        assert (error.name or "").partition(".")[0] in DATA_PACKAGES


def test_the_packaged_model_draws_the_golden_mask() -> None:
    assert check_golden(packaged_predictor(threads=1), weights_folder()) >= 0.99


def test_the_front_door_draws_what_the_command_line_does(tmp_path: Path) -> None:
    with np.load(weights_folder() / GOLDEN) as golden:
        image, box = golden["image"], golden["box"]
        expected = np.unpackbits(golden["mask"], count=image.size).reshape(image.shape) > 0
    result = adalora_qat.load(threads=1)(image, box=tuple(box))
    assert 2 * (result.mask & expected).sum() / (result.mask.sum() + expected.sum()) >= 0.99
    assert result.overlay().size == image.shape[::-1]


def test_the_command_line_draws_the_golden_mask(tmp_path: Path) -> None:
    with np.load(weights_folder() / GOLDEN) as golden:
        image, box = golden["image"], golden["box"]
        expected = np.unpackbits(golden["mask"], count=image.size).reshape(image.shape) > 0
    Image.fromarray(image).save(tmp_path / "phantom.png")
    command = [str(Path(sys.executable).with_name("adalora-qat")), "segment", "phantom.png"]
    corners = ",".join(str(float(edge)) for edge in box)
    for out, options in {"box": ["--box", corners], "automatic": []}.items():
        subprocess.run([*command, *options, "--out", out], cwd=tmp_path, check=True, timeout=120)
    mask = np.asarray(Image.open(tmp_path / "box" / "phantom_mask.png")) > 0
    assert 2 * (mask & expected).sum() / (mask.sum() + expected.sum()) >= 0.99
    found = json.loads((tmp_path / "automatic" / "phantom.json").read_text())
    assert found["prompt"] == "automatic" and found["area_px"] > 0.9 * expected.sum()


def test_sixteen_bits_of_colour_come_whole(tmp_path: Path) -> None:
    # Pillow opens such a file at its high bytes only; what reads the rest leans on its insides.
    pixels = np.random.default_rng(0).integers(0, 65536, (9, 7, 3)).astype(np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = {
        b"IHDR": struct.pack(">2I5B", 7, 9, 16, 2, 0, 0, 0), b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }  # fmt: skip
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks.items()
    )
    (tmp_path / "deep.png").write_bytes(content)
    np.testing.assert_array_equal(load_image(tmp_path / "deep.png"), pixels)
