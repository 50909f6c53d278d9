"""SIIM-ACR: pneumothorax from the table, lungs never."""

import gzip
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from adalora_qat.corpus.mask_codes import EncodedRecord
from adalora_qat.corpus.materialise import materialise, read_pixels
from adalora_qat.corpus.reading import Reading
from adalora_qat.corpus.siim_source import read_siim_acr
from adalora_qat.errors import DataError
from adalora_qat.imaging.image_file import load_mask

Counts = Callable[[Reading], dict[str, int]]

HEAD = "ImageId, EncodedPixels\n"


def dicom(path: Path, writer: ModuleType) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(12 * 8, dtype=np.uint8).reshape(12, 8)
    path.write_bytes(writer.dicom_bytes(pixels, 8, writer.ExplicitVRLittleEndian))


def test_real_sample_lies_on_its_images(
    real_data: Path, tmp_path: Path, mask_counts: Counts
) -> None:
    reading = read_siim_acr(real_data / "siim_acr")
    assert len(reading.records) == 3
    assert mask_counts(reading) == {"pneumothorax": 2}
    for record in reading.records:
        assert not record.mask_parts("lung")
        assert record.spacing_mm is not None and 0.1 < record.spacing_mm[0] < 0.2
        assert record.patient is not None and len(record.patient) == 16
        plain = materialise(record, tmp_path)
        if record.label == "pneumothorax":
            mask, image = load_mask(plain.masks["pneumothorax"]), read_pixels(plain.image)
            assert mask.shape == image.shape
            # Air in the pleural space is darker than the picture as a whole.
            assert image[mask].mean() < image.mean()
        else:
            assert not plain.masks


def test_several_rows_no_row_and_none(tmp_path: Path, fuzz_inputs: ModuleType) -> None:
    root = tmp_path / "siim"
    for name in ("1.a", "1.b", "1.c"):
        dicom(root / "dicom-images-train" / name / "series" / f"{name}.dcm", fuzz_inputs)
    (root / "dicom-images-train" / "1.d.dcm").write_text("<html>not found</html>")
    with gzip.open(root / "train-rle.csv.gz", "wt") as table:
        table.write(HEAD + "1.a,0 2\n1.a,12 1\n1.b, -1\n")
    reading = read_siim_acr(tmp_path)
    assert reading.found == 4
    assert "web page" in reading.set_aside[0].reason
    first, none, unknown = reading.records
    assert isinstance(first, EncodedRecord)
    mask = first.codes["pneumothorax"].decode()
    # Column by column: two pixels down the first column, then the top of the second.
    assert sorted(map(tuple, np.argwhere(mask))) == [(0, 0), (0, 1), (1, 0)]
    assert (first.label, none.label, unknown.label) == ("pneumothorax", "no pneumothorax", None)
    assert isinstance(none, EncodedRecord) and not none.codes


def test_the_published_table_is_preferred_to_a_sample(
    tmp_path: Path, fuzz_inputs: ModuleType
) -> None:
    dicom(tmp_path / "1.a.dcm", fuzz_inputs)
    (tmp_path / "a-sample.csv").write_text(HEAD + "1.a,-1\n")
    (tmp_path / "train-rle.csv").write_text(HEAD + "1.a,0 1\n")
    assert read_siim_acr(tmp_path).records[0].label == "pneumothorax"


def test_a_missing_table_is_told_with_the_tables_found(
    tmp_path: Path, fuzz_inputs: ModuleType
) -> None:
    dicom(tmp_path / "1.a.dcm", fuzz_inputs)
    (tmp_path / "other.csv").write_text("id,value\n1,2\n")
    with pytest.raises(DataError, match=r"EncodedPixels.*other\.csv"):
        read_siim_acr(tmp_path)
