"""``segment`` from outside: exit codes, what is said, signals, odd places."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adalora_qat import __version__
from adalora_qat.cli import main

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
from onnx_toy import toy_metadata, write_toy

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command in this process; return exit code, output and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["adalora-qat", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return call


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy") / "toy.onnx")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    image = np.zeros((32, 64), dtype=np.uint8)
    image[:, :32] = 200
    for name in "abc":
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


def test_bad_files_are_told_and_counted(command: Command, toy: Path, folder: Path) -> None:
    for index in range(12):
        (folder / f"bad{index:02}.png").write_bytes(b"")
    (folder / "red \x1b[31m [bold].png").write_bytes(b"")
    out = folder.parent / "out"
    code, told, said = command("segment", folder, "-o", out, "--model", toy, "--threads", 1)
    assert code == 1
    assert "3 images segmented" in told and "13 could not be used" in told
    assert said.count("left out: ") == 10 and "and 3 more, all in" in said
    assert "\x1b[31m" not in said
    code, told, said = command("segment", folder, "-o", out, "--model", toy, "--resume")
    assert code == 1 and "3 of them by an earlier run" in told
    code, told, said = command("segment", folder, "-o", out, "--model", toy, "--fail-fast")
    assert code == 2 and "error:" in said and "bad00.png" in said


def test_a_name_with_escapes_is_shown_escaped(command: Command, toy: Path, folder: Path) -> None:
    bad = folder / "red \x1b[31m.png"
    bad.write_bytes(b"")
    code, _, said = command("segment", bad, "-o", folder / "out", "--model", toy)
    assert code == 2 and "\x1b[31m" not in said and "x1b" in said


def test_threads_beyond_the_machine_are_said(command: Command, toy: Path, folder: Path) -> None:
    given = ("segment", folder, "-o", folder / "out", "--model", toy)
    code, _, said = command(*given, "--threads", 4096)
    assert code == 0 and "4096 threads asked for" in said
    assert "threads asked for" not in command(*given, "--threads", 1)[2]


def test_a_model_that_needs_boxes_is_said_once(
    command: Command, folder: Path, tmp_path: Path
) -> None:
    model = write_toy(tmp_path / "boxed.onnx", toy_metadata(automatic_prompt=False))
    given = ("segment", folder, "-o", folder / "out", "--model", model, "--json")
    code, told, said = command(*given)
    assert code == 0 and said.count("never trained without a box") == 1
    assert all(one["warnings"][0]["code"] == "no_box_training" for one in json.loads(told))
    assert command(*given, "--strict")[0] == 3
    code, told, said = command(*given, "--strict", "--box", "0,0,30,30")
    assert code == 0 and "never trained" not in said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--spacing", "1"), "--spacing '1' must be two numbers row,column"),
        (("--spacing", "0,1"), "two positive numbers"),
        (("--write", "mask,all"), "--write all: give some of mask, overlay, contours, json"),
        (("--mask-values", "1"), "--mask-values 1: give 255 or labels"),
    ],
)
def test_options_that_cannot_be_used(
    command: Command, toy: Path, folder: Path, given: tuple[str, ...], message: str
) -> None:
    code, _, said = command("segment", folder, "-o", folder / "out", "--model", toy, *given)
    assert code == 2 and message in said
    assert not (folder / "out").exists()


def test_short_options(command: Command) -> None:
    assert command("-V") == (0, f"{__version__}\n", "")
    for given in (("-h",), ("segment", "-h"), ("export", "-h")):
        code, told, _ = command(*given)
        assert code == 0 and "Usage" in told
    assert "--install-completion" in command("-h")[1]


def start(*arguments: object, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "adalora_qat.cli", *map(os.fsencode, map(str, arguments))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def test_names_that_are_not_text_in_a_plain_locale(toy: Path, folder: Path) -> None:
    (folder / "a.png").rename(os.fsdecode(os.fsencode(folder) + b"/not utf-8 \xff.png"))
    (folder / "b.png").rename(folder / "é.png")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    out = folder.parent / "out"
    run = start("segment", folder, "-o", out, "--model", toy, **plain)
    told, said = run.communicate(timeout=60)
    assert run.returncode == 0, said
    assert b"3 images segmented" in told and b"Traceback" not in said
    assert len(list(out.iterdir())) == 3 * 3 + 1
    said.decode("ascii")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a full device")
def test_results_that_nobody_can_take(toy: Path, folder: Path) -> None:
    for more in (["--json"], []):
        with Path("/dev/full").open("wb") as full:
            run = subprocess.run(
                [sys.executable, "-m", "adalora_qat.cli", "segment", folder, "-o", folder / "out",
                 "--model", toy, *more],
                stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            )  # fmt: skip
        assert run.returncode == 2 and "No space left on device" in run.stderr
        assert "Traceback" not in run.stderr and "Exception ignored" not in run.stderr


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_with_what_is_done(
    toy: Path, folder: Path, sent: signal.Signals, code: int
) -> None:
    for index in range(400):
        os.link(folder / "c.png", folder / f"d{index:03}.png")
    out = folder.parent / "out"
    run = start("segment", folder, "-o", out, "--model", toy)
    deadline = time.monotonic() + 60
    while not (out / "a.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    run.send_signal(sent)
    _, said = run.communicate(timeout=60)
    assert run.returncode == code, said
    assert b"--resume goes on from here" in said and b"Traceback" not in said
    done = len(list(out.glob("*.json")))
    assert 1 <= done < 403
    assert len(list(out.iterdir())) == 3 * done + 1
    assert (out / "segments.csv").read_text().count(",done,") == done
