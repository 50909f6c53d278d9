"""Mutated PNG, JPEG and DICOM files against the quality gate: no crash, no hang.

Usage: ``python benchmarks/fuzz_inputs.py [--count 2000] [--seed 0] [--data DIR] [--out FILE]``.
Sound files are phantoms written in every encoding that is read, and, with ``--data``, real
samples. Each is mutated (bit flips, overwritten bytes, truncation, swapped headers, lost or
doubled pieces) and given to the gate in a process of its own kind, so that a crash of native
code and a hang are seen and counted. Prints JSON; exits 1 if there was one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.random import Generator
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
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

from adalora_qat.corpus.quality import inspect
from adalora_qat.corpus.records import Record
from adalora_qat.phantom.phantom import phantom

HANG_S = 5.0
SUFFIXES = (".png", ".jpg", ".dcm")
PER_SOURCE = 6
# Encodings that pydicom does not write.
ENCODED_HERE = (JPEGBaseline8Bit, JPEGLosslessSV1)
# Samples that come with pydicom, of encodings that nothing here writes.
BUNDLED = ("JPGExtended.dcm", "JPEG2000.dcm", "JPEGLSNearLossless_16.dcm", "examples_overlay.dcm")


def main() -> int:
    """Fuzz and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for files that crash or hang")
    given = parser.parse_args()
    seeds = sound_files() | (real_files(given.data) if given.data else {})
    result = fuzz(seeds, given.count, given.seed, given.keep)
    text = json.dumps(result, indent=2)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")
    return 1 if result["crashes"] or result["hangs"] or result["errors"] else 0


def fuzz(
    seeds: Mapping[str, bytes], count: int, seed: int, keep: Path | None = None
) -> dict[str, object]:
    """Mutate ``count`` times, in turn through formats and seeds, and look at each file."""
    outcomes: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    bad: list[dict[str, object]] = []
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder, Gate() as gate:
        for number, (name, content) in enumerate(mutated(seeds, count, seed)):
            path = Path(folder) / f"{number:05d}{Path(name).suffix}"
            path.write_bytes(content)
            outcome, detail, seconds = gate.look(path)
            outcomes[outcome] += 1
            slowest = max(slowest, seconds)
            if outcome == "quarantined":
                codes[detail] += 1
            if outcome in ("crash", "hang", "error"):
                bad.append({"seed": name, "number": number, "outcome": outcome, "detail": detail})
                if keep:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{outcome}-{path.name}").write_bytes(content)
            path.unlink()
    return {
        "files": count,
        "seeds": len(seeds),
        "read": outcomes["read"],
        "quarantined": outcomes["quarantined"],
        "crashes": outcomes["crash"],
        "hangs": outcomes["hang"],
        "errors": outcomes["error"],
        "slowest_s": round(slowest, 3),
        "reasons": dict(codes.most_common()),
        "bad": bad,
    }


class Gate:
    """The quality gate in another process, started again when a file kills it."""

    def __enter__(self) -> Gate:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def look(self, path: Path) -> tuple[str, str, float]:
        """Return outcome (read, quarantined, error, crash, hang), detail and seconds."""
        start = perf_counter()
        self._pipe.send(path)
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
            path = pipe.recv()
        except EOFError:
            return
        try:
            found = inspect(Record("fuzz/x", "fuzz", path))
        except BaseException as error:
            pipe.send(("error", f"{type(error).__name__}: {error}"[:300]))
        else:
            pipe.send(("quarantined", found[0].code) if found else ("read", ""))


def mutated(seeds: Mapping[str, bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield (seed name, damaged bytes), the formats in turn."""
    rng = np.random.default_rng(seed)
    kinds = [[name for name in sorted(seeds) if name.endswith(suffix)] for suffix in SUFFIXES]
    for number in range(count):
        names = kinds[number % len(kinds)]
        name = names[int(rng.integers(len(names)))]
        other = seeds[sorted(seeds)[int(rng.integers(len(seeds)))]]
        content = bytearray(seeds[name])
        for _ in range(int(rng.integers(1, 4))):
            MUTATIONS[int(rng.integers(len(MUTATIONS)))](content, other, rng)
        yield name, bytes(content)


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
    }
    files = {name: _saved(picture, **how) for name, (picture, how) in pictures.items()}
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian):
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
