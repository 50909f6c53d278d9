"""Sizes read from streams that other programs wrote."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from adalora_qat.errors import DataError
from adalora_qat.imaging.codestream import CodedSize, coded_size

GREY = Image.fromarray(np.arange(30 * 50, dtype=np.uint8).reshape(30, 50))


def saved(picture: Image.Image, **how: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, **how)
    return buffer.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(("mode", "components"), [("L", 1), ("RGB", 3)])
def test_jpeg(progressive: bool, mode: str, components: int) -> None:
    stream = saved(GREY.convert(mode), format="JPEG", progressive=progressive)
    assert coded_size(stream) == CodedSize(30, 50, 8, components)


def test_jpeg_with_fill_bytes_and_a_comment_before_the_frame() -> None:
    stream = saved(GREY, format="JPEG", comment=b"\xff\xc0" * 40)
    padded = stream[:2] + b"\xff\xff" + stream[2:]
    assert coded_size(padded) == CodedSize(30, 50, 8, 1)


@pytest.mark.parametrize("no_jp2", [True, False])
def test_jpeg_2000_as_stream_and_as_file(no_jp2: bool) -> None:
    assert coded_size(saved(GREY, format="JPEG2000", no_jp2=no_jp2)) == CodedSize(30, 50, 8, 1)


def test_jpeg_ls() -> None:
    import jpeg_ls

    values = np.arange(30 * 50, dtype=np.uint16).reshape(30, 50)
    stream = bytes(jpeg_ls.encode_array(values))
    size = coded_size(stream)
    assert size is not None and (size.height, size.width) == (30, 50)


@pytest.mark.parametrize("stream", [b"", b"\x00" * 64, b"RLE?", b"\x89PNG"])
def test_other_data_has_no_size(stream: bytes) -> None:
    assert coded_size(stream) is None


@pytest.mark.parametrize(
    "stream",
    [b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\xff\xd8\x00\x00\x00\x00", b"\xff\x4f\xff\x51\x00"],
)
def test_a_stream_that_ends_before_its_size_is_refused(stream: bytes) -> None:
    with pytest.raises(DataError):
        coded_size(stream)


def test_lengths_of_nothing_do_not_loop_for_ever() -> None:
    with pytest.raises(DataError):
        coded_size(b"\xff\xd8" + b"\xff\xe0\x00\x00" * 50)
