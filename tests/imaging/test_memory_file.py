"""Files in memory are read as those of a disk are."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adalora_qat.errors import DataError
from adalora_qat.imaging.memory_file import MemoryFile
from adalora_qat.imaging.radiograph import read_radiograph


def deep(path: Path) -> Path:
    values = np.random.default_rng(1).integers(0, 65536, (40, 30), dtype=np.uint16)
    Image.fromarray(values).save(path)
    return path


def colour(path: Path) -> Path:
    values = np.random.default_rng(2).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("name", ["a.png", "b.tif", "c.jpg", "d.bmp"])
def test_pixels_and_digest_are_those_of_the_file(tmp_path: Path, name: str) -> None:
    make = colour if name in ("c.jpg", "d.bmp") else deep
    path = make(tmp_path / name)
    memory = read_radiograph(MemoryFile(name, path.read_bytes()))
    disk = read_radiograph(path)
    assert np.array_equal(memory.pixels, disk.pixels)
    assert memory.pixels.dtype == disk.pixels.dtype
    assert memory.sha256 == disk.sha256


@pytest.mark.parametrize("lenient", [False, True])
def test_a_cut_file_is_refused_by_its_name(tmp_path: Path, lenient: bool) -> None:
    data = deep(tmp_path / "cut.png").read_bytes()[:200]
    with pytest.raises(DataError, match=r"cut\.png"):
        read_radiograph(MemoryFile("cut.png", data), lenient=lenient)


@pytest.mark.parametrize("compressed", [False, True])
def test_dicom(tmp_path: Path, compressed: bool) -> None:
    pydicom = pytest.importorskip("pydicom")
    examples = pytest.importorskip("pydicom.examples")
    del pydicom
    path = examples.get_path("ct")
    dataset = examples.ct
    dataset.Modality = "DX"
    if compressed:
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    dataset.save_as(tmp_path / f"{path.stem}.dcm")
    file = tmp_path / f"{path.stem}.dcm"
    memory = read_radiograph(MemoryFile(file.name, file.read_bytes()))
    disk = read_radiograph(file)
    assert np.array_equal(memory.pixels, disk.pixels)
    assert memory.spacing_mm == disk.spacing_mm
