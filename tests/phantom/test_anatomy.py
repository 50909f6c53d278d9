"""The outlines of the phantom's anatomy, as formulas."""

import numpy as np
import pytest

from adalora_qat.phantom.anatomy import Chest


def chest(seed: int) -> Chest:
    return Chest(np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("s", [-1, 1])
def test_lung_lies_inside_the_body_and_its_walls(seed: int, s: int) -> None:
    anatomy = chest(seed)
    X, Y = anatomy.grid(96)
    lung = anatomy.lung(X, Y, s) > 0
    assert lung.any()
    assert (s * X[lung] > 0).all()
    assert (anatomy.body(X, Y)[lung] > 0).all()
    assert (s * X[lung] < anatomy.lateral(Y[lung], s)).all()
    assert (Y[lung] < anatomy.diaphragm(s * X[lung], s)).all()


def test_fluid_only_takes_from_the_lung() -> None:
    anatomy = chest(0)
    X, Y = anatomy.grid(96)
    anatomy.fluid = {-1: None, 1: None}
    dry = anatomy.lung(X, Y, 1) > 0
    anatomy.fluid = {-1: None, 1: 0.25}
    wet = anatomy.lung(X, Y, 1) > 0
    assert not (wet & ~dry).any()
    assert wet.sum() < dry.sum()


def test_grid_holds_the_centres_of_pixels() -> None:
    anatomy = chest(0)
    anatomy.scale, anatomy.shift, anatomy.tilt = 1.0, (0.0, 0.0), np.float64(0)
    X, Y = anatomy.grid(4)
    np.testing.assert_allclose(X[0], [-0.75, -0.25, 0.25, 0.75])
    np.testing.assert_allclose(Y[:, 0], [-0.75, -0.25, 0.25, 0.75])
