"""Degradations: what they change, what they leave, and that truth moves with the image."""

from pathlib import Path

import numpy as np
import pytest

from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError
from adalora_qat.evaluate.robustness import (
    DEGRADATIONS,
    alterations,
    evaluate_degradations,
    evaluate_prompts,
    on_own_range,
    parse_altered,
)
from adalora_qat.phantom.phantom import phantom, write_phantoms
from adalora_qat.predictor import Prediction

IMAGE = phantom(3, side=256).image


def altered(kind: str, strength: float, image: np.ndarray = IMAGE, seed: int = 0) -> np.ndarray:
    return DEGRADATIONS[kind].at(strength).image(image, np.random.default_rng(seed))


@pytest.mark.parametrize("kind", [k for k in DEGRADATIONS if k != "jpeg"])
def test_neutral_strength_changes_nothing(kind: str) -> None:
    neutral = DEGRADATIONS[kind].neutral
    assert np.array_equal(altered(kind, neutral), IMAGE)


@pytest.mark.parametrize(
    ("kind", "rising"),
    [
        ("noise", (0.02, 0.05, 0.1, 0.2)),
        ("blur", (1, 2, 4, 8)),
        ("contrast", (1.5, 2, 4)),
        ("contrast", (0.5, 0.25, 0.1)),
        ("rotation", (5, 10, 20)),
        ("jpeg", (75, 50, 25, 10, 5)),
        ("resolution", (2, 4, 8, 16)),
    ],
)
def test_stronger_is_further_from_the_image(kind: str, rising: tuple[float, ...]) -> None:
    assert set(rising) <= set(DEGRADATIONS[kind].strengths)
    errors = [np.abs(altered(kind, s).astype(float) - IMAGE).mean() for s in rising]
    assert errors == sorted(errors)
    assert errors[0] > 0


@pytest.mark.parametrize("kind", DEGRADATIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [0, 3])
def test_size_depth_and_range_stay(kind: str, dtype: type, channels: int) -> None:
    image = (IMAGE[:96, :64].astype(np.float64) * (16 if dtype != np.uint8 else 1)).astype(dtype)
    image = np.stack([image] * channels, axis=-1) if channels else image
    changed = altered(kind, DEGRADATIONS[kind].strengths[0], image)
    assert changed.dtype == dtype
    assert changed.shape == image.shape
    assert changed.min() >= image.min()
    assert changed.max() <= image.max()


def test_depth_does_not_decide_the_strength() -> None:
    deep = IMAGE.astype(np.uint16) * 257
    shallow = altered("noise", 0.05) / 255
    assert np.abs(altered("noise", 0.05, deep) / 65535 - shallow).max() < 1 / 255


def test_noise_has_the_stated_deviation_and_follows_the_generator() -> None:
    grey = np.full((200, 200), 0.5, np.float32)
    grey[0, 0], grey[0, 1] = 0, 1
    noisy = altered("noise", 0.05, grey)
    assert noisy.std() == pytest.approx(0.05, rel=0.03)
    assert np.array_equal(noisy, altered("noise", 0.05, grey))
    assert not np.array_equal(noisy, altered("noise", 0.05, grey, seed=1))


def test_low_contrast_is_undone_by_min_max_but_for_rounding() -> None:
    faint = altered("contrast", 0.25).astype(float)
    again = (faint - faint.min()) / (faint.max() - faint.min())
    own = (IMAGE - IMAGE.min()) / float(np.ptp(IMAGE))
    assert np.abs(again - own).max() < 4 / 255
    assert len(np.unique(faint)) < 70


def test_truth_turns_with_the_image() -> None:
    mask = np.zeros((101, 101), bool)
    mask[20:40, 60:90] = True
    alteration = DEGRADATIONS["rotation"].at(20)
    assert alteration.mask is not None
    turned_mask = alteration.mask(mask)
    turned = alteration.image(mask.astype(np.uint8) * 200, np.random.default_rng(0))
    # Grey levels are rounded: a pixel on the very edge may fall to either side.
    assert np.count_nonzero(turned_mask != (turned >= 100)) <= 3
    # Counter-clockwise by 20° about (50, 50): x' = x cos + y sin, y' = −x sin + y cos.
    y, x = (float(v.mean()) - 50 for v in np.nonzero(mask))
    angle = np.deg2rad(20)
    expected = (x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle))
    y_found, x_found = (float(v.mean()) - 50 for v in np.nonzero(turned_mask))
    assert (x_found, y_found) == pytest.approx(expected, abs=0.3)


def test_only_rotation_moves_the_truth() -> None:
    assert [k for k, d in DEGRADATIONS.items() if d.mask] == ["rotation"]


def test_image_of_one_colour_is_left_alone() -> None:
    flat = np.full((8, 8), 9, np.uint8)
    assert on_own_range(flat, lambda grey: grey * 0) is flat


def test_names_can_be_read_back() -> None:
    names = [a.name for a in alterations()]
    assert len(names) == len(set(names)) == sum(len(d.strengths) for d in DEGRADATIONS.values())
    assert parse_altered("noise=0.05") == ("noise", 0.05)
    assert parse_altered("rotation=-20") == ("rotation", -20.0)
    assert parse_altered("as-read") is None
    with pytest.raises(DataError, match=r"unknown degradation fog; known: noise, blur"):
        alterations(["fog"])


class BoxFiller:
    """Fills its box: Dice falls as the box moves off the truth."""

    name = "box filler"

    def predict(self, image: np.ndarray, boxes: np.ndarray) -> Prediction:
        height, width = image.shape[:2]
        masks = np.zeros((len(boxes), height, width), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
            mask[y0 : y1 + 1, x0 : x1 + 1] = True
        logits = np.zeros((len(boxes), 4, 4), np.float32)
        return Prediction(masks, np.ones(len(boxes), np.float32), logits, boxes.astype(np.float32))


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    folder = tmp_path / "phantoms"
    write_phantoms(folder, 3, side=64)
    return [
        Record(
            f"phantom/{path.stem}", "phantom", path, {"heart": folder / "masks/heart" / path.name}
        )
        for path in sorted((folder / "images").iterdir())
    ]


def test_prompts_end_in_one_table(records: list[Record], tmp_path: Path) -> None:
    table = evaluate_prompts(BoxFiller(), records, ["heart"], (0, 10), out=tmp_path / "out")
    assert list(dict.fromkeys(table["box"])) == ["oracle", "oracle+jitter10", "whole-image"]
    means = table.groupby("box")["dsc"].mean()
    assert means["oracle"] > means["oracle+jitter10"] > means["whole-image"]
    assert (tmp_path / "out" / "prompts" / "oracle" / "cases.csv").is_file()


def test_degradations_end_in_one_table(records: list[Record]) -> None:
    seen: list[str] = []
    table = evaluate_degradations(
        BoxFiller(), records, ["heart"], ["rotation", "jpeg"],
        progress=lambda done, total, what: seen.append(what),
    )  # fmt: skip
    assert len(table) == 3 * (1 + 6 + 5)
    # The box follows the turned truth, so filling it stays about as good.
    assert table.loc[table["altered"] == "rotation=20", "dsc"].min() > 0.6
    assert seen[0].startswith("as-read: ")
