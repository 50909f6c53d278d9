"""Records of DICOM, raw images and coded masks become records of PNG files."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from adalora_qat.corpus.mask_codes import EncodedRecord, RelativeRuns
from adalora_qat.corpus.materialise import materialise, needs_conversion, place, read_pixels
from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError
from adalora_qat.imaging.image_file import load_image, load_mask


def test_a_record_of_plain_files_stays_as_it_is(tmp_path: Path) -> None:
    record = Record("s/a", "s", tmp_path / "a.png", {"lung": tmp_path / "m.png"})
    assert materialise(record, tmp_path / "out") is record
    assert not (tmp_path / "out").exists()


def test_dicom_becomes_png_of_the_same_pixels_twice_the_same_bytes(
    tmp_path: Path, fuzz_inputs: ModuleType
) -> None:
    pixels = np.arange(30 * 20, dtype=np.uint16).reshape(30, 20)
    source = tmp_path / "a.dcm"
    source.write_bytes(fuzz_inputs.dicom_bytes(pixels, 12, fuzz_inputs.RLELossless))
    codes = {"pneumothorax": RelativeRuns(("0 3",), 30, 20)}
    record = EncodedRecord("siim/a b", "siim", source, codes=codes, label="x")
    plain = materialise(record, tmp_path / "out")
    assert type(plain) is Record
    assert (plain.id, plain.label) == ("siim/a b", "x")
    assert plain.patient is not None
    np.testing.assert_array_equal(load_image(plain.image), read_pixels(source))
    mask = load_mask(plain.masks["pneumothorax"])
    assert mask[:3, 0].all() and mask.sum() == 3
    written = [plain.image.read_bytes(), plain.masks["pneumothorax"].read_bytes()]
    again = materialise(record, tmp_path / "out")
    assert [again.image.read_bytes(), again.masks["pneumothorax"].read_bytes()] == written


def test_raw_jsrt_is_inverted_and_anything_else_of_that_name_refused(tmp_path: Path) -> None:
    stored = np.zeros((2048, 2048), dtype=">u2")
    stored[0, 0], stored[0, 1] = 4095, 1
    path = tmp_path / "JPCLN001.IMG"
    stored.tofile(path)
    assert needs_conversion(path)
    pixels = read_pixels(path)
    assert (pixels[0, 0], pixels[0, 1], pixels[1, 1]) == (0, 4094 * 16, 4095 * 16)
    record = materialise(Record("jsrt/1", "jsrt", path), tmp_path / "out")
    assert Image.open(record.image).size == (2048, 2048)
    path.write_bytes(b"short")
    with pytest.raises(DataError, match="not a raw JSRT image"):
        read_pixels(path)


def test_a_mask_that_cannot_be_decoded_names_record_and_kind(tmp_path: Path) -> None:
    codes = {"infection": RelativeRuns(("0 9",), 2, 2)}
    record = EncodedRecord("s/a", "s", tmp_path / "a.png", codes=codes)
    with pytest.raises(DataError, match="s/a, infection"):
        materialise(record, tmp_path)


@pytest.mark.parametrize("record_id", ["../../etc/x", "/abs/x", "s/..", "", "s/a\\..\\b", "c:/x"])
def test_no_id_leads_out_of_the_folder(record_id: str) -> None:
    placed = place(record_id)
    assert not placed.is_absolute() and ".." not in placed.parts
    assert placed.suffix == ".png"


def test_ids_keep_their_dots_and_spaces() -> None:
    assert place("siim/1.2.3") == Path("siim/1.2.3.png")
    assert place("q/Normal (1)") == Path("q/Normal (1).png")
