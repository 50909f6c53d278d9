import numpy as np
import pytest

from adalora_qat.config import AugmentConfig
from adalora_qat.samples.clutter import cluttered

OFF = AugmentConfig(enabled=True)
UNIT = np.linspace(0, 1, 96 * 64, dtype=np.float32).reshape(96, 64)
MASKS = np.zeros((1, 96, 64), dtype=np.bool_)
MASKS[0, 30:70, 20:50] = True


def test_nothing_is_drawn_unless_asked_for() -> None:
    assert cluttered(UNIT, MASKS, OFF, np.random.default_rng(0)) is UNIT


@pytest.mark.parametrize("kind", ["markers", "devices", "collar"])
def test_each_kind_draws_within_the_range_and_repeats(kind: str) -> None:
    config = OFF.model_copy(update={kind: 1.0})
    drawn = [cluttered(UNIT, MASKS, config, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    for image in drawn:
        assert image.dtype == np.float32 and image.shape == UNIT.shape
        assert image.min() >= 0 and image.max() <= 1 and (image != UNIT).any()


def test_a_collar_leaves_the_masks_alone() -> None:
    config = OFF.model_copy(update={"collar": 1.0})
    for seed in range(20):
        image = cluttered(UNIT, MASKS, config, np.random.default_rng(seed))
        np.testing.assert_array_equal(image[MASKS[0]], UNIT[MASKS[0]])


def test_other_draws_stay_what_they_were() -> None:
    rng, same = np.random.default_rng(3), np.random.default_rng(3)
    cluttered(UNIT, MASKS, OFF.model_copy(update={"devices": 1.0}), rng)
    assert rng.random() == same.random()
