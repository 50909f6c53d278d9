"""Opacities: inside the organ only, brighter only, and as often as asked."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from adalora_qat.samples.opacity import opacified


def chest() -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return a grey plane with two dark lungs, and their mask."""
    unit = np.full((128, 120), 0.8, np.float32)
    mask = np.zeros((128, 120), bool)
    mask[20:110, 15:50] = mask[20:110, 70:105] = True
    unit[mask] = 0.2
    return unit, mask


def test_brightens_the_organ_and_nothing_else() -> None:
    unit, mask = chest()
    changed = []
    for seed in range(50):
        painted = opacified(unit, mask, 1.0, np.random.default_rng(seed))
        far = ~np.pad(mask, 3, mode="edge")[3:-3, 3:-3]
        assert (painted >= unit).all()
        assert painted.max() <= unit.max() + 1e-6
        assert np.array_equal(painted[far], unit[far])
        changed.append(float((painted - unit)[mask].mean()))
    assert min(changed) > 0
    # Half of the way to tissue, over a part of the lung, is what an ordinary draw does.
    assert 0.05 < np.mean(changed) < 0.5


def test_probability_and_repeatability() -> None:
    unit, mask = chest()
    painted = [opacified(unit, mask, 0.3, np.random.default_rng(seed)) for seed in range(400)]
    share = np.mean([not np.array_equal(each, unit) for each in painted])
    assert abs(share - 0.3) < 0.08
    again = opacified(unit, mask, 1.0, np.random.default_rng(7))
    assert np.array_equal(again, opacified(unit, mask, 1.0, np.random.default_rng(7)))


def test_other_draws_do_not_move() -> None:
    unit, mask = chest()
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    opacified(unit, mask, 1.0, one)
    opacified(unit, mask, 0.0, other)
    assert one.random() == other.random()


def test_an_empty_mask_stays_as_it_is() -> None:
    unit, mask = chest()
    assert opacified(unit, mask & False, 1.0, np.random.default_rng(0)) is unit
