"""Damage that a file's own marks give away, done to files that other programs wrote."""

import re
from io import BytesIO
from types import ModuleType, SimpleNamespace

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.encaps import get_frame

from adalora_qat.errors import DataError
from adalora_qat.imaging.integrity import (
    MOST_SCANS,
    check_j2k,
    check_jpeg,
    check_scans,
    check_strips,
    refusing,
    warnings_heard,
)

NOISE = np.random.default_rng(0).integers(0, 256, (64, 96), dtype=np.uint8)
GREY = Image.fromarray(NOISE)


def saved(picture: Image.Image = GREY, **how: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, **how)
    return buffer.getvalue()


def frame_of(content: bytes) -> bytes:
    return get_frame(pydicom.dcmread(BytesIO(content)).PixelData, 0, number_of_frames=1)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize(
    "how", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"optimize": True}]
)
def test_sound_jpegs_pass(mode: str, how: dict[str, object]) -> None:
    check_jpeg(saved(GREY.convert(mode), format="JPEG", **how))


def test_sound_streams_of_dicom_pass(fuzz_inputs: ModuleType) -> None:
    deep = NOISE.astype(np.uint16) * 16
    for syntax in (fuzz_inputs.JPEGLSLossless, fuzz_inputs.JPEGLosslessSV1):
        check_jpeg(frame_of(fuzz_inputs.dicom_bytes(deep, 12, syntax)), bits=12)
    check_j2k(frame_of(fuzz_inputs.dicom_bytes(deep, 12, fuzz_inputs.JPEG2000Lossless)))
    for name in ("JPEG2000.dcm", "693_J2KI.dcm"):
        path = get_testdata_file(name, download=False)
        check_j2k(get_frame(pydicom.dcmread(path).PixelData, 0, number_of_frames=1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s[:-2], "without its end"),
        (lambda s: s[: len(s) // 2], "without its end"),
        (lambda s: s[:10], "longer than the file"),
        (lambda s: s + b"1234", "after the end"),
        (lambda s: s[:2] + b"\x00" + s[2:], "out of place"),
        (lambda s: s.replace(b"\xff\xd2", b"\xff\xd5", 1), "out of order"),
        # Half of the data gone, the end still there: only a decoder notices.
        (lambda s: s[: len(s) // 2].rstrip(b"\xff") + b"\xff\xd9", "damaged JPEG data"),
    ],
)
def test_jpeg_damage_is_named(damage: object, message: str) -> None:
    stream = saved(format="JPEG", restart_marker_blocks=8)
    with pytest.raises(DataError, match=message):
        check_jpeg(damage(stream))


def test_a_piece_lost_between_restarts_is_missed(fuzz_inputs: ModuleType) -> None:
    stream = saved(format="JPEG", restart_marker_blocks=8)
    first, second = (stream.index(bytes([0xFF, 0xD0 + number])) for number in (0, 1))
    with pytest.raises(DataError, match="out of order"):
        check_jpeg(stream[:first] + stream[second:])


def test_one_byte_of_padding_and_zeros_are_no_damage() -> None:
    stream = saved(format="JPEG")
    check_jpeg(stream + b"\xd9")
    check_jpeg(stream + b"\0" * 40)
    check_jpeg(stream + stream, pictures=True)


def test_a_jpeg_of_thousands_of_scans_is_refused() -> None:
    stream = saved(format="JPEG", progressive=True)
    check_scans(stream)
    scan = re.search(rb"\xff\xda.*?(?=\xff\xc4|\xff\xda|\xff\xd9)", stream, re.DOTALL)
    assert scan is not None
    with pytest.raises(DataError, match="scans"):
        check_scans(stream[:-2] + scan[0] * MOST_SCANS + stream[-2:])


@pytest.mark.parametrize("no_jp2", [True, False])
@pytest.mark.parametrize("keep", [30, 0.3, 0.9])
def test_a_cut_jpeg_2000_is_refused(no_jp2: bool, keep: float) -> None:
    stream = saved(format="JPEG2000", no_jp2=no_jp2)
    check_j2k(stream)
    with pytest.raises(DataError, match="JPEG 2000"):
        check_j2k(stream[: int(len(stream) * keep if keep < 1 else keep)])


def test_a_jpeg_2000_with_a_piece_lost_is_refused() -> None:
    stream = saved(format="JPEG2000", no_jp2=True)
    with pytest.raises(DataError, match="without its end"):
        check_j2k(stream[:500] + stream[540:])


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "jpeg"])
@pytest.mark.parametrize("mode", ["L", "RGB", "1", "I;16"])
def test_sound_tiffs_pass(compression: str | None, mode: str) -> None:
    if compression == "jpeg" and mode in ("1", "I;16"):
        return
    picture = Image.fromarray(NOISE.astype(np.uint16)) if mode == "I;16" else GREY.convert(mode)
    content = saved(picture, format="TIFF", compression=compression)
    with Image.open(BytesIO(content)) as image:
        check_strips(image, len(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({273: (8, 3008), 279: (3072, 3072)}, "overlap"),
        ({273: (4,), 279: (6144,)}, "overlap"),
        ({273: (8, 3080), 279: (3072,)}, "overlap"),
        ({273: (8,), 279: (7000,)}, "beyond the end"),
        ({273: (8,), 279: (6000,)}, "6000 bytes, not 6144"),
    ],
)
def test_strips_out_of_place_are_named(changes: dict[int, object], message: str) -> None:
    tags = {258: (8,), 259: 1, 277: 1, 284: 1} | changes
    image = SimpleNamespace(tag_v2=tags, width=96, height=64)
    with pytest.raises(DataError, match=message):
        check_strips(image, 6500)


def test_warnings_are_heard_and_not_shown(recwarn: pytest.WarningsRecorder) -> None:
    import warnings

    with warnings_heard() as heard:
        warnings.warn("odd", stacklevel=1)
        warnings.warn("odd", stacklevel=1)
    assert heard == ["odd", "odd"] and not recwarn.list


@pytest.mark.parametrize(
    ("said", "ends"),
    [
        ("strips overlap; damaged", "damaged: copy it again or leave it out"),
        ("no end; truncated", "truncated: copy it again or leave it out"),
        ("two pages; save one", "two pages; save one"),
    ],
)
def test_a_refusal_names_the_file_and_a_remedy(said: str, ends: str) -> None:
    with pytest.raises(DataError) as refusal, refusing("x.jpg", "{}"):
        raise DataError(said)
    assert str(refusal.value).startswith("x.jpg: ") and str(refusal.value).endswith(ends)
