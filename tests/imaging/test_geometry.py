"""The map original ↔ model frame, against published preprocessing and by round trips."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adalora_qat.errors import DataError
from adalora_qat.imaging import geometry
from adalora_qat.imaging.geometry import Frame, FrameMap

DATA = Path(
    os.environ.get("ADALORA_QAT_DATA", Path(__file__).parents[2].parent / "shared" / "data")
)
SIZES = [(256, 256), (301, 517), (517, 301), (1999, 777), (97, 1501), (1501, 97), (130, 131)]


def ellipse(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return ((x / width - 0.45) / 0.3) ** 2 + ((y / height - 0.52) / 0.35) ** 2 < 1


def logits_of(mask: np.ndarray, side: int) -> np.ndarray:
    """Perfect ±10 logits of side L by area averaging of the model-frame mask."""
    factor = mask.shape[0] // side
    share = mask.reshape(side, factor, side, factor).mean(axis=(1, 3))
    return (20 * share - 10).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("side", "low"), [(256, 256), (1024, 256)])
def test_mask_round_trip_is_aligned_to_the_pixel(size: tuple, side: int, low: int) -> None:
    mask = ellipse(*size)
    frame_map = FrameMap(*size, side)
    model_mask = geometry.mask_to_model(mask, frame_map)
    back = geometry.logits_to_original(logits_of(model_mask, low), frame_map) > 0
    assert back.shape == size
    dice = 2 * (back & mask).sum() / (back.sum() + mask.sum())
    # A step of the low-resolution grid is max(size)/low pixels of the original; a thin strip
    # is only a few steps wide, so that its outline is known to a share of its width only.
    steps_across = 0.6 * min(size) * low / max(size)
    assert dice > 1 - 0.55 / steps_across
    shift = [
        abs(a.mean() - b.mean()) for a, b in zip(np.nonzero(back), np.nonzero(mask), strict=True)
    ]
    assert max(shift) < max(0.5, 0.25 * max(size) / low)
    if max(size) <= 2 * low:
        assert max(shift) < 0.5


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (3, 3)])
def test_the_thinnest_images_map(size: tuple) -> None:
    frame_map = FrameMap(*size, 256)
    assert min(frame_map.valid_hw) >= 1
    assert max(frame_map.valid_hw) == 256
    assert geometry.logits_to_original(np.ones((256, 256)), frame_map).shape == size


@pytest.mark.parametrize("low", [256, 64])
def test_padding_never_leaks_into_the_image(low: int) -> None:
    # 700/1024 of 64 is no whole pixel: the fraction is kept, what lies beyond is not read.
    frame_map = FrameMap(700, 1024, 1024)
    logits = np.full((low, low), -50.0)
    logits[: int(np.ceil(700 * low / 1024))] = 7.0
    np.testing.assert_array_equal(geometry.logits_to_original(logits, frame_map), 7.0)


def test_logits_that_are_linear_stay_linear_and_in_place() -> None:
    # Value = its own x in the original; interpolation must give x back, apart from the border.
    frame_map = FrameMap(200, 600, 256)
    h, w = frame_map.valid_hw
    x_original = (np.arange(256) + 0.5) * 600 / w
    back = geometry.logits_to_original(np.tile(x_original, (256, 1)), frame_map)
    np.testing.assert_allclose(back[:, 2:-2], np.tile(np.arange(2, 598) + 0.5, (200, 1)), rtol=1e-4)
    assert (h, w) == (85, 256)


@pytest.mark.parametrize("size", SIZES)
def test_boxes_round_trip_exactly(size: tuple) -> None:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, min(size), (50, 2, 2)), axis=1).reshape(50, 4)
    frame_map = FrameMap(*size, 256)
    back = geometry.boxes_to_original(geometry.boxes_to_model(corners, frame_map), frame_map)
    np.testing.assert_array_equal(back, corners)


def test_box_of_the_whole_image_is_the_valid_extent() -> None:
    frame_map = FrameMap(300, 1000, 256)
    box = geometry.boxes_to_model(geometry.whole_box(300, 1000), frame_map)
    np.testing.assert_allclose(box, [0, 0, 256, 77])
    assert frame_map.valid_hw == (77, 256)


def test_square_image_matches_the_published_preprocessing() -> None:
    image = np.random.default_rng(1).integers(0, 256, (512, 512), dtype=np.uint8)
    small = np.asarray(
        Image.fromarray(image).resize((256, 256), Image.Resampling.BILINEAR), dtype=np.float32
    )
    expected = (small - small.min()) / (small.max() - small.min())
    model_image, _ = geometry.image_to_model(image, Frame(256))
    np.testing.assert_array_equal(model_image, np.stack([expected] * 3))


@pytest.mark.skipif(not (DATA / "jsrt").is_dir(), reason=f"no real radiographs at {DATA}")
def test_golden_boxes_come_from_the_masks_in_the_model_frame() -> None:
    path = DATA.parent / "golden" / "litemedsam_zero_shot.npz"
    if not path.is_file():
        pytest.skip(f"no reference file {path}")
    with np.load(path) as golden:
        name, box = str(golden["name_0"]), golden["box_xyxy_0"].ravel()
    stem = name.split("/")[1]
    image = geometry.load_image(DATA / "jsrt" / "images" / f"{stem}.jpg")
    _, frame_map = geometry.image_to_model(image, Frame(256))
    folder = DATA / "jsrt" / "masks"
    mask = geometry.load_mask(folder / "left_lung" / f"{stem}.png")
    mask |= geometry.load_mask(folder / "right_lung" / f"{stem}.png")
    ours = geometry.mask_box_inclusive(geometry.mask_to_model(mask, frame_map))
    assert np.abs(ours - box).max() <= 6  # the reference boxes are jittered by up to 5 px


def test_sixteen_bits_are_not_cut_to_eight() -> None:
    # Grey steps of 1 in 65536 vanish in 8 bits.
    image = (30000 + np.arange(64 * 64).reshape(64, 64) % 61).astype(np.uint16)
    model_image, _ = geometry.image_to_model(image, Frame(64))
    assert len(np.unique(model_image)) == 61
    np.testing.assert_allclose(model_image[0], (image - 30000) / 60, atol=2e-5)


def test_imagenet_normalisation_of_eight_bits() -> None:
    image = np.array([[0, 255], [255, 0]], dtype=np.uint8)
    model_image, _ = geometry.image_to_model(image, Frame(2, "imagenet"))
    np.testing.assert_allclose(model_image[:, 0, 0], -np.array([0.485, 0.456, 0.406]) /
                               np.array([0.229, 0.224, 0.225]), rtol=1e-6)  # fmt: skip


def test_colour_becomes_grey_as_pillow_does_it() -> None:
    rgb = np.random.default_rng(2).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(geometry.to_grey(rgb), Image.fromarray(rgb).convert("L"))
    np.testing.assert_array_equal(geometry.to_grey(rgb[..., :1]), rgb[..., 0])
    deep = geometry.to_grey(rgb.astype(np.uint16) * 257)
    luma = rgb @ [0.299, 0.587, 0.114]
    expected = (luma - luma.min()) / (luma.max() - luma.min()) * 65535
    np.testing.assert_allclose(deep, expected, atol=1)


@pytest.mark.parametrize(
    "image",
    [
        np.full((8, 8), 77, np.uint8),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((0, 8), np.uint8),
        np.array([[0.0, np.nan]]),
        np.array([[1 + 1j, 0]]),
    ],
)
def test_unusable_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(DataError):
        geometry.image_to_model(image, Frame(8))


def test_mask_of_another_size_is_refused() -> None:
    with pytest.raises(DataError, match="does not fit"):
        geometry.mask_to_model(np.ones((4, 5), bool), FrameMap(5, 4, 8))


def test_a_mask_has_a_first_and_last_pixel_and_edges_round_them() -> None:
    mask = np.zeros((10, 20), bool)
    mask[3:7, 5:9] = True
    np.testing.assert_array_equal(geometry.mask_box_inclusive(mask), [5, 3, 8, 6])
    edges = geometry.mask_box_edges(mask)
    np.testing.assert_array_equal(edges, [5, 3, 9, 7])
    assert (edges[2] - edges[0]) * (edges[3] - edges[1]) == mask.sum()
    np.testing.assert_array_equal(geometry.last_pixels(edges), [5, 3, 8, 6])
    np.testing.assert_array_equal(geometry.last_pixels(edges - 0.25), [4.75, 2.75, 8, 6])
    full = geometry.mask_box_edges(np.ones((10, 20)))
    np.testing.assert_array_equal(full, geometry.whole_box(10, 20))
    for draw in (geometry.mask_box_inclusive, geometry.mask_box_edges):
        with pytest.raises(DataError, match="no foreground"):
            draw(np.zeros((4, 4)))


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((5, 5, 2, 9), "reversed"),
        ((5, 9, 7, 2), "reversed"),
        ((5, 5, 5, 9), "empty"),
        ((-1, 0, 5, 5), "outside"),
        ((0, 0, 21, 5), "outside"),
        ((0, 0, 5, 11), "outside"),
        ((0, 0, 5), "four finite"),
        ((0, 0, 5, float("nan")), "four finite"),
        ("a box", "four finite"),
    ],
)
def test_bad_boxes_are_refused_with_the_reason(box: object, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        geometry.check_box(box, (10, 20))


def test_good_boxes_pass_unchanged() -> None:
    np.testing.assert_array_equal(geometry.check_box((0, 0, 20, 10), (10, 20)), [[0, 0, 20, 10]])
