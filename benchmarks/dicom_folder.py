"""Time ``segment`` on a folder of DICOM radiographs of 1,760 x 2,140: first mask, each, memory.

    python benchmarks/dicom_folder.py [--count 60] [--out results/robustness/dicom_folder.json]

Files are phantoms, 12 bits, uncompressed. The folder runs in a process of its own, start
included; ten of its files are then read and predicted one after another in this one, for what
decoding and predicting take alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian

from _machine import describe_machine
from adalora_qat.files import write_json
from adalora_qat.phantom.phantom import phantom
from adalora_qat.runtime.model import load

ROWS, COLUMNS = 2140, 1760
ALONE = 10


def write_dicom(path: Path, seed: int) -> None:
    """Write one phantom as a digital radiograph."""
    picture = Image.fromarray(phantom(seed, 512).image).resize((COLUMNS, ROWS), Image.BICUBIC)
    dataset = pydicom.Dataset()
    dataset.Modality, dataset.Rows, dataset.Columns = "DX", ROWS, COLUMNS
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", f"1.2.3.{seed}"
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = (np.asarray(picture).astype(np.uint16) * 16).tobytes()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)


def watched(folder: Path, out: Path, count: int) -> dict[str, Any]:
    """Run the folder, and note when results appear and the memory that is held then."""
    command = [sys.executable, "-m", "adalora_qat.cli", "segment", str(folder), "-o", str(out)]
    started, seen, ends, memory = time.perf_counter(), 0, [], []
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None:
        done = len(list(out.glob("*.json"))) if out.exists() else 0
        if done > seen:
            ends += [time.perf_counter() - started] * (done - seen)
            status = Path(f"/proc/{running.pid}/status").read_text()
            memory += [int(status.partition("VmRSS:")[2].split()[0]) / 1000] * (done - seen)
            seen = done
        time.sleep(0.02)
    if running.returncode or seen < count - 1:
        sys.exit(f"segment ended with {running.returncode} after {seen} results")
    return {
        "first_mask_s": round(ends[0], 2),
        "each_s": round((ends[-1] - ends[0]) / (len(ends) - 1), 3),
        "memory_mb": {"after_10": round(max(memory[:10])), "after_all": round(max(memory))},
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--files", type=Path, help="folder of the files, made if need be")
    parser.add_argument("--out", type=Path, help="a JSON file; it is printed in any case")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.files or Path(temporary) / "files"
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"IM{seed:04}" for seed in range(arguments.count)]
        for seed, file in enumerate(files):
            if not file.exists():
                write_dicom(file, seed)
        found: dict[str, Any] = {"files": len(files), "size": [COLUMNS, ROWS]}
        found |= watched(folder, Path(temporary) / "out", len(files))
        model = load()
        model.warm_up()
        alone = [sum(model(file).seconds.values()) for file in files[:ALONE]]
    found["decode_and_predict_s"] = round(median(alone), 3)
    found["ratio"] = round(found["each_s"] / found["decode_and_predict_s"], 2)
    found |= {"processors": os.cpu_count(), "measured_on": describe_machine()}
    if arguments.out is not None:
        write_json(arguments.out, found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
