"""The second domain: where the organs lie, and that a seed is a patient."""

from pathlib import Path

import numpy as np
import pytest

from adalora_qat.corpus.quality import inspect
from adalora_qat.corpus.sources import read_source
from adalora_qat.phantom.phantom import phantom, write_phantoms

SEEDS = range(12)


@pytest.mark.parametrize("seed", SEEDS)
def test_anatomy_holds(seed: int) -> None:
    made = phantom(seed, 128, "abdomen")
    liver, kidneys = made.masks["liver"], made.masks["kidneys"]
    assert not (liver & kidneys).any()
    assert 0.06 < liver.mean() < 0.25
    assert 0.01 < kidneys.mean() < 0.08
    rows, columns = np.nonzero(liver)
    # The liver is on the patient's right, the kidneys on both sides and further back.
    assert columns.mean() < 64
    at = np.argwhere(kidneys)
    assert at[:, 0].mean() > rows.mean()
    assert kidneys[:, :64].any() and kidneys[:, 64:].any()


@pytest.mark.parametrize("seed", SEEDS)
def test_organs_are_brighter_than_the_fat_around_them(seed: int) -> None:
    made = phantom(seed, 128, "abdomen")
    body = made.image[made.image > 0]
    for mask in made.masks.values():
        assert made.image[mask].mean() > np.quantile(body, 0.5)


@pytest.mark.parametrize("seed", SEEDS)
def test_larger_pictures_show_the_same_patient(seed: int) -> None:
    small, large = phantom(seed, 64, "abdomen"), phantom(seed, 256, "abdomen")
    for structure, mask in large.masks.items():
        shrunk = mask.reshape(64, 4, 64, 4).mean(axis=(1, 3)) > 0.5
        differing = (shrunk != small.masks[structure]).sum()
        assert differing < 0.04 * small.masks[structure].sum() + 2


def test_the_quality_gate_takes_them(tmp_path: Path) -> None:
    write_phantoms(tmp_path, 12, side=128, kind="abdomen")
    for record in read_source("phantom", tmp_path).records:
        assert inspect(record) == []
