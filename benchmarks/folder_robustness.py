"""A folder of 1,000 files, 50 of them bad: what ``segment`` makes of it, left alone and killed.

    PYTHONPATH=src python benchmarks/folder_robustness.py [--packaged] [--files 1000] [--bad 50]
        [--kills 10] [--out results/robustness/folders.json]

Good files are PNG, JPEG, TIFF and DICOM without a suffix; bad ones are of ten kinds. One run is
left alone. Another is killed with SIGKILL at random moments, start included, and started again
with ``--resume`` until it has had its kills; then it is left to end. Both folders of results must
be the same, but for seconds. The model is the toy of the tests, so that nearly all time is that
of files; ``--packaged`` takes the packaged one.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian

from _machine import describe_machine
from adalora_qat.files import write_json

ROOT = Path(__file__).parents[1]
SIDE = 96


def _pixels(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 60, (SIDE, SIDE), dtype=np.uint8)
    noise[:, : SIDE // 2] += 150
    return noise


def _write_dicom(path: Path, seed: int) -> None:
    dataset = pydicom.Dataset()
    dataset.Modality, dataset.Rows, dataset.Columns = "DX", SIDE, SIDE
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", f"1.2.3.{seed}"
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = (_pixels(seed).astype(np.uint16) * 16).tobytes()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)


def _write_good(folder: Path, index: int) -> None:
    suffix = (".png", ".jpg", ".tif", "")[index % 4]
    path = folder / f"image{index:04}{suffix}"
    if suffix:
        Image.fromarray(_pixels(index)).save(path)
    else:
        _write_dicom(path, index)


def _cut_dicom(path: Path, seed: int) -> None:
    _write_dicom(path, seed)
    path.write_bytes(path.read_bytes()[:-SIDE])


def _cut(suffix: str) -> Callable[[Path, int], None]:
    def write(path: Path, seed: int) -> None:
        Image.fromarray(_pixels(seed)).save(path, suffix)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return write


def _flipped(path: Path, seed: int) -> None:
    Image.fromarray(_pixels(seed)).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _pages(path: Path, seed: int) -> None:
    one, two = (Image.fromarray(_pixels(seed + offset)) for offset in (0, 1))
    one.save(path, "TIFF", save_all=True, append_images=[two])


def huge(path: Path, _: int) -> None:
    """Write a valid PNG of 13,000 × 13,000 pixels of one bit, which takes a few kilobytes."""
    side = 13_000
    packed = zlib.compressobj(9)
    data = b"".join(packed.compress(bytes(1 + (side + 7) // 8)) for _ in range(side))
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)),
        (b"IDAT", data + packed.flush()),
        (b"IEND", b""),
    )
    with path.open("wb") as handle:
        handle.write(b"\x89PNG\r\n\x1a\n")
        for kind, body in chunks:
            handle.write(struct.pack(">I", len(body)) + kind + body)
            handle.write(struct.pack(">I", zlib.crc32(kind + body)))


BAD: dict[str, tuple[str, Callable[[Path, int], Any]]] = {
    "empty": (".png", lambda path, _: path.write_bytes(b"")),
    "text": (".jpg", lambda path, _: path.write_text("no image at all")),
    "web page": (".dcm", lambda path, _: path.write_text("<html>not found</html>")),
    "PNG cut": (".png", _cut("PNG")),
    "JPEG cut": (".jpg", _cut("JPEG")),
    "DICOM cut": ("", _cut_dicom),
    "PNG with a flipped bit": (".png", _flipped),
    "one colour": (".png", lambda path, _: Image.new("L", (SIDE, SIDE), 7).save(path)),
    "two pages": (".tif", _pages),
    "169 million pixels": (".png", huge),
}


def make(folder: Path, count: int, bad: int) -> dict[str, str]:
    """Write the files; return stem → kind of each bad one."""
    folder.mkdir()
    chosen = random.Random(0).sample(range(count), bad)
    kinds = {}
    for index in range(count):
        if index not in chosen:
            _write_good(folder, index)
            continue
        kind = list(BAD)[chosen.index(index) % len(BAD)]
        suffix, write = BAD[kind]
        kinds[f"image{index:04}"] = kind
        write(folder / f"image{index:04}{suffix}", index)
    return kinds


def _command(folder: Path, out: Path, model: Path | None, *more: str) -> list[str]:
    given = [] if model is None else ["--model", str(model)]
    return [sys.executable, "-m", "adalora_qat.cli", "segment", str(folder), "-o", str(out),
            "--threads", "1", *given, *more]  # fmt: skip


def killed_run(
    folder: Path, out: Path, model: Path | None, kills: int, whole_s: float
) -> list[dict[str, float]]:
    """Kill and resume; return when each kill came, and how many results there were."""
    moments, rng = [], random.Random(1)
    for _ in range(kills):
        after = rng.uniform(0, 2 * whole_s / kills + 1)
        running = subprocess.Popen(
            _command(folder, out, model, "--resume"),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(after)
        ended = running.poll() is not None
        running.send_signal(signal.SIGKILL)
        running.wait()
        results = len(list(out.glob("*.json"))) if out.is_dir() else 0
        moments.append({"after_s": round(after, 2), "results": results, "too_late": ended})
    return moments


def differences(one: Path, other: Path) -> list[str]:
    """Return the names of files that two folders do not hold alike, but for seconds."""
    names = {path.name for path in (*one.iterdir(), *other.iterdir())}
    return sorted(name for name in names if _content(one / name) != _content(other / name))


def _content(path: Path) -> Any:
    if not path.is_file():
        return None
    if path.suffix == ".json":
        return {k: v for k, v in json.loads(path.read_text()).items() if k != "seconds"}
    if path.suffix == ".csv":
        return [{**row, "seconds": ""} for row in _rows(path)]
    return path.read_bytes()


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def main() -> None:
    """Make the folder, run over it, print and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packaged", action="store_true")
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--bad", type=int, default=50)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        folder, whole, killed = base / "in", base / "whole", base / "killed"
        kinds = make(folder, arguments.files, arguments.bad)
        model = None if arguments.packaged else _toy(base)
        started = time.perf_counter()
        alone = subprocess.run(_command(folder, whole, model), capture_output=True, check=False)
        whole_s = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        moments = killed_run(folder, killed, model, arguments.kills, whole_s)
        last = subprocess.run(
            _command(folder, killed, model, "--resume"), capture_output=True, check=False
        )
        table = _rows(whole / "segments.csv")
        failed = [row for row in table if row["status"] == "failed"]
        report = {
            "command": " ".join(["python benchmarks/folder_robustness.py", *sys.argv[1:]]),
            "model": "packaged" if arguments.packaged else "toy",
            "files": arguments.files,
            "bad": dict(Counter(kinds.values())),
            "left_alone": {
                "exit_code": alone.returncode,
                "results": sum(row["status"] == "done" for row in table),
                "reasons": sum(bool(row["error"]) for row in failed),
                "reasons_of_bad_files": sum(Path(r["path"]).stem in kinds for r in failed),
                "tracebacks": (alone.stderr + last.stderr).count(b"Traceback"),
                "seconds": round(whole_s, 1),
                "peak_mb": round(peak, 1),
            },
            "killed": {
                "exit_code": last.returncode,
                "kills": moments,
                "differences": differences(whole, killed),
            },
            "examples": {kinds[Path(r["path"]).stem]: r["error"].replace(f"{base}/", "")
                         for r in failed},
            "measured_on": describe_machine(),
        }  # fmt: skip
    print(json.dumps(report, indent=2))
    if arguments.out is not None:
        write_json(arguments.out, report)


def _toy(folder: Path) -> Path:
    sys.path.insert(0, str(ROOT / "tests" / "runtime"))
    from onnx_toy import write_toy

    path: Path = write_toy(folder / "toy.onnx")
    return path


if __name__ == "__main__":
    main()
