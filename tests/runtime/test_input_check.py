import json

import numpy as np
import pytest

from adalora_qat.errors import DataError
from adalora_qat.imaging.geometry import FrameMap
from adalora_qat.release.fit_input_check import fit_input_check
from adalora_qat.runtime.input_check import CLASSES, UNLIKE, UPRIGHT, InputCheck, pooled

WIDTH = 16  # of the features: quarters of 4 channels


def cloud(rng: np.random.Generator, kind: int, count: int) -> np.ndarray:
    """Classes lie along their own axis; the others vary little, and the first two much."""
    spread = np.where(np.arange(WIDTH) < 2, 2.0, 0.3)
    points = rng.normal(0, spread, (count, WIDTH))
    points[:, 4 + kind] += 2.6 * (kind > 0)
    return points.astype(np.float32)


@pytest.fixture(scope="module")
def check() -> InputCheck:
    rng = np.random.default_rng(0)
    features = np.concatenate([cloud(rng, kind, 120) for kind in range(len(CLASSES))])
    classes = [name for name in CLASSES for _ in range(120)]
    return fit_input_check(features, classes, cloud(rng, 0, 400))


def embeddings_of(features: np.ndarray) -> np.ndarray:
    """Make (64, 4) embeddings of an 8 x 8 grid whose quarters have these means."""
    return features.reshape(2, 2, 4).repeat(4, axis=0).repeat(4, axis=1).reshape(64, 4)


def codes(check: InputCheck, features: np.ndarray) -> list[str]:
    return [f.code for f in check.look(embeddings_of(features), FrameMap(64, 64, 64))]


def test_quarters_are_of_the_image_and_not_of_its_padding() -> None:
    grid = np.zeros((8, 8, 1), np.float32)
    grid[:4, :4], grid[:4, 4:] = 1, 2
    grid[4:] = 99  # the padding of an image twice as wide as high
    grid[2:4] += 10
    found = pooled(grid.reshape(64, 1), FrameMap(50, 100, 256))
    assert found.tolist() == [1, 2, 11, 12]


def test_upright_images_pass_and_others_are_named(check: InputCheck) -> None:
    rng = np.random.default_rng(1)
    warned = sum(bool(codes(check, row)) for row in cloud(rng, 0, 300))
    assert warned <= 6  # two limits, each passed by 99.5 %
    for kind, name in enumerate(CLASSES):
        if name != UPRIGHT:
            named = [codes(check, row) == [CLASSES[name][0]] for row in cloud(rng, kind, 50)]
            assert np.mean(named) > 0.9, name


def test_what_is_far_in_any_direction_is_unlike(check: InputCheck) -> None:
    strange = np.zeros(WIDTH, np.float32)
    strange[3] = -9  # 30 deviations along an axis that no class uses
    assert codes(check, strange) == [UNLIKE]
    # As far along an axis on which upright images do vary is less far.
    usual = np.zeros(WIDTH, np.float32)
    usual[0] = 4
    assert codes(check, usual) == []


def test_what_is_turned_and_very_far_is_no_chest(check: InputCheck) -> None:
    turned = np.zeros(WIDTH, np.float32)
    turned[4 + list(CLASSES).index("upside_down")] = 2.6
    assert codes(check, turned) == ["rotated"]
    assert codes(check, 6 * turned) == ["not_a_chest"]


def test_the_file_holds_it_exactly(check: InputCheck) -> None:
    text = json.dumps(check.to_json())
    again = InputCheck.from_json(json.loads(text))
    for name, value in vars(check).items():
        np.testing.assert_array_equal(vars(again)[name], value, err_msg=name)


def test_a_finding_is_plain_json(check: InputCheck) -> None:
    rng = np.random.default_rng(2)
    [finding] = check.look(embeddings_of(cloud(rng, 2, 1)[0]), FrameMap(64, 64, 64))
    told = json.loads(json.dumps(finding.to_json()))
    assert told["code"] == "rotated" and "upside down" in told["message"]
    assert told["value"] >= told["limit"] >= 0.5


def test_missing_classes_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="too few"):
        fit_input_check(cloud(rng, 0, 50), [UPRIGHT] * 50, cloud(rng, 0, 5))
