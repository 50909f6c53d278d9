"""From stored values to grey levels: every encoding, every table, worked by hand."""

import warnings
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame

from adalora_qat.errors import DataError
from adalora_qat.imaging.dicom import read_dicom
from adalora_qat.imaging.dicom_pixels import display, stored_values

# Large enough for the five resolutions of a JPEG 2000 encoder; up to 3707.
RAMP = np.add.outer(np.arange(64) * 20, np.arange(80) * 31).astype(np.uint16)
WHITE = 65535

SYNTAXES = [
    "ImplicitVRLittleEndian",
    "ExplicitVRLittleEndian",
    "ExplicitVRBigEndian",
    "DeflatedExplicitVRLittleEndian",
    "RLELossless",
    "JPEGLSLossless",
    "JPEG2000Lossless",
    "JPEGLosslessSV1",
]


def grey_of(stored: object, **elements: object) -> tuple[np.ndarray, str, bool]:
    """Return what ``display`` makes of stored values with these elements in the header."""
    dataset = Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.BitsAllocated, dataset.BitsStored = 16, 12
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelRepresentation = 0
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return display(dataset, np.array([stored], dtype=np.int32))


def table(entries: int, first: int, bits: int, data: object) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [entries, first, bits]
    item.LUTData = data
    return item


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_every_lossless_encoding_gives_the_stored_values_back(
    fuzz_inputs: ModuleType, syntax: str, bits: int
) -> None:
    pixels = (RAMP.astype(int) % 2**bits).astype(np.uint8 if bits == 8 else np.uint16)
    content = fuzz_inputs.dicom_bytes(pixels, bits, getattr(fuzz_inputs, syntax))
    np.testing.assert_array_equal(stored_values(pydicom.dcmread(BytesIO(content))), pixels)


def test_baseline_jpeg_comes_back_to_within_its_loss(fuzz_inputs: ModuleType) -> None:
    pixels = (RAMP // 16).astype(np.uint8)
    content = fuzz_inputs.dicom_bytes(pixels, 8, fuzz_inputs.JPEGBaseline8Bit)
    stored = stored_values(pydicom.dcmread(BytesIO(content)))
    assert np.abs(stored - pixels).mean() < 3


@pytest.mark.parametrize(
    ("name", "rows"),
    [("JPGExtended.dcm", 1024), ("JPEG2000.dcm", 1024), ("JPEGLSNearLossless_16.dcm", 50)],
)
def test_twelve_bit_jpeg_lossy_jpeg2000_and_near_lossless_decode(name: str, rows: int) -> None:
    stored = stored_values(pydicom.dcmread(str(get_testdata_file(name, download=False))))
    assert stored.shape[0] == rows
    assert np.unique(stored).size >= 10


def test_both_processes_of_lossless_jpeg_decode(fuzz_inputs: ModuleType) -> None:
    content = fuzz_inputs.dicom_bytes(RAMP, 12, fuzz_inputs.JPEGLosslessSV1)
    dataset = pydicom.dcmread(BytesIO(content))
    # Selection value 1 is one of those that process 14 allows.
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLossless
    np.testing.assert_array_equal(stored_values(dataset), RAMP)


def test_twelve_bit_jpeg_keeps_twelve_bits() -> None:
    # The sample's levels, as its first row and its extremes were decoded by libjpeg (Thomas
    # Richter); implementations of the inverse DCT may differ by one.
    path = str(get_testdata_file("JPGExtended.dcm", download=False))
    stored = stored_values(pydicom.dcmread(path))
    assert stored.shape == (1024, 256)
    assert abs(int(stored.max()) - 264) <= 1 and int(stored.min()) == 0


@pytest.mark.parametrize("syntax", ["ExplicitVRLittleEndian", "JPEGLosslessSV1", "JPEGLSLossless"])
def test_too_much_pixel_data_is_refused_unless_lenient(
    fuzz_inputs: ModuleType, syntax: str
) -> None:
    content = fuzz_inputs.dicom_bytes(RAMP, 12, getattr(fuzz_inputs, syntax))
    dataset = pydicom.dcmread(BytesIO(content))
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
        dataset.PixelData = encapsulate([frame.rstrip(b"\0") + b"left over!"])
    else:
        # Zeros are padding, of which pydicom warns all the same.
        warnings.filterwarnings("ignore", "The pixel data is")
        dataset.PixelData += bytes(4)
        np.testing.assert_array_equal(stored_values(dataset), RAMP)
        dataset.PixelData += b"left over!"
    with pytest.raises(DataError, match="bytes"):
        stored_values(dataset)
    np.testing.assert_array_equal(stored_values(dataset, lenient=True), RAMP)


def test_rle_that_does_not_fill_the_image_is_refused(
    fuzz_inputs: ModuleType, tmp_path: Path
) -> None:
    content = fuzz_inputs.dicom_bytes((RAMP // 16).astype(np.uint8), 8, fuzz_inputs.RLELossless)
    dataset = pydicom.dcmread(BytesIO(content))
    frame = bytearray(get_frame(dataset.PixelData, 0, number_of_frames=1))
    del frame[-20:]
    dataset.PixelData = encapsulate([bytes(frame)])
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(DataError, match=r"a\.dcm"):
        read_dicom(tmp_path / "a.dcm")


def test_overlay_bits_above_the_stored_ones_are_dropped(fuzz_inputs: ModuleType) -> None:
    with_overlay = RAMP | 0x8000
    content = fuzz_inputs.dicom_bytes(with_overlay, 12, fuzz_inputs.ExplicitVRLittleEndian)
    np.testing.assert_array_equal(stored_values(pydicom.dcmread(BytesIO(content))), RAMP)


def test_signed_values_keep_their_sign(fuzz_inputs: ModuleType) -> None:
    signed = RAMP.astype(np.int16) - 2000
    stored = signed.astype(np.uint16) & 0x0FFF
    content = fuzz_inputs.dicom_bytes(stored, 12, fuzz_inputs.ExplicitVRLittleEndian)
    dataset = pydicom.dcmread(BytesIO(content))
    dataset.PixelRepresentation = 1
    np.testing.assert_array_equal(stored_values(dataset), signed)


def test_a_high_bit_above_the_stored_bits_shifts(fuzz_inputs: ModuleType) -> None:
    content = fuzz_inputs.dicom_bytes(RAMP * 16, 12, fuzz_inputs.ExplicitVRLittleEndian)
    dataset = pydicom.dcmread(BytesIO(content))
    dataset.HighBit = 15
    np.testing.assert_array_equal(stored_values(dataset), RAMP)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"BitsAllocated": 32}, "32 bits a pixel"),
        ({"HighBit": 30}, "bits stored"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "palette"),
        ({"SamplesPerPixel": 4}, "several channels"),
    ],
)
def test_headers_that_cannot_be_are_refused(
    fuzz_inputs: ModuleType, changes: dict[str, object], message: str
) -> None:
    content = fuzz_inputs.dicom_bytes(RAMP, 12, fuzz_inputs.ExplicitVRLittleEndian)
    dataset = pydicom.dcmread(BytesIO(content))
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    with pytest.raises(DataError, match=message):
        stored_values(dataset)


def test_more_bits_stored_than_allocated_are_refused(
    fuzz_inputs: ModuleType, tmp_path: Path
) -> None:
    content = fuzz_inputs.dicom_bytes(RAMP, 12, fuzz_inputs.ExplicitVRLittleEndian)
    dataset = pydicom.dcmread(BytesIO(content))
    dataset.BitsStored = 20
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(DataError, match="Bits Stored"):
        read_dicom(tmp_path / "a.dcm")


def test_a_stream_that_claims_another_size_than_the_header_is_refused(
    fuzz_inputs: ModuleType,
) -> None:
    content = fuzz_inputs.dicom_bytes(RAMP, 12, fuzz_inputs.JPEGLSLossless)
    dataset = pydicom.dcmread(BytesIO(content))
    dataset.Rows = 128
    with pytest.raises(DataError, match="claims 64x80 pixels, the header 128x80"):
        stored_values(dataset)


def test_grey_pictures_in_three_channels_are_read_and_colour_is_not() -> None:
    name = str(get_testdata_file("SC_rgb_jpeg_gdcm.dcm", download=False))
    with pytest.raises(DataError, match="in colour"):
        stored_values(pydicom.dcmread(name))
    dataset = pydicom.dcmread(str(get_testdata_file("SC_rgb_small_odd.dcm", download=False)))
    dataset.PixelData = bytes(np.repeat(np.arange(9, dtype=np.uint8), 3)) + b"\0"
    np.testing.assert_array_equal(stored_values(dataset), np.arange(9).reshape(3, 3))


def test_a_linear_window_by_the_standards_formula() -> None:
    # C.11.2.1.2: centre 100, width 51: black up to 74.5, white above 124.5, linear between.
    elements = {"WindowCenter": 100, "WindowWidth": 51}
    grey, shown_by, _ = grey_of([0, 74, 87, 99.5, 112, 125, 4000, *range(78, 98)], **elements)
    assert shown_by == "window"
    np.testing.assert_array_equal(grey[0, [0, 1, 5, 6]], [0, 0, WHITE, WHITE])
    np.testing.assert_allclose(grey[0, [2, 4]] / WHITE, [0.25, 0.75], atol=1e-4)


def test_exact_and_sigmoid_windows() -> None:
    stored = [100, 125, *range(60, 90)]
    exact, _, _ = grey_of(stored, WindowCenter=100, WindowWidth=100, VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_allclose(exact[0, :2] / WHITE, [0.5, 0.75], atol=1e-4)
    sigmoid, _, _ = grey_of(stored, WindowCenter=100, WindowWidth=100, VOILUTFunction="SIGMOID")
    np.testing.assert_allclose(sigmoid[0, :2] / WHITE, [0.5, 1 / (1 + np.exp(-1))], atol=1e-4)


def test_the_first_of_several_windows_counts() -> None:
    several, _, _ = grey_of([*range(0, 4000, 50)], WindowCenter=[500, 9], WindowWidth=[900, 9])
    first, _, _ = grey_of([*range(0, 4000, 50)], WindowCenter=500, WindowWidth=900)
    np.testing.assert_array_equal(several, first)


@pytest.mark.parametrize("window", [(-9000, 10), (500, 0), (500, -3), (2000, 1)])
def test_a_window_that_misses_the_image_is_passed_over(window: tuple[int, int]) -> None:
    stored = [*range(0, 4000, 25)]
    grey, shown_by, _ = grey_of(stored, WindowCenter=window[0], WindowWidth=window[1])
    assert shown_by == "full range"
    assert (grey.min(), grey.max()) == (0, WHITE)


def test_rescaling_comes_before_the_window() -> None:
    stored = [*range(0, 1000, 5)]
    elements = {"WindowCenter": 1000, "WindowWidth": 1801}
    rescaled, _, _ = grey_of(stored, RescaleSlope=2, RescaleIntercept=10, **elements)
    by_hand, _, _ = grey_of([2 * value + 10 for value in stored], **elements)
    np.testing.assert_array_equal(rescaled, by_hand)


def test_lookup_tables_start_at_their_first_value_and_hold_at_the_ends() -> None:
    rising = np.arange(20, dtype=np.uint16) ** 2
    stored = [0, 100, 101, 119, 500, *range(102, 119)]
    grey, shown_by, _ = grey_of(
        stored, VOILUTSequence=[table(20, 100, 16, rising.tobytes())], WindowCenter=1, WindowWidth=9
    )
    assert shown_by == "VOI LUT"
    expected = np.array([0, 0, 1, 361, 361, *(np.arange(2, 19) ** 2)]) / 361
    np.testing.assert_allclose(grey[0] / WHITE, expected, atol=1e-4)


def test_an_eight_bit_table_with_more_than_256_entries() -> None:
    # Indices above 255 must not wrap round, however narrow the table's values are.
    values = (np.arange(1024) // 4).astype(np.uint16)
    grey, _, _ = grey_of([*range(0, 1024, 8)], VOILUTSequence=[table(1024, 0, 8, values.tobytes())])
    assert (np.diff(grey[0].astype(int)) > 0).all()


def test_a_modality_table_is_used_in_place_of_rescaling() -> None:
    falling = np.arange(63, -1, -1, dtype=np.uint16)
    grey, _, _ = grey_of(
        [0, 63, *range(1, 63)], ModalityLUTSequence=[table(64, 0, 16, falling.tobytes())]
    )
    assert (grey[0, 0], grey[0, 1]) == (WHITE, 0)


def test_a_table_shorter_than_it_says_is_refused() -> None:
    short = table(64, 0, 16, np.arange(10, dtype=np.uint16).tobytes())
    with pytest.raises(DataError, match="10 of 64"):
        grey_of([0, 1], VOILUTSequence=[short])


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME2", "INVERSE", True),
    ],
)
def test_polarity_is_inverted_once(photometric: str, shape: str | None, inverted: bool) -> None:
    elements = {"PhotometricInterpretation": photometric}
    if shape:
        elements["PresentationLUTShape"] = shape
    grey, _, said = grey_of([0, 4095, *range(1, 200)], **elements)
    assert said is inverted
    assert (grey[0, 0] > grey[0, 1]) is np.bool_(inverted)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_stretch_the_rest(photometric: str) -> None:
    elements = {"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 4095}
    grey, _, _ = grey_of(
        [4000, 4095, 0, 1000, *range(0, 1000, 10)],
        PhotometricInterpretation=photometric,
        **elements,
    )
    np.testing.assert_array_equal(grey[0, :2], [0, 0])
    assert set(grey[0, 2:4]) == {0, WHITE}


def test_nothing_but_padding_is_refused() -> None:
    with pytest.raises(DataError, match="padding"):
        grey_of([7, 7], PixelPaddingValue=7)


def test_eight_bits_without_a_window_keep_their_levels() -> None:
    grey, shown_by, _ = grey_of([10, 200, 128], BitsAllocated=8, BitsStored=8)
    assert shown_by == "full range"
    np.testing.assert_array_equal(grey[0], np.array([10, 200, 128]) * 257)


def test_real_images_of_eight_bits_keep_theirs(real_data: Path) -> None:
    read = read_dicom(real_data / "dicom" / "mono2_8bit_jpeg.dcm")
    assert (read.pixels % 257 == 0).all()
