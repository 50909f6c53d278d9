"""Augmentation: image and mask move as one, tones stay in range, nothing else happens."""

import cv2
import numpy as np
import pytest

from adalora_qat.config import AugmentConfig
from adalora_qat.samples.augment import augment, moved_masks
from adalora_qat.samples.streams import stream

STILL = {"rotate_deg": 0, "shift": 0, "scale": 0}
TONELESS = {"contrast": 0, "gamma": 0, "noise": 0, "blur_px": 0}


def picture(h: int = 90, w: int = 120) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:h, :w]
    mask = ((x - 50) / 30) ** 2 + ((y - 45) / 20) ** 2 < 1
    return np.where(mask, 0.9, 0.2).astype(np.float32), mask[None]


def draw(number: int) -> np.random.Generator:
    return stream("test", 0, 0, str(number))


def test_without_ranges_nothing_changes() -> None:
    unit, masks = picture()
    moved, moved_mask = augment(unit, masks, AugmentConfig(**STILL, **TONELESS), draw(0))
    np.testing.assert_array_equal(moved_mask, masks)
    np.testing.assert_allclose(moved, unit, atol=1 / 4000)  # the tone table has 4096 steps


@pytest.mark.parametrize("number", range(10))
def test_image_and_mask_move_as_one(number: int) -> None:
    unit, masks = picture()
    config = AugmentConfig(rotate_deg=20, shift=0.1, scale=0.2, flip=0.5, **TONELESS)
    moved, moved_mask = augment(unit, masks, config, draw(number))
    bright = moved > 0.55
    assert (bright != moved_mask[0]).sum() <= 0.01 * moved_mask.sum()
    assert (moved_mask != masks).any()


@pytest.mark.parametrize("number", range(10))
def test_tones_stay_in_range_and_masks_still(number: int) -> None:
    unit, masks = picture()
    config = AugmentConfig(**STILL, contrast=0.5, gamma=0.5, noise=0.2, blur_px=2.0)
    toned, same = augment(unit, masks, config, draw(number))
    np.testing.assert_array_equal(same, masks)
    assert toned.dtype == np.float32
    assert toned.min() >= 0
    assert toned.max() <= 1
    assert np.abs(toned - unit).mean() > 0.01


def test_tones_keep_their_order() -> None:
    ramp = np.tile(np.linspace(0, 1, 200, dtype=np.float32), (10, 1))
    masks = np.ones((1, 10, 200), bool)
    config = AugmentConfig(**STILL, contrast=0.3, gamma=0.4, noise=0)
    for number in range(20):
        toned, _ = augment(ramp, masks, config, draw(number))
        assert (np.diff(toned[0]) >= 0).all()


def test_flip_is_off_unless_asked_for() -> None:
    unit, masks = picture()
    assert AugmentConfig().flip == 0
    still = AugmentConfig(**STILL, **TONELESS, flip=1)
    moved, moved_mask = augment(unit, masks, still, draw(0))
    np.testing.assert_array_equal(moved_mask, masks[:, :, ::-1])
    np.testing.assert_allclose(moved, unit[:, ::-1], atol=1 / 4000)


def test_a_shift_of_whole_pixels_moves_an_outline_by_just_that() -> None:
    _, masks = picture()
    matrix = np.array([[1.0, 0, 7], [0, 1, -3]])
    expected = np.roll(masks, (-3, 7), axis=(1, 2))
    np.testing.assert_array_equal(moved_masks(masks, matrix), expected)


@pytest.mark.parametrize("number", range(12))
def test_moving_the_box_of_a_mask_moves_the_mask(number: int) -> None:
    """Against OpenCV on the whole plane, also for masks at and over the edges."""
    rng = draw(number)
    masks = np.zeros((3, 70, 90), bool)
    masks[0, 20:40, 30:70] = masks[1, :9, 80:] = masks[2, 60:, :] = True
    masks &= rng.random(masks.shape) < 0.9
    matrix = cv2.getRotationMatrix2D((44.5, 34.5), rng.uniform(-40, 40), rng.uniform(0.6, 1.6))
    matrix[:, 2] += rng.uniform(-50, 50, 2)
    planes = [cv2.warpAffine(mask.astype(np.float32), matrix, (90, 70)) for mask in masks]
    moved, expected = moved_masks(masks, matrix), np.stack(planes) > 0.5
    # OpenCV rounds positions, which depend on where the plane begins: ties may fall either way.
    assert (moved != expected).sum() <= 0.002 * masks.size
    far = np.stack([cv2.dilate(each.astype(np.uint8), np.ones((3, 3))) for each in expected])
    assert not (moved & (far == 0)).any()


def test_half_a_pixel_does_not_drift() -> None:
    _, masks = picture()
    centre = np.argwhere(masks[0]).mean(axis=0)
    for sign in (-0.5, 0.5):
        moved = moved_masks(masks, np.array([[1.0, 0, sign], [0, 1, sign]]))
        drift = np.argwhere(moved[0]).mean(axis=0) - centre
        # Ties at one half go to the background on both sides alike.
        np.testing.assert_allclose(drift, [sign, sign], atol=0.05)


def test_a_mask_is_never_pushed_out() -> None:
    unit = np.zeros((50, 50), np.float32)
    masks = np.zeros((2, 50, 50), bool)
    masks[0, 0, 0] = masks[1, 20:30, 20:30] = True
    for number in range(30):
        config = AugmentConfig(shift=0.3, rotate_deg=30)
        _, moved = augment(unit, masks, config, draw(number))
        assert moved.any(axis=(1, 2)).all()


def test_the_same_stream_makes_the_same_sample() -> None:
    unit, masks = picture()
    config = AugmentConfig(blur_px=1.0)
    first, again = (augment(unit, masks, config, draw(3))[0] for _ in range(2))
    other, _ = augment(unit, masks, config, draw(4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_noise_is_gaussian_of_the_drawn_strength() -> None:
    unit = np.full((300, 300), 0.5, np.float32)
    unit[0, 0], unit[0, 1] = 0, 1
    config = AugmentConfig(**STILL, contrast=0, gamma=0, noise=0.05)
    masks = np.ones((1, 300, 300), bool)
    strengths = []
    for number in range(30):
        noise = augment(unit, masks, config, draw(number))[0][1:] - 0.5
        strengths.append(noise.std())
        assert abs(noise.mean()) < 0.001
        assert abs((noise**4).mean() / noise.var() ** 2 - 3) < 0.15  # kurtosis of a Gaussian
        rows = np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]
        assert abs(rows) < 0.02
    assert 0.03 < max(strengths) < 0.051
    assert min(strengths) < 0.01


def exposed(probability: float, count: int) -> tuple[np.ndarray, list[np.ndarray]]:
    ramp = np.tile(np.linspace(0, 1, 4096, dtype=np.float32), (4, 1))
    config = AugmentConfig(**STILL, **TONELESS, exposure=probability)
    masks = np.ones((1, *ramp.shape), bool)
    return ramp[0], [augment(ramp, masks, config, draw(n))[0][0] for n in range(count)]


def test_exposure_burns_out_dims_and_cuts_off() -> None:
    ramp, curves = exposed(1, 200)
    white, black = (np.array([(c == end).mean() for c in curves]) for end in (1, 0))
    for curve in curves:
        middle = (curve > 0.02) & (curve < 0.98)
        assert curve.min() >= 0 and curve.max() <= 1
        # A straight, rising line between what is cut off.
        line = np.polynomial.Polynomial.fit(ramp[middle], curve[middle], 1)
        np.testing.assert_allclose(curve[middle], line(ramp[middle]), atol=1 / 2000)
        assert line.convert().coef[1] > 0.5
    assert 0.3 < white.max() < 0.6 and 0.1 < black.max() < 0.34
    # Overexposed, cut off below, and neither: none is rare.
    assert min((white > 0.1).mean(), (black > 0.05).mean(), (white < 0.01).mean()) > 0.1
    assert min(curve.max() for curve in curves) < 0.7


def test_exposure_is_as_frequent_as_asked_and_off_by_default() -> None:
    assert AugmentConfig().exposure == 0
    ramp, curves = exposed(0.3, 300)
    changed = np.mean([np.abs(curve - ramp).max() > 0.01 for curve in curves])
    assert abs(changed - 0.3) < 0.08


def test_exposure_leaves_other_draws_alone() -> None:
    unit, masks = picture()
    plain = AugmentConfig(noise=0.05, blur_px=1.0, contrast=0, gamma=0)
    never = plain.model_copy(update={"exposure": 1e-9})
    always = plain.model_copy(update={"exposure": 1.0})
    one, two, three = (augment(unit, masks, c, draw(5)) for c in (plain, never, always))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], three[1])
    assert (one[0] != three[0]).any()
