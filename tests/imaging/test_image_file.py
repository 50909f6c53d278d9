"""Image files of every kind a radiograph arrives in, and those that must be refused."""

import os
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from PIL import Image

from adalora_qat.errors import DataError
from adalora_qat.imaging.image_file import load_image, load_mask

RAMP = np.add.outer(np.arange(40) * 3, np.arange(50) * 2).astype(np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_eight_bit_grey_and_colour_come_back_as_they_are(tmp_path: Path) -> None:
    grey = saved(tmp_path / "grey.png", Image.fromarray(RAMP))
    np.testing.assert_array_equal(load_image(grey), RAMP)
    rgb = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=2)
    colour = saved(tmp_path / "colour.tif", Image.fromarray(rgb))
    np.testing.assert_array_equal(load_image(colour), rgb)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "CMYK", "1"])
def test_other_modes_are_read_as_grey_or_colour(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    pixels = load_image(
        saved(tmp_path / f"image.{suffix}", Image.fromarray(RAMP).convert("RGB").convert(mode))
    )
    grey = pixels if pixels.ndim == 2 else pixels[..., 0]
    assert pixels.dtype == np.uint8
    if mode == "1":
        assert set(np.unique(grey)) == {0, 255}
    else:
        # CMYK and the web palette are not exact.
        assert np.abs(grey.astype(int) - RAMP).max() <= {"P": 60, "CMYK": 2}.get(mode, 0)


def test_transparency_lies_over_black(tmp_path: Path) -> None:
    rgba = np.dstack([RAMP, RAMP, RAMP, np.full_like(RAMP, 255)])
    rgba[:10, :, 3] = 0
    pixels = load_image(saved(tmp_path / "alpha.png", Image.fromarray(rgba)))
    assert not pixels[:10].any()
    np.testing.assert_array_equal(pixels[10:, :, 0], RAMP[10:])


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_come_whole(tmp_path: Path, suffix: str, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (31, 17, channels)).astype(np.uint16)
    path = tmp_path / f"deep.{suffix}"
    cv2.imwrite(str(path), pixels[..., ::-1])
    np.testing.assert_array_equal(load_image(path), pixels.squeeze())


def test_integer_and_float_tiffs_keep_their_values(tmp_path: Path) -> None:
    wide = RAMP.astype(np.int32) * 1000 - 7
    np.testing.assert_array_equal(
        load_image(saved(tmp_path / "i.tif", Image.fromarray(wide))), wide
    )
    real = RAMP.astype(np.float32) / 7
    np.testing.assert_array_equal(
        load_image(saved(tmp_path / "f.tif", Image.fromarray(real))), real
    )


def test_exif_orientation_is_honoured(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn by 90° clockwise to see it upright
    path = saved(tmp_path / "side.png", Image.fromarray(RAMP), exif=exif)
    np.testing.assert_array_equal(load_image(path), np.rot90(RAMP, -1))


def test_one_page_is_read_and_several_are_refused(tmp_path: Path) -> None:
    page = Image.fromarray(RAMP)
    assert load_image(saved(tmp_path / "one.tif", page)).shape == (40, 50)
    many = saved(tmp_path / "many.tif", page, save_all=True, append_images=[page, page])
    with pytest.raises(DataError, match=r"many\.tif: 3 pages"):
        load_image(many)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp"])
@pytest.mark.parametrize("cut", [3, 12, 300, 0.5])
def test_truncation_is_found_wherever_it_falls(tmp_path: Path, suffix: str, cut: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    path = saved(tmp_path / f"cut.{suffix}", Image.fromarray(noise))
    content = path.read_bytes()
    keep = int(len(content) * cut) if cut < 1 else len(content) - int(cut)
    # The tags of a TIFF stand at its end; everything a bitmap holds is pixels.
    path.write_bytes(content[:keep])
    with pytest.raises(DataError, match=rf"cut\.{suffix}.*(truncated|damaged)"):
        load_image(path)


def test_missing_constant_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.png does not exist"):
        load_image(tmp_path / "none.png")
    with pytest.raises(DataError, match="is a folder"):
        load_image(tmp_path)
    flat = saved(tmp_path / "flat.png", Image.new("L", (9, 9), 128))
    with pytest.raises(DataError, match=r"flat\.png is an image of one colour"):
        load_image(flat)
    page = tmp_path / "page.jpg"
    page.write_text("<html>not found</html>")
    with pytest.raises(DataError, match=r"page\.jpg cannot be read as an image"):
        load_image(page)
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty\.png cannot be read"):
        load_image(tmp_path / "empty.png")


@pytest.mark.parametrize("foreground", [1, 255])
def test_masks_are_read_whatever_their_foreground(tmp_path: Path, foreground: int) -> None:
    expected = RAMP > 100
    grey = (expected * foreground).astype(np.uint8)
    for name, image in {
        "grey.png": Image.fromarray(grey),
        "colour.png": Image.fromarray(np.dstack([grey] * 3)),
        "bits.png": Image.fromarray(expected),
    }.items():
        np.testing.assert_array_equal(load_mask(saved(tmp_path / name, image)), expected)


def test_mask_without_foreground_is_all_false(tmp_path: Path) -> None:
    path = saved(tmp_path / "empty.png", Image.new("L", (9, 9)))
    assert not load_mask(path).any()


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp", "gif", "jp2", "ppm"])
def test_too_many_pixels_are_refused_from_the_header(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"large.{suffix}", Image.fromarray(RAMP))
    for load in (load_image, load_mask):
        with pytest.raises(DataError, match=rf"large\.{suffix}.*40x50.*1999.*raise max_pixels"):
            load(path, max_pixels=1999)
        assert load(path, max_pixels=2000).shape[:2] == (40, 50)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    # 169 megapixels in 165 kB; decoding it takes 169 MB.
    path = saved(tmp_path / "bomb.png", Image.new("L", (13_000, 13_000), 7))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"13000x13000 pixels.*100000000"):
        load_image(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize("size", [(5328, 4248), (10_000, 10_000)])
def test_the_largest_radiographs_pass(tmp_path: Path, size: tuple[int, int]) -> None:
    # Pillow warns from 89 megapixels on, and its limit is left as it was.
    picture = Image.new("L", size, 7)
    picture.putpixel((0, 0), 200)
    before = Image.MAX_IMAGE_PIXELS
    assert load_image(saved(tmp_path / "large.png", picture)).shape == size[::-1]
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        ("png", lambda content: content.replace(content[60:64], b"\1\2\3\4", 1)),
        ("png", lambda content: content[:-6]),
        ("jpg", lambda content: content[:900] + content[930:]),
        ("jpg", lambda content: content + b"left over"),
        ("jp2", lambda content: content[:-40]),
    ],
)
def test_damage_is_refused_by_name(
    tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    path = saved(tmp_path / f"hurt.{suffix}", Image.fromarray(noise))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"hurt\.{suffix}"):
        load_image(path)


def test_lenient_takes_what_the_decoder_makes_of_it(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    path = saved(tmp_path / "hurt.jpg", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[:900] + path.read_bytes()[930:])
    assert load_image(path, lenient=True).shape == (64, 64)
    with pytest.raises(DataError):
        load_image(
            saved(tmp_path / "large.jpg", Image.fromarray(noise)), max_pixels=9, lenient=True
        )


@pytest.mark.parametrize("progressive", [False, True])
def test_lenient_reads_what_is_there_of_a_jpeg_that_is_cut(
    tmp_path: Path, progressive: bool
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 64), dtype=np.uint8)
    path = tmp_path / "cut.jpg"
    Image.fromarray(noise).save(path, quality=95, progressive=progressive)
    whole = load_image(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"cut\.jpg.*truncated"):
        load_image(path)
    found = load_image(path, lenient=True)
    assert found.shape == whole.shape
    if not progressive:
        np.testing.assert_array_equal(found[:96], whole[:96])
        assert len(np.unique(found[-64:])) < 20  # what libjpeg fills in


def test_a_large_colour_image_is_read_as_a_small_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (600, 7, 4), dtype=np.uint8)
    pixels = load_image(saved(tmp_path / "alpha.png", Image.fromarray(colours)))
    over_black = colours[..., :3] * (colours[..., 3:] / 255.0)
    assert np.abs(pixels - over_black).max() <= 1
    plain = load_image(saved(tmp_path / "plain.png", Image.fromarray(colours[..., :3])))
    np.testing.assert_array_equal(plain, colours[..., :3])


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_reading_changes_no_pixel_of_a_sound_file(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(RAMP))
    np.testing.assert_array_equal(load_image(path), np.asarray(Image.open(path)))


def test_names_that_no_terminal_shows_are_escaped(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/film\xff\x1b[31m.png"
    path = Path(os.fsdecode(name))
    with pytest.raises(DataError, match="does not exist") as refusal:
        load_image(path)
    assert "film\\udcff\\x1b[31m.png" in str(refusal.value)
    assert str(refusal.value).isprintable()
    saved(path, Image.fromarray(RAMP))
    np.testing.assert_array_equal(load_image(path), RAMP)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="truncated") as refusal:
        load_image(path)
    assert str(refusal.value).isprintable()


def test_what_cannot_be_opened_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(File name too long\)"):
        load_image(tmp_path / ("n" * 300))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="no regular file"):
        load_image(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="null"):
        load_image(Path("a\0b.png"))
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(DataError, match=r"loop\.png cannot be read"):
        load_image(tmp_path / "loop.png")
    path = saved(tmp_path / "locked.png", Image.fromarray(RAMP))

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Tests may run as root, for whom every file is readable.
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(DataError, match=r"locked\.png cannot be read \(Permission denied\)"):
        load_image(path)


def test_no_damage_to_a_png_passes_and_jpeg_passes_less_than_lenient(
    tmp_path: Path, fuzz_inputs: ModuleType
) -> None:
    seeds = {
        name: content
        for name, content in fuzz_inputs.sound_files(64).items()
        if name.endswith((".png", ".jpg"))
    }
    changed = Counter[tuple[str, bool]]()
    for number, (name, content) in enumerate(fuzz_inputs.mutated(seeds, 300, seed=7)):
        suffix = Path(name).suffix
        sound, hurt = tmp_path / f"sound{suffix}", tmp_path / f"{number}{suffix}"
        sound.write_bytes(seeds[name])
        hurt.write_bytes(content)
        for lenient in (False, True):
            try:
                pixels = load_image(hurt, lenient=lenient)
            except DataError as error:
                assert hurt.name in str(error)
                continue
            changed[suffix, lenient] += not np.array_equal(pixels, load_image(sound))
    assert changed[".png", False] == 0
    assert 3 * changed[".jpg", False] < changed[".jpg", True]
