"""Odd and hostile situations: what the command line makes of each, in a process of its own.

    PYTHONPATH=src python benchmarks/hostile_cli.py [--only WORD] [--limit-s 10]
        [--out results/robustness/cli.json]

Every case has an expectation: the exit code, words of the message (file, cause, remedy), no
traceback, no more than 1 GB of peak memory and ``--limit-s`` seconds. One that does not hold is
marked, and the script then ends with 1. The model is the toy of the tests where a case is not
about the packaged one, so that time is that of reading and refusing. Peak memory is no less than
this script's own, about 100 MB, from which the process is forked.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image

from _machine import describe_machine
from adalora_qat.files import write_json
from folder_robustness import huge

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "runtime"))
from onnx_toy import write_sealed_toy, write_toy  # noqa: E402  # lies beside the tests

LIMIT_MB = 1000
KILLED_AFTER_S = 400
NOBODY = 65534
# Access rights do not bind root; an ordinary user is what they are for.
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
PLAIN_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@dataclass(frozen=True)
class Case:
    """One situation and what is to come of it.

    Attributes
    ----------
    arguments : of the command line.
    exit_code : what it must be.
    says : words that the message must have: file, cause, remedy.
    prefix : a program that starts the command, such as one that drops root's rights.
    stdout : a file to write results to instead of a pipe; ``closed`` for a pipe nobody reads.
    sent : a signal to send once ``after`` exists.
    holds : checked at the end; a sentence that must be true.
    limit_s : instead of the one for all.
    """

    name: str
    arguments: Sequence[str | bytes | Path]
    exit_code: int
    says: tuple[str, ...] = ()
    prefix: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)
    stdout: str = ""
    sent: signal.Signals | None = None
    after: Path | None = None
    holds: tuple[str, Callable[[], bool]] | None = None
    limit_s: float | None = None


@dataclass(frozen=True)
class Skipped:
    """A case that cannot be tried here."""

    name: str
    reason: str


# Making what is odd ----------------------------------------------------------------------------


def image(path: Path, side: int = 96, **options: Any) -> Path:
    """Write a small image with a bright left half."""
    noise = np.random.default_rng(0).integers(0, 60, (side, side), dtype=np.uint8)
    noise[:, : side // 2] += 150
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).save(
        os.fsencode(path), path.suffix[1:].replace("jpg", "jpeg"), **options
    )
    return path


def claimed(path: Path, side: int) -> Path:
    """Write a PNG that says that it is large, in some hundred bytes."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(100))),
        (b"IEND", b""),
    )
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def with_metadata(path: Path, key: str, value: str) -> Path:
    """Write the toy with one value of its metadata exchanged."""
    model = onnx.load(write_toy(path))
    for entry in model.metadata_props:
        if entry.key.endswith(key):
            entry.value = value
    path.write_bytes(model.SerializeToString())
    return path


# The cases -------------------------------------------------------------------------------------


def images(base: Path, toy: Path) -> Iterator[Case | Skipped]:
    """Yield single images that cannot be used, or hardly."""

    def one(name: str, path: Path, code: int, *says: str, more: Sequence[str] = ()) -> Case:
        out = base / f"out-{path.stem[:20]}"
        return Case(name, ["segment", path, "-o", out, "--model", toy, *more], code, says)

    path = base / "wide.png"
    huge(path, 0)
    yield one("PNG of 13,000 x 13,000", path, 2, "wide.png", "13000x13000", "--max-pixels")
    yield one("PNG that says 60,000 x 60,000", claimed(base / "claims.png", 60_000), 2,
              "claims.png", "--max-pixels")  # fmt: skip
    cut = image(base / "cut.jpg", 512)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    yield one("truncated JPEG", cut, 2, "cut.jpg", "truncated", "copy it again")
    yield one("truncated JPEG, --lenient", cut, 2, "cut.jpg", "replace it", more=["--lenient"])
    (base / "nothing.png").touch()
    yield one("file without bytes", base / "nothing.png", 2, "nothing.png", "not an image")
    (base / "folder.png").mkdir()
    yield one("folder named like an image", base / "folder.png", 2, "folder.png", "no image")
    os.mkfifo(base / "pipe.png")
    yield one("named pipe", base / "pipe.png", 1, "pipe.png", "no regular file")
    pages = [Image.new("L", (64, 64), grey) for grey in (10, 90)]
    for kind in ("gif", "tif"):
        several = base / f"several.{kind}"
        pages[0].save(several, save_all=True, append_images=pages[1:])
        yield one(f"several pages or frames: {kind}", several, 2, several.name, "2 ")
    yield one("name of 244 characters", image(base / f"{'n' * 240}.png"), 2, "nnn", "shorten it")
    small = image(base / "small.png", 64)
    for count in (2000, 20_000):
        table = base / f"boxes{count}.csv"
        table.write_text("file,x0,y0,x1,y1\n" + "small.png,1,1,40,40\n" * count)
        given = ["segment", small, "-o", base / f"many{count}", "--boxes", table]
        if count == 2000:
            # Work and no hang: 2,000 predictions. What is tried is memory.
            yield Case("2,000 boxes for one image, packaged model", given, 0, limit_s=300)
        else:
            yield Case("20,000 boxes for one image, packaged model", given, 2,
                       ("small.png", "20000 boxes", "at most", "several runs"))  # fmt: skip
    packaged = ["segment", small, "-o", base / "threads", "--threads", "256"]
    yield Case("--threads 256, packaged model", packaged, 0, ("256 threads", "used"))


def folders(base: Path, toy: Path) -> Iterator[Case | Skipped]:
    """Yield folders with odd names, rights and contents."""
    model = ["--model", toy]

    def made(name: str) -> Path:
        image(base / name / "good.png")
        return base / name

    def good(out: Path) -> tuple[str, Callable[[], bool]]:
        return "the good image has its result", (out / "good.json").is_file

    folder = made("bytes")
    shutil.copy(folder / "good.png", os.fsencode(folder) + b"/not utf-8 \xff.png")
    out = base / "bytes-out"
    yield Case("name that is not UTF-8", ["segment", folder, "-o", out, *model], 0, holds=good(out))
    folder = made("plain")
    (folder / "good.png").rename(folder / "é.png")
    out = base / "plain-out"
    # The name differs from locale to locale, what is written does not.
    yield Case("non-ASCII name where LC_ALL=C", ["segment", folder, "-o", out, *model], 0,
               environment=PLAIN_LOCALE,
               holds=("mask, overlay, JSON and table", lambda: len(list(out.iterdir())) == 4),
               )  # fmt: skip
    folder = made("escapes")
    image(folder / "red\x1b[31m\nline.png").write_bytes(b"no image")
    out = base / "escapes-out"
    yield Case("ESC and a new line in a name", ["segment", folder, "-o", out, *model], 1,
               (r"\x1b[31m\nline.png",), holds=good(out))  # fmt: skip
    (base / "empty").mkdir()
    yield Case("folder without files", ["segment", base / "empty", "-o", base / "eo", *model], 2,
               ("empty", "no image", "give images"))  # fmt: skip
    folder = made("own")
    yield Case("folder that is its own output", ["segment", folder, "-o", folder, *model], 0,
               holds=good(folder))  # fmt: skip
    yield Case("the same again: results are no images", ["segment", folder, "-o", folder, *model],
               0, holds=("one result", lambda: len(list(folder.glob("*.json"))) == 1))  # fmt: skip
    folder = made("loop")
    (folder / "again").symlink_to(folder)
    (folder / "nowhere.png").symlink_to(folder / "gone")
    out = base / "loop-out"
    yield Case("links in a circle and to nowhere, -r", ["segment", folder, "-o", out, "-r", *model],
               1, ("nowhere.png",), holds=good(out))  # fmt: skip
    yield from without_rights(base, toy)


def without_rights(base: Path, toy: Path) -> Iterator[Case | Skipped]:
    """Yield files and folders that may not be read or written."""
    names = ("file without rights", "folder without rights", "output that may not be written")
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        yield from (
            Skipped(name, "root, to whom rights do not apply; no setpriv") for name in names
        )
        return
    prefix = AS_NOBODY if os.geteuid() == 0 else []
    folder, out = base / "rights", base / "rights-out"
    image(folder / "good.png")
    image(folder / "shut.png").chmod(0)
    out.mkdir()
    out.chmod(0o777)
    yield Case(names[0], ["segment", folder, "-o", out, "--model", toy], 1,
               ("shut.png", "ermission"), prefix,
               holds=("the good image has its result", (out / "good.json").is_file))  # fmt: skip
    image(base / "shut" / "good.png")
    (base / "shut").chmod(0)
    yield Case(names[1], ["segment", base / "shut", "-o", out, "--model", toy], 1,
               ("shut", "ermission"), prefix)  # fmt: skip
    (base / "read-only").mkdir(mode=0o555)
    written = ["segment", folder / "good.png", "-o", base / "read-only" / "x", "--model", toy]
    yield Case(names[2], written, 2, ("read-only", "ermission"), prefix)


def models(base: Path, toy: Path) -> Iterator[Case | Skipped]:
    """Yield model files that were changed, or are none."""
    small = image(base / "for-models.png")

    def of(name: str, path: Path, *says: str) -> Case:
        return Case(name, ["segment", small, "-o", base / path.stem, "--model", path], 2,
                    (path.name, *says))  # fmt: skip

    changes = (
        ("mask_threshold", '"high"'), ("frame", "[]"), ("low_res_side", "17"),
        ("sources", "3"), ("assurance", '{"input_check": 1}'), ("variant", "[" * 100_000),
        ("low_res_side", "1" + "0" * 400),
    )  # fmt: skip
    for number, (key, value) in enumerate(changes):
        path = with_metadata(base / f"metadata{number}.onnx", key, value)
        yield of(f"ONNX whose {key} is {value[:12]}", path, "metadata", "export the model again")
    for name, at in (("graph", b"AveragePool"), ("weights", np.float32(100).tobytes())):
        path = write_sealed_toy(base / f"flipped-{name}.onnx")
        data = bytearray(path.read_bytes())
        data[data.index(at)] ^= 1
        path.write_bytes(data)
        yield of(f"model file with one flipped bit in its {name}", path)
    whole = write_sealed_toy(base / "cut.onnx")
    whole.write_bytes(whole.read_bytes()[:-20])
    yield of("model file that was cut", whole)
    text = base / "text.onnx"
    text.write_text("not a model\n")
    yield of("model file of text", text)


def recipes(base: Path, data: Path) -> Iterator[Case | Skipped]:
    """Yield recipes and overrides that cannot be trained."""
    out = base / "run"
    nothing_left = ("no run folder is left", lambda: not out.exists())

    def of(name: str, text: str | bytes, *says: str) -> Case:
        path = base / f"{name.replace(' ', '-').replace(',', '')}.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return Case(name, ["train", path, "--data", data, "-o", out, "--cpu"], 2,
                    (path.name, *says), holds=nothing_left)  # fmt: skip

    def changed(name: str, override: str, *says: str) -> Case:
        return Case(name, ["train", "demo", override, "--data", data, "-o", out, "--cpu"], 2, says,
                    holds=nothing_left)  # fmt: skip

    yield of("recipe not UTF-8", b"seed: 1 # \xff\xfe\n", "UTF-8", "save it")
    yield of("recipe 5,000 levels deep", "seed: " + "[" * 5000 + "]" * 5000, "20 levels")
    laughs = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
    yield of("billion laughs", "a0: &a0 [lol, lol]\n" + laughs, "aliases", "write the value out")
    yield of("recipe with a Python object", "seed: !!python/object/apply:os.getcwd []\n")
    yield changed("infinite learning rate", "stage1.lr_encoder=.inf", "stage1.lr_encoder", "finite")
    yield changed("seed of 20 digits", "seed=12345678901234567890", "seed", "less than")
    yield changed("unknown policy", "quantize.policy=w8a9", "w8a9", "policy")


def corrected(base: Path, data: Path) -> Iterator[Case | Skipped]:
    """Yield a start that fails late, and the corrected command, which must not be blocked."""
    run = base / "corrected"
    tiny = ["model.variant=tiny-test", "model.init=random", "model.side=64", "adapt.rank=4",
            "adapt.schedule=[]", "stage1.epochs=1", "stage2.epochs=1"]  # fmt: skip
    more = ["--data", data, "-o", run, "--cpu"]
    yield Case("tiny recipe with an unknown policy",
               ["train", "demo", *tiny, "quantize.policy=none-such", *more], 2, ("none-such",),
               holds=("no folder", lambda: not run.exists()))  # fmt: skip
    words = base / "words.safetensors"
    words.write_text("no weights\n")
    yield Case("model.weights= a text file", ["train", "demo", f"model.weights={words}", *more], 2,
               ("words.safetensors", "not safetensors"))  # fmt: skip
    # Work and no hang: one epoch.
    yield Case("the corrected command, into the same folder",
               ["train", "demo", *tiny, *more, "--stage", "1"], 0, limit_s=120,
               holds=("it has trained", lambda: any(run.glob("stage1/*"))))  # fmt: skip
    again = [f"a=phantom:{base / 'phantoms'}"] * 2
    yield Case("prepare with a name twice", ["prepare", *again, "-o", base / "twice"], 2,
               ("twice", "name"),
               holds=("no folder", lambda: not (base / "twice").exists()))  # fmt: skip


def streams(base: Path, toy: Path) -> Iterator[Case | Skipped]:
    """Yield outputs that nobody can take, and signals."""
    folder = base / "fifty"
    first = image(folder / "i00.png", 1024)
    for index in range(1, 50):
        os.link(first, folder / f"i{index:02}.png")
    small = image(base / "for-streams.png")
    given = ["segment", small, "-o", base / "full", "--model", toy]
    for more in ([], ["--json"]):
        yield Case(f"results to a full device {' '.join(more)}".strip(), [*given, *more], 2,
                   ("No space left", "disk full"), stdout="/dev/full")  # fmt: skip
        closed = f"results to a pipe that was closed {' '.join(more)}".strip()
        yield Case(closed, [*given, *more], 1, stdout="closed")
    for sent, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        out = base / f"out-{sent.name}"
        yield Case(f"{sent.name} in a folder of 50", ["segment", folder, "-o", out, "--model", toy],
                   code, ("--resume",), sent=sent, after=out / "i00.json",
                   holds=("each result is whole", lambda out=out: _whole(out)))  # fmt: skip


def _whole(out: Path) -> bool:
    """Return whether a stopped run left three files for each result, a table, and no other."""
    done = len(list(out.glob("*.json")))
    return 1 <= done < 50 and len(list(out.iterdir())) == 3 * done + 1


# Running ---------------------------------------------------------------------------------------


def run(case: Case, base: Path, limit_s: float) -> dict[str, Any]:
    """Run one case and hold it against what is expected."""
    limit_s = case.limit_s or limit_s
    arguments = [
        *case.prefix,
        sys.executable,
        "-m",
        "adalora_qat.cli",
        *map(os.fsencode, case.arguments),
    ]
    errors = base / "stderr"
    with errors.open("wb") as stderr, _output(case.stdout) as stdout:
        started = time.perf_counter()
        running = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
            env={**os.environ, "COLUMNS": "200", **case.environment},
        )  # fmt: skip
        code, peak_mb = _waited(running, case, started)
        seconds = time.perf_counter() - started
    said = errors.read_bytes().decode(errors="backslashreplace")
    flat = " ".join(said.split())
    wrong = [f"did not say {word!r}" for word in case.says if word not in flat]
    if code != case.exit_code:
        wrong.append(f"exit code {code}, not {case.exit_code}")
    if "Traceback" in said or "Exception ignored" in said:
        wrong.append("traceback")
    if "\x1b" in said:
        wrong.append("an escape character was written raw")
    if seconds > limit_s:
        wrong.append(f"took more than {limit_s:g} s")
    if peak_mb > LIMIT_MB:
        wrong.append(f"took more than {LIMIT_MB} MB")
    if case.holds is not None and not case.holds[1]():
        wrong.append(f"not so: {case.holds[0]}")
    return {
        "case": case.name,
        "command": _shown(case.arguments, base),
        "exit_code": code,
        "seconds": round(seconds, 2),
        "peak_mb": round(peak_mb),
        "traceback": "Traceback" in said,
        "expected_words": list(case.says),
        "said": _ascii(said.strip().replace(f"{base}/", ""))[:400],
        "wrong": wrong,
    }


def _output(target: str) -> Any:
    if target == "closed":
        reading, writing = os.pipe()
        os.close(reading)
        return os.fdopen(writing, "wb")
    return Path(target or os.devnull).open("wb")


def _waited(running: subprocess.Popen[bytes], case: Case, started: float) -> tuple[int, float]:
    """Wait for the end; return exit code and peak memory (MB) of this process alone."""
    sent = False
    while True:
        pid, status, usage = os.wait4(running.pid, os.WNOHANG)
        if pid:
            running.returncode = os.waitstatus_to_exitcode(status)
            return running.returncode, usage.ru_maxrss / 1024
        if case.sent is not None and not sent and case.after is not None and case.after.exists():
            running.send_signal(case.sent)
            sent = True
        if time.perf_counter() - started > KILLED_AFTER_S:
            running.kill()
        time.sleep(0.01)


def _shown(arguments: Sequence[str | bytes | Path], base: Path) -> str:
    words = " ".join(shlex.quote(os.fsdecode(word)) for word in arguments)
    return _ascii(f"adalora-qat {words.replace(f'{base}/', '')}")[:300]


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()


def every_case(base: Path) -> Iterator[Case | Skipped]:
    """Yield all cases; each makes its files when its turn comes."""
    toy = write_toy(base / "toy.onnx")
    yield from images(base, toy)
    yield from folders(base, toy)
    yield from models(base, toy)
    yield from streams(base, toy)
    data = base / "data"
    _prepare(base, data)
    yield from recipes(base, data)
    yield from corrected(base, data)


def _prepare(base: Path, data: Path) -> None:
    from adalora_qat.phantom.phantom import write_phantoms

    write_phantoms(base / "phantoms", 24, seed=0, side=64)
    command = [sys.executable, "-m", "adalora_qat.cli", "prepare", f"a=phantom:{base / 'phantoms'}"]
    subprocess.run([*command, "-o", str(data)], check=True, capture_output=True)


def main() -> int:
    """Run the cases, print and write their table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--limit-s", type=float, default=10)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows, skipped = [], []
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        base.chmod(0o755)
        for case in every_case(base):
            if arguments.only not in case.name:
                continue
            if isinstance(case, Skipped):
                skipped.append({"case": case.name, "reason": case.reason})
                continue
            row = run(case, base, arguments.limit_s)
            rows.append(row)
            print(f"{row['seconds']:6.1f} s {row['peak_mb']:5} MB {row['exit_code']:4}  {case.name}"
                  + "".join(f"\n    WRONG: {one}" for one in row["wrong"])
                  + (f"\n    {row['said']}" if row["wrong"] else ""), flush=True)  # fmt: skip
    failed = sum(bool(row["wrong"]) for row in rows)
    report = {
        "command": " ".join(["python benchmarks/hostile_cli.py", *sys.argv[1:]]),
        "limit_s": arguments.limit_s,
        "limit_mb": LIMIT_MB,
        "load_average": round(os.getloadavg()[0], 1),
        "cases": len(rows),
        "as_expected": len(rows) - failed,
        "tracebacks": sum(row["traceback"] for row in rows),
        "slowest_s": max((row["seconds"] for row in rows), default=0),
        "largest_mb": max((row["peak_mb"] for row in rows), default=0),
        "rows": rows,
        "skipped": skipped,
        "measured_on": describe_machine(),
    }
    print(json.dumps({key: value for key, value in report.items() if key != "rows"}, indent=2))
    if arguments.out is not None:
        write_json(arguments.out, report)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
