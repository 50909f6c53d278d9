"""``import adalora_qat as aq`` as a user of the base install writes it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import adalora_qat as aq
from adalora_qat.phantom.phantom import phantom
from adalora_qat.runtime.packaged import MODEL, weights_folder

packaged = pytest.mark.skipif(
    not (weights_folder() / MODEL).is_file(), reason="this version of the package holds no model"
)


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(3):
        Image.fromarray(phantom(seed, side=512).image).save(
            tmp_path / f"radiograph{seed or ''}.png"
        )
    return tmp_path


def test_importing_the_package_imports_nothing_else(tmp_path: Path) -> None:
    code = """
import sys
before = set(sys.modules)
import adalora_qat as aq
assert set(aq.__all__) <= set(dir(aq))
assert aq.__version__
assert set(sys.modules) - before == {"adalora_qat"}, set(sys.modules) - before
aq.DataError
assert "numpy" not in sys.modules and "onnxruntime" not in sys.modules
aq.load
assert "numpy" in sys.modules and "torch" not in sys.modules
"""
    run(code, tmp_path)


def test_every_public_name_is_there_and_no_other() -> None:
    for name in aq.__all__:
        assert getattr(aq, name) is not None
    assert aq.load.__module__ == "adalora_qat.runtime.model"
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        aq.lode  # noqa: B018


BLOCK = """
import sys
for name in ("torch", "pandas", "scipy", "cv2", "pydicom", "onnx"):
    sys.modules[name] = None
import numpy as np

import adalora_qat as aq
model = aq.load()
result = model("radiograph.png")
result.mask
result.masks
result.confidence, result.warnings
image = np.asarray(__import__("PIL.Image").Image.open("radiograph.png"))
boxed = model(image, box=(60, 40, 460, 480))
result.overlay()
result.save("out/")
for r in model.map(["radiograph.png", "radiograph1.png", "radiograph2.png"]):
    print(r.name, r.confidence)

assert result.mask.shape == image.shape and result.mask.dtype == bool
assert result.masks.shape == (1, *image.shape)
assert boxed.boxes.tolist() == [[60, 40, 460, 480]]
assert 0.5 < result.confidence <= 1
"""


@packaged
def test_the_block_of_the_documentation_runs_on_the_base_install(folder: Path) -> None:
    lines = run(BLOCK, folder).splitlines()
    assert [line.split()[0] for line in lines] == [
        "radiograph.png",
        "radiograph1.png",
        "radiograph2.png",
    ]
    assert {path.name for path in (folder / "out").iterdir()} == {
        "radiograph_mask.png",
        "radiograph_overlay.png",
        "radiograph.json",
    }


@packaged
@pytest.mark.parametrize("box", [None, (60, 40, 460, 480)])
def test_python_and_command_line_give_the_same(folder: Path, box: tuple[float, ...] | None) -> None:
    given = [] if box is None else ["--box", ",".join(map(str, box))]
    command = [sys.executable, "-m", "adalora_qat.cli", "segment", "radiograph.png", *given]
    subprocess.run([*command, "--out", "cli"], check=True, cwd=folder, capture_output=True)
    result = aq.load()(folder / "radiograph.png", box=box)
    result.save(folder / "python")
    for name in ("radiograph_mask.png", "radiograph_overlay.png"):
        assert (folder / "cli" / name).read_bytes() == (folder / "python" / name).read_bytes()
    np.testing.assert_array_equal(
        np.asarray(Image.open(folder / "cli" / "radiograph_mask.png")) == 255, result.mask
    )
    cli, python = (
        json.loads((folder / f / "radiograph.json").read_text()) for f in ("cli", "python")
    )
    assert cli.pop("seconds").keys() == python.pop("seconds").keys()
    assert cli.pop("options")["boxes"] == (None if box is None else [list(box)])
    assert cli == python
    assert cli["confidence"] == result.confidence
    assert cli["warnings"] == [caution.to_json() for caution in result.warnings]


@packaged
def test_warnings_are_those_of_the_command_line(folder: Path) -> None:
    upside_down = phantom(0, side=512).image[::-1].copy()
    [caution, *_] = aq.load()(upside_down).warnings
    assert isinstance(caution, aq.Caution)
    assert caution.code and caution.message and caution.value > caution.limit


@pytest.mark.parametrize("own", [None, "own"])
def test_the_runtime_leaves_nothing_in_the_home_folder(tmp_path: Path, own: str | None) -> None:
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    environment.pop("XDG_CACHE_HOME", None)
    if own is not None:
        environment["ORT_DISABLE_TELEMETRY"] = own
    program = "import os, adalora_qat as aq; aq.load; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == (own or "1")
    if own is None:
        assert not list(tmp_path.iterdir())
