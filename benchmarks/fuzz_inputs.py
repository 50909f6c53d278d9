"""Damaged images against the readers: what is refused, what is read as something else.

Usage: ``python benchmarks/fuzz_inputs.py [--count 500] [--seed 0] [--data DIR] [--out FILE]``.
Sound files are phantoms written in every encoding that is read, and, with ``--data``, real
samples. ``--count`` mutants of each kind (bit flips, overwritten bytes, truncation, swapped
headers, lost or doubled pieces) are read in a process of its own, so that a crash of native
code and a hang are seen and counted: once as users read them, once with ``lenient``. Pixels are
compared with those of the sound file. Prints JSON; exits 1 at a crash, a hang, an error that is
no ``DataError``, or a refusal that does not name its file.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from hashlib import sha256
from importlib.metadata import version
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from adalora_qat.errors import DataError, printable
from adalora_qat.imaging.dicom import read_dicom
from adalora_qat.imaging.image_file import load_image
from adalora_qat.phantom.phantom import phantom

HANG_S = 10.0
SUFFIXES = (".png", ".jpg", ".tif", ".dcm")
PER_SOURCE = 6
# Encodings that pydicom does not write.
ENCODED_HERE = (JPEGBaseline8Bit, JPEGLosslessSV1)
PLAIN = (
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)  # fmt: skip
# Samples that come with pydicom, of encodings that nothing here writes.
BUNDLED = ("JPGExtended.dcm", "JPEG2000.dcm", "JPEGLSNearLossless_16.dcm", "examples_overlay.dcm")
KINDS = ("PNG", "JPEG", "TIFF", "DICOM", "DICOM compressed")
VERSIONS = (
    "pillow", "simplejpeg", "pydicom", "python-gdcm", "pylibjpeg-openjpeg", "numpy",
)  # fmt: skip


def main() -> int:
    """Damage, read and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="mutants of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for files that crash or hang")
    given = parser.parse_args()
    seeds = sound_files() | (real_files(given.data) if given.data else {})
    bad: list[dict[str, Any]] = []
    kinds = {kind: _sound_of(seeds, kind) for kind in KINDS}
    result = {
        "command": "python " + shlex.join(["benchmarks/fuzz_inputs.py", *_said(given)]),
        "kinds": {
            kind: fuzz(some, given.count, given.seed, bad, given.keep)
            for kind, some in kinds.items()
        },
        "bad": bad,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONS},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")
    return 1 if bad else 0


def fuzz(
    seeds: Mapping[str, bytes],
    count: int,
    seed: int,
    bad: list[dict[str, Any]],
    keep: Path | None = None,
) -> dict[str, Any]:
    """Read ``count`` mutants and count what becomes of them; crashes and the like go to ``bad``."""
    strict: Counter[str] = Counter()
    lenient: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder, Reader() as reader:
        sound = {
            name: _sound(reader, Path(folder), name, content) for name, content in seeds.items()
        }
        for number, (name, content, damage) in enumerate(mutants(seeds, count, seed)):
            path = Path(folder) / f"{number:05d}{Path(name).suffix}"
            path.write_bytes(content)
            for mode, counts in ((False, strict), (True, lenient)):
                outcome, detail, seconds = reader.read(path, mode)
                if outcome == "read":
                    outcome = "same pixels" if detail == sound[name] else "changed pixels"
                counts[outcome] += 1
                slowest = max(slowest, seconds)
                if outcome == "changed pixels" and not mode:
                    changed[" and ".join(damage)] += 1
                if outcome in ("crash", "hang", "error"):
                    bad.append({"seed": name, "number": number, "what": outcome, "why": detail})
                    if keep:
                        keep.mkdir(parents=True, exist_ok=True)
                        (keep / f"{outcome}-{path.name}").write_bytes(content)
            path.unlink()
        peak_mb = reader.peak_mb()
    return {
        "files": count,
        "sound_files": len(seeds),
        "accepted_same_pixels": strict["same pixels"],
        "accepted_changed_pixels": strict["changed pixels"],
        "refused": strict["refused"],
        "crashes": strict["crash"] + lenient["crash"],
        "hangs": strict["hang"] + lenient["hang"],
        "errors": strict["error"] + lenient["error"],
        "lenient_accepted_changed_pixels": lenient["changed pixels"],
        "slowest_s": round(slowest, 3),
        "peak_memory_mb": peak_mb,
        "accepted_changed_by_damage": dict(changed.most_common()),
    }


def _said(given: argparse.Namespace) -> list[str]:
    said = ["--count", str(given.count), "--seed", str(given.seed)]
    if given.data:
        said += ["--data", "DATA"]
    return [*said, "--out", str(given.out)] if given.out else said


def _sound_of(seeds: Mapping[str, bytes], kind: str) -> dict[str, bytes]:
    suffixes = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif"}
    if kind in suffixes:
        return {name: seeds[name] for name in seeds if name.endswith(suffixes[kind])}
    compressed = kind == "DICOM compressed"
    return {
        name: content
        for name, content in seeds.items()
        if name.endswith(".dcm")
        and dcmread(BytesIO(content)).file_meta.TransferSyntaxUID.is_encapsulated == compressed
    }


def _sound(reader: Reader, folder: Path, name: str, content: bytes) -> str:
    path = folder / f"sound{Path(name).suffix}"
    path.write_bytes(content)
    outcome, detail, _ = reader.read(path, False)
    if outcome != "read":
        raise SystemExit(f"{name} is sound and was not read: {detail}")
    return detail


class Reader:
    """The readers in another process, started again when a file kills it."""

    def __enter__(self) -> Reader:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def read(self, path: Path, lenient: bool) -> tuple[str, str, float]:
        """Return outcome (read, refused, error, crash, hang), detail and seconds."""
        start = perf_counter()
        self._pipe.send((path, lenient))
        if not self._pipe.poll(HANG_S):
            self._stop()
            self._start()
            return "hang", f"> {HANG_S} s", perf_counter() - start
        try:
            outcome, detail = self._pipe.recv()
        except EOFError:
            self._process.join()
            detail = f"exit code {self._process.exitcode}"
            self._start()
            return "crash", detail, perf_counter() - start
        return outcome, detail, perf_counter() - start

    def peak_mb(self) -> int:
        """Return the most memory that the process has held, its libraries included."""
        self._pipe.send(None)
        return int(self._pipe.recv())

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,), daemon=True)
        self._process.start()
        other.close()
        self._pipe.recv()  # ready: importing must not count as hanging

    def _stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection) -> None:
    pipe.send("ready")
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        if job is None:
            # Not getrusage: what the parent had held before counts there.
            status = Path("/proc/self/status").read_text()
            pipe.send(int(status.partition("VmHWM:")[2].split()[0]) // 1024)
            continue
        path, lenient = job
        try:
            pixels = _pixels(path, lenient)
        except DataError as error:
            named = printable(path) in str(error)
            pipe.send(("refused" if named else "error", str(error)[:300]))
        except BaseException as error:
            pipe.send(("error", f"{type(error).__name__}: {error}"[:300]))
        else:
            pipe.send(("read", sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()))


def _pixels(path: Path, lenient: bool) -> NDArray[Any]:
    if path.suffix == ".dcm":
        return read_dicom(path, lenient=lenient).pixels
    return load_image(path, lenient=lenient)


def mutated(seeds: Mapping[str, bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield (seed name, damaged bytes), the formats in turn."""
    for name, content, _ in mutants(seeds, count, seed):
        yield name, content


def mutants(
    seeds: Mapping[str, bytes], count: int, seed: int
) -> Iterator[tuple[str, bytes, list[str]]]:
    """Yield (seed name, damaged bytes, kinds of damage), the formats in turn."""
    rng = np.random.default_rng(seed)
    kinds = [
        names
        for suffix in SUFFIXES
        if (names := [name for name in sorted(seeds) if name.endswith(suffix)])
    ]
    for number in range(count):
        names = kinds[number % len(kinds)]
        name = names[int(rng.integers(len(names)))]
        other = seeds[sorted(seeds)[int(rng.integers(len(seeds)))]]
        content, damage = bytearray(seeds[name]), set()
        for _ in range(int(rng.integers(1, 4))):
            mutation = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
            mutation(content, other, rng)
            damage.add(mutation.__name__.strip("_").replace("_", " "))
        yield name, bytes(content), sorted(damage)


def _flip_bits(content: bytearray, _other: bytes, rng: Generator) -> None:
    for at in rng.integers(len(content), size=int(2 ** rng.integers(0, 8))):
        content[at] ^= 1 << int(rng.integers(8))


def _flip_header_bits(content: bytearray, _other: bytes, rng: Generator) -> None:
    for at in rng.integers(min(len(content), 2048), size=int(rng.integers(1, 8))):
        content[at] ^= 1 << int(rng.integers(8))


def _overwrite(content: bytearray, _other: bytes, rng: Generator) -> None:
    at, length = int(rng.integers(len(content))), int(2 ** rng.integers(0, 10))
    filler = [b"\x00", b"\xff", rng.bytes(1)][int(rng.integers(3))]
    content[at : at + length] = filler * min(length, len(content) - at)


def _truncate(content: bytearray, _other: bytes, rng: Generator) -> None:
    del content[int(rng.integers(1, len(content) + 1)) :]


def _swap_header(content: bytearray, other: bytes, rng: Generator) -> None:
    length = int(2 ** rng.integers(2, 11))
    content[:length] = other[:length]


def _lose_piece(content: bytearray, _other: bytes, rng: Generator) -> None:
    at, length = int(rng.integers(len(content))), int(2 ** rng.integers(0, 12))
    if length < len(content):
        del content[at : at + length]
    if not content:
        content.append(0)


def _double_piece(content: bytearray, _other: bytes, rng: Generator) -> None:
    at, length = int(rng.integers(len(content))), int(2 ** rng.integers(0, 12))
    content[at:at] = content[at : at + length]


MUTATIONS = (
    _flip_bits, _flip_header_bits, _overwrite, _truncate, _swap_header, _lose_piece,
    _double_piece,
)  # fmt: skip


def sound_files(side: int = 160) -> dict[str, bytes]:
    """Return a phantom in every encoding, by name."""
    grey = phantom(0, side).image
    deep = (grey.astype(np.uint16) * 16 + np.arange(side, dtype=np.uint16) % 16)[:side]
    pictures = {
        "grey.png": (Image.fromarray(grey), {"format": "PNG"}),
        "deep.png": (Image.fromarray(deep), {"format": "PNG"}),
        "colour.png": (Image.fromarray(grey).convert("RGB"), {"format": "PNG"}),
        "grey.jpg": (Image.fromarray(grey), {"format": "JPEG", "quality": 85}),
        "colour.jpg": (Image.fromarray(grey).convert("RGB"), {"format": "JPEG"}),
        "progressive.jpg": (Image.fromarray(grey), {"format": "JPEG", "progressive": True}),
        "grey.tif": (Image.fromarray(grey), {"format": "TIFF"}),
        "deep.tif": (Image.fromarray(deep), {"format": "TIFF"}),
        "lzw.tif": (Image.fromarray(grey), {"format": "TIFF", "compression": "tiff_lzw"}),
        "deflate.tif": (
            Image.fromarray(deep),
            {"format": "TIFF", "compression": "tiff_adobe_deflate"},
        ),
        "jpeg.tif": (Image.fromarray(grey), {"format": "TIFF", "compression": "jpeg"}),
    }
    files = {name: _saved(picture, **how) for name, (picture, how) in pictures.items()}
    for syntax in PLAIN:
        files[f"{syntax.name}.dcm"] = dicom_bytes(deep, 12, syntax)
    for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        files[f"{syntax.name} 12.dcm"] = dicom_bytes(deep, 12, syntax)
        files[f"{syntax.name} 8.dcm"] = dicom_bytes(grey, 8, syntax)
    files["baseline.dcm"] = dicom_bytes(grey, 8, JPEGBaseline8Bit)
    files["lossless.dcm"] = dicom_bytes(deep[:64, :64], 12, JPEGLosslessSV1)
    for name in BUNDLED:
        dataset = dcmread(get_testdata_file(name, download=False))
        dataset.Modality = "CR"
        files[f"bundled/{name}"] = _dicom_file(dataset)
    return files


def real_files(data: Path) -> dict[str, bytes]:
    """Return a few real files of each kind."""
    patterns = (
        "jsrt/images/*.jpg", "shenzhen/images/*.jpg", "covid19_radiography/COVID/images/*.png",
        "covid_qu_ex/*/*/*/images/*.png", "dicom/*.dcm", "siim_acr/*/*.dcm",
    )  # fmt: skip
    found = [path for pattern in patterns for path in sorted(data.glob(pattern))[:PER_SOURCE]]
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in found}


def dicom_bytes(pixels: np.ndarray, bits: int, syntax: UID) -> bytes:
    """Return a radiograph as a DICOM file in one transfer syntax."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = (
        ExplicitVRLittleEndian if syntax.is_compressed and syntax not in ENCODED_HERE else syntax
    )
    dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[syntax])
    dataset.Modality, dataset.PatientID = "CR", "1"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored = pixels.dtype.itemsize * 8, bits
    dataset.HighBit, dataset.PixelRepresentation = bits - 1, 0
    dataset.WindowCenter, dataset.WindowWidth = 2 ** (bits - 1), 2**bits
    if syntax in ENCODED_HERE:
        baseline = syntax == JPEGBaseline8Bit
        picture = Image.fromarray(pixels)
        frame = _saved(picture, format="JPEG") if baseline else lossless_jpeg(pixels, bits)
        dataset.PixelData = encapsulate([frame])
        dataset["PixelData"].is_undefined_length = True
    else:
        order = "<" if syntax.is_little_endian else ">"
        dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        # Words of a big-endian file are swapped, bytes are not.
        dataset["PixelData"].VR = "OB" if pixels.dtype == np.uint8 else "OW"
        if syntax.is_compressed:
            dataset.compress(syntax, generate_instance_uid=False)
    return _dicom_file(dataset)


def lossless_jpeg(pixels: np.ndarray, bits: int) -> bytes:
    """Encode one channel as lossless JPEG, process 14, selection value 1 (ITU-T T.81, H).

    No Python package encodes it. Each pixel is predicted by its left neighbour (the first of
    a row by the one above, the very first by half the range); the difference is written as
    its bit length, in a Huffman code of equal lengths, and that many bits.
    """
    values = pixels.astype(np.int32)
    predicted = np.empty_like(values)
    predicted[:, 1:] = values[:, :-1]
    predicted[1:, 0] = values[:-1, 0]
    predicted[0, 0] = 1 << (bits - 1)
    written = []
    # Differences are taken modulo 2¹⁶; 2¹⁵ has a length of its own and no further bits.
    differences = (values - predicted + 0x7FFF) % 0x10000 - 0x7FFF
    for difference in differences.ravel().tolist():
        length = abs(difference).bit_length()
        written.append(f"{length:05b}")
        if 0 < length < 16:
            extra = difference if difference > 0 else difference + (1 << length) - 1
            written.append(f"{extra:0{length}b}")
    stream = "".join(written)
    stream += "1" * (-len(stream) % 8)
    scan = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\x00")
    height, width = pixels.shape
    frame = bytes([bits, *height.to_bytes(2, "big"), *width.to_bytes(2, "big"), 1, 1, 0x11, 0])
    # One table: 17 codes of five bits, for the bit lengths 0 to 16.
    table = bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])
    parts = [(0xC3, frame), (0xC4, table), (0xDA, bytes([1, 1, 0, 1, 0, 0]))]
    head = b"".join(
        bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body for marker, body in parts
    )
    return b"\xff\xd8" + head + scan + b"\xff\xd9"


def _dicom_file(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _saved(picture: Image.Image, **how: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, **how)  # type: ignore[arg-type]
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
