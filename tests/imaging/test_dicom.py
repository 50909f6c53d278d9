"""Radiograph DICOM as scanners and archives write it, and what must be refused."""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.sequence import Sequence as DicomSequence

from adalora_qat.errors import DataError
from adalora_qat.imaging.dicom import patient_hash, read_dicom, read_dicom_header

RAMP = np.add.outer(np.arange(24) * 40, np.arange(32) * 90).astype(np.uint16)

Writer = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, fuzz_inputs: ModuleType) -> Writer:
    """Return a writer of RAMP as a 12-bit radiograph, with elements changed or removed."""

    def written(name: str = "a.dcm", drop: tuple[str, ...] = (), **changes: object) -> Path:
        plain = fuzz_inputs.dicom_bytes(RAMP, 12, fuzz_inputs.ExplicitVRLittleEndian)
        dataset = pydicom.dcmread(BytesIO(plain))
        for keyword in drop:
            delattr(dataset, keyword)
        for keyword, value in changes.items():
            setattr(dataset, keyword, value)
        path = tmp_path / name
        dataset.save_as(path, enforce_file_format=True)
        return path

    return written


def bundled(name: str, tmp_path: Path, **changes: object) -> Path:
    """Return a copy of a sample that comes with pydicom, as the modality given."""
    dataset = pydicom.dcmread(str(get_testdata_file(name, download=False)))
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    path = tmp_path / name
    dataset.save_as(path)
    return path


@pytest.mark.parametrize(
    ("name", "shape", "spacing_mm", "inverted"),
    [
        ("dicom/mono1_10bit_explicit.dcm", (440, 440), None, True),
        ("dicom/mono1_10bit_implicit_no_preamble", (440, 440), None, True),
        # Its header gives a spacing of 0: none.
        ("dicom/mono1_15bit_jpeg2000.dcm", (1955, 1841), None, True),
        ("dicom/mono2_8bit_jpeg.dcm", (1024, 1024), (0.143, 0.143), False),
    ],
)
def test_real_samples_have_dark_lungs_and_a_bright_spine(
    real_data: Path,
    name: str,
    shape: tuple[int, int],
    spacing_mm: tuple[float, float] | None,
    inverted: bool,
) -> None:
    read = read_dicom(real_data / name)
    height, width = read.pixels.shape
    assert (height, width) == shape == (read.height, read.width)
    assert read.spacing_mm == (pytest.approx(spacing_mm) if spacing_mm else None)
    assert read.inverted is inverted
    middle = read.pixels[height // 4 : height // 2]
    spine = middle[:, round(0.48 * width) : round(0.52 * width)]
    left, right = (middle[:, round(s * width) : round((s + 0.1) * width)] for s in (0.25, 0.65))
    assert np.median(spine) > 1.15 * max(np.median(left), np.median(right))


def test_the_two_encodings_of_one_real_image_agree(real_data: Path) -> None:
    explicit = read_dicom(real_data / "dicom" / "mono1_10bit_explicit.dcm")
    implicit = read_dicom(real_data / "dicom" / "mono1_10bit_implicit_no_preamble")
    np.testing.assert_array_equal(explicit.pixels, implicit.pixels)


def test_the_header_alone_says_the_same(write: Writer) -> None:
    path = write(PixelSpacing=[0.2, 0.3])
    header, image = read_dicom_header(path), read_dicom(path)
    assert (header.height, header.width, header.spacing_mm) == (24, 32, (0.2, 0.3))
    assert {key: getattr(image, key) for key in vars(header)} == vars(header)


def test_spacing_in_the_patient_goes_before_spacing_at_the_detector(write: Writer) -> None:
    both = write(PixelSpacing=[0.2, 0.2], ImagerPixelSpacing=[0.25, 0.25])
    assert read_dicom_header(both).spacing_mm == (0.2, 0.2)
    imager = write(ImagerPixelSpacing=[0.25, 0.26])
    assert read_dicom_header(imager).spacing_mm == (0.25, 0.26)
    fallback = write(PixelSpacing=[0, 0], ImagerPixelSpacing=[0.25, 0.25])
    assert read_dicom_header(fallback).spacing_mm == (0.25, 0.25)


@pytest.mark.parametrize("spacing", [[0, 0], [0.2], [1000, 1000], [-0.2, 0.2]])
def test_an_impossible_spacing_is_none(write: Writer, spacing: list[float]) -> None:
    assert read_dicom_header(write(PixelSpacing=spacing)).spacing_mm is None


def test_patients_are_known_by_a_salted_hash_only(write: Writer) -> None:
    path = write(PatientID="MRN-12345", PatientName="Doe^Jane")
    one, two = (read_dicom_header(path, salt).patient for salt in ("one", "two"))
    assert one is not None and two is not None and one != two
    assert one == read_dicom_header(path, "one").patient
    assert "12345" not in one
    assert "12345" not in repr(read_dicom(path)) and "Doe" not in repr(read_dicom(path))


@pytest.mark.parametrize("nobody", ["", " ", "Anonymized", "ANONYMOUS", "0"])
def test_a_stand_in_for_an_id_is_no_patient(nobody: str) -> None:
    assert patient_hash(nobody) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n<!DOCTYPE html><html>Please log in</html>", "web page"),
        (b"\x89PNG\r\n\x1a\n" + b"0" * 300, "PNG image"),
        (b"\xff\xd8\xff\xe0" + b"0" * 300, "JPEG image"),
        (b"PK\x03\x04" + b"0" * 300, "zip archive"),
        (b'{"error": 404}', "JSON"),
        (b"", "0 bytes"),
        (b"just some text that is not an image at all", "DICOM"),
    ],
)
def test_other_files_under_a_dicom_name_are_named_for_what_they_are(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as refusal:
        read_dicom(path)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CT_small.dcm", r"modality CT \(computed tomography\)"),
        ("MR_small.dcm", "modality MR"),
        ("rtplan.dcm", "no rows and columns"),
    ],
)
def test_other_dicom_is_refused_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_dicom(Path(str(get_testdata_file(name, download=False))))


def test_frames_colour_and_what_says_nothing_are_refused(write: Writer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 frames"):
        read_dicom(write(NumberOfFrames=2))
    with pytest.raises(DataError, match="colour"):
        read_dicom(bundled("SC_rgb_jpeg_gdcm.dcm", tmp_path, Modality="CR"))
    with pytest.raises(DataError, match="neither its modality"):
        read_dicom(write(Modality="", SOPClassUID="1.2.840.10008.5.1.4.1.1.2"))
    assert read_dicom(write(drop=("Modality",))).modality == ""


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.99])
def test_a_truncated_file_is_refused(write: Writer, keep: float) -> None:
    path = write()
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DataError):
        read_dicom(path)


def test_a_header_with_an_absurd_size_is_refused_before_decoding(write: Writer) -> None:
    with pytest.raises(DataError, match="no radiograph has"):
        read_dicom(write(Rows=60000, Columns=60000))
    with pytest.raises(DataError, match=r"24x32 pixels.*limit is 767.*raise max_pixels"):
        read_dicom_header(write(), max_pixels=24 * 32 - 1)
    assert read_dicom(write(), max_pixels=24 * 32).pixels.shape == (24, 32)


def test_a_deflated_file_that_grows_without_end_is_refused(write: Writer) -> None:
    path = write()
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x00420011, "OB", bytes(60_000_000))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match="when inflated"):
        read_dicom(path, max_pixels=1000)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="without its end"):
        read_dicom(path)


def test_elements_out_of_order_and_bytes_left_over_are_refused_unless_lenient(
    write: Writer,
) -> None:
    path = write()
    content = path.read_bytes()
    rows = content.index(b"\x28\x00\x10\x00US")
    swapped = content[:rows] + content[rows + 10 : rows + 20] + content[rows : rows + 10]
    for damaged, message in (
        (swapped + content[rows + 20 :], "out of order"),
        (content + b"abc", "3 bytes after"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=message):
            read_dicom(path)
        assert read_dicom(path, lenient=True).pixels.shape == (24, 32)


def test_what_pydicom_warns_of_is_refused_unless_lenient(
    tmp_path: Path, fuzz_inputs: ModuleType
) -> None:
    # A header that says explicit before elements that are implicit.
    explicit, implicit = (
        fuzz_inputs.dicom_bytes(RAMP, 12, syntax)
        for syntax in (fuzz_inputs.ExplicitVRLittleEndian, fuzz_inputs.ImplicitVRLittleEndian)
    )
    ends = (
        144 + int(pydicom.dcmread(BytesIO(content)).file_meta.FileMetaInformationGroupLength)
        for content in (explicit, implicit)
    )
    path = tmp_path / "a.dcm"
    path.write_bytes(explicit[: next(ends)] + implicit[next(ends) :])
    with pytest.raises(DataError, match="found implicit VR"):
        read_dicom(path)
    assert read_dicom(path, lenient=True).pixels.shape == (24, 32)


def test_threads_leave_settings_and_filters_as_they_were(write: Writer) -> None:
    paths = [write(f"{number}.dcm") for number in range(12)]
    before = (list(warnings.filters), pydicom.config.settings.reading_validation_mode)
    with ThreadPoolExecutor(4) as pool:
        shapes = {image.pixels.shape for image in pool.map(read_dicom, paths * 4)}
    assert shapes == {(24, 32)}
    assert (list(warnings.filters), pydicom.config.settings.reading_validation_mode) == before


def test_a_file_without_preamble_and_meta_header_is_read(write: Writer, tmp_path: Path) -> None:
    whole = pydicom.dcmread(write())
    bare = tmp_path / "bare"
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, pydicom.Dataset(whole), implicit_vr=True, little_endian=True)
    bare.write_bytes(buffer.getvalue())
    np.testing.assert_array_equal(read_dicom(bare).pixels, read_dicom(write()).pixels)


def test_reading_leaves_pydicoms_settings_and_warnings_alone(
    write: Writer, recwarn: pytest.WarningsRecorder
) -> None:
    mode = pydicom.config.settings.reading_validation_mode
    read_dicom(write(PixelSpacing=[0.2, 0.2], OtherPatientIDsSequence=DicomSequence([])))
    assert pydicom.config.settings.reading_validation_mode == mode
    assert not recwarn.list
