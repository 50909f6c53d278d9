"""Files, arrays, pictures and datasets are read to the same pixels."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adalora_qat.errors import DataError
from adalora_qat.files import sha256_file
from adalora_qat.imaging.radiograph import read_radiograph
from adalora_qat.imaging.stated import Stated

GREY = np.arange(48 * 32, dtype=np.uint16).reshape(48, 32)


def test_a_file_knows_its_path_and_hash(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(GREY).save(path)
    for given in (path, str(path)):
        found = read_radiograph(given)
        np.testing.assert_array_equal(found.pixels, GREY)
        assert (found.path, found.sha256, found.spacing_mm) == (path, sha256_file(path), None)
        assert found.seconds > 0


def test_an_array_is_taken_as_it_is() -> None:
    found = read_radiograph(GREY)
    assert found.pixels is GREY
    assert found.path is None and found.sha256 is None


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I", "I;16", "F", "CMYK"])
@pytest.mark.parametrize("opened", [False, True])
def test_a_picture_of_any_mode_gives_what_its_file_gives(
    mode: str, opened: bool, tmp_path: Path
) -> None:
    eight = Image.fromarray((GREY % 251).astype(np.uint8))
    picture = Image.fromarray(GREY) if mode == "I;16" else eight.convert(mode)
    path = tmp_path / "picture.tif"
    picture.save(path)
    given = Image.open(path) if opened else picture
    found, expected = read_radiograph(given).pixels, read_radiograph(path).pixels
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_pictures_that_cannot_be_used(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((8, 8), level, np.uint8)) for level in (1, 2)]
    pages[0].save(tmp_path / "two.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match="several pages"):
        read_radiograph(Image.open(tmp_path / "two.tif"))
    cut = tmp_path / "cut.png"
    Image.fromarray(GREY).save(cut)
    cut.write_bytes(cut.read_bytes()[:90])
    with pytest.raises(DataError, match="PIL image cannot be decoded"):
        read_radiograph(Image.open(cut))


@pytest.mark.parametrize("given", [None, 3, [[1, 2], [3, 4]], b"bytes"])
def test_anything_else_is_refused(given: Any) -> None:
    with pytest.raises(DataError, match=r"give a path, a NumPy array, a PIL image or a pydicom"):
        read_radiograph(given)


def test_dicom_files_need_a_package_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "radiograph.DCM"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "adalora_qat.imaging.dicom", None)
    with pytest.raises(DataError, match=r"radiograph\.DCM is DICOM.*adalora-qat\[dicom\]"):
        read_radiograph(path)
    reader = SimpleNamespace(
        read_dicom=lambda path, **options: SimpleNamespace(
            pixels=GREY, spacing_mm=(0.2, 0.1), stated=Stated("PA")
        )
    )
    monkeypatch.setitem(sys.modules, "adalora_qat.imaging.dicom", reader)
    found = read_radiograph(path)
    assert found.spacing_mm == (0.2, 0.1) and found.stated.view == "PA"


def test_a_dataset_gives_what_its_file_gives_and_stays_as_it_is(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian

    dataset = pydicom.Dataset()
    dataset.Modality, dataset.Rows, dataset.Columns = "DX", *GREY.shape
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME1", 1
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelSpacing = [0.3, 0.2]
    dataset.PixelData = GREY.tobytes()
    before = str(dataset)
    found = read_radiograph(dataset)  # without a meta header, as one made in memory is
    assert str(dataset) == before and not hasattr(dataset, "file_meta")
    # MONOCHROME1: the largest stored value is black.
    assert found.pixels[0, 0] == 65535 and found.pixels[-1, -1] == 0
    assert found.spacing_mm == (0.3, 0.2) and found.path is None
    path = tmp_path / "made.dcm"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    bare, named = tmp_path / "1.2.840.113", tmp_path / "a picture.dcm"
    bare.write_bytes(path.read_bytes())
    for other in (path, bare, pydicom.dcmread(path)):
        np.testing.assert_array_equal(read_radiograph(other).pixels, found.pixels)
    Image.fromarray(GREY).save(named, "PNG")
    np.testing.assert_array_equal(read_radiograph(named).pixels, GREY)
    for given in (bare, dataset):
        with pytest.raises(DataError, match="the limit is 100"):
            read_radiograph(given, max_pixels=100)
    with pytest.raises(DataError, match="the dataset: DICOM without an image"):
        read_radiograph(pydicom.Dataset())
