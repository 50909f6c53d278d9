import numpy as np

from adalora_qat.release.views import mild, views
from adalora_qat.runtime.input_check import CLASSES, UPRIGHT


def radiograph() -> np.ndarray:
    rows, columns = np.mgrid[:90, :120]
    return (rows + columns).astype(np.uint8)


def test_every_class_has_a_view_and_seeds_decide_them() -> None:
    made = list(views(radiograph(), np.random.default_rng(3)))
    assert [name for name, _ in made].count(UPRIGHT) == 3
    assert {name for name, _ in made} == set(CLASSES)
    assert all(view.dtype == np.uint8 and view.ndim == 2 for _, view in made)
    np.testing.assert_array_equal(made[0][1], radiograph())
    again = list(views(radiograph(), np.random.default_rng(3)))
    for (_, one), (_, other) in zip(made, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_turns_and_inversion_are_what_they_say() -> None:
    # The darkest corner of the radiograph is the upper left.
    corners = {"turned_left": (1, 0), "upside_down": (1, 1), "turned_right": (0, 1)}
    for seed in range(6):
        for name, view in views(radiograph(), np.random.default_rng(seed)):
            parts = [[part.mean() for part in np.array_split(half, 2, axis=1)]
                     for half in np.array_split(view, 2)]  # fmt: skip
            if name in corners:
                assert np.unravel_index(np.argmin(parts), (2, 2)) == corners[name]
            elif name == "inverted":
                assert np.unravel_index(np.argmax(parts), (2, 2)) == (0, 0)


def test_mild_views_are_still_the_radiograph() -> None:
    for seed in range(8):
        view = mild(radiograph(), np.random.default_rng(seed))
        assert 0.75 * 90 <= view.shape[0] <= 1.17 * 90
        assert view[: view.shape[0] // 2].mean() < view[view.shape[0] // 2 :].mean()
