"""Finding the pairs that may be one."""

import numpy as np
import pytest
from numpy.typing import NDArray

from adalora_qat.corpus import neighbours
from adalora_qat.corpus.descriptor import FREQUENCIES, WHOLE, describe, thumbnail
from adalora_qat.corpus.neighbours import MAX_CANDIDATES, Candidate, Embedding, candidates
from adalora_qat.phantom.phantom import phantom

COUNT = 60


@pytest.fixture(scope="module")
def chests() -> NDArray[np.uint8]:
    return np.stack([phantom(seed, 128).image for seed in range(COUNT)])


@pytest.fixture(scope="module")
def described(chests: NDArray[np.uint8]) -> NDArray[np.float16]:
    """60 chests; then 5 copies of the first ones, cropped by 6 pixels at the top and left."""
    copies = [thumbnail(chest[6:, 6:]) for chest in chests[:5]]
    return np.stack([describe(small) for small in (*chests, *copies)])


def synthetic(count: int, copies: int, noise: float) -> NDArray[np.float16]:
    """Descriptors of unrelated images, the last ``copies`` noisy copies of the first."""
    random = np.random.default_rng(3)
    values = 5 * random.standard_normal((count, FREQUENCIES, FREQUENCIES))
    values[-copies:] = values[:copies] + noise * random.standard_normal(values[:copies].shape)
    return values.astype(np.float16)


def pairs(found: list[Candidate]) -> set[tuple[int, int]]:
    return {(one.first, one.second) for one in found}


def test_cropped_copies_are_found_with_their_window(described: NDArray[np.float16]) -> None:
    found = candidates(described)
    copies = [one for one in found if (one.first, one.second) in {(k, COUNT + k) for k in range(5)}]
    assert len(copies) == 5
    for one in copies:
        # The original holds the copy, and 6 of 128 pixels are 4.7 %.
        assert one.larger == one.first
        (top, bottom), (left, right) = one.window
        assert top >= 0.025 and left >= 0.025
        assert bottom <= top and right <= left


def test_each_pair_once_most_alike_first(described: NDArray[np.float16]) -> None:
    found = candidates(described)
    assert len(pairs(found)) == len(found)
    assert all(one.first < one.second for one in found)
    values = [one.similarity for one in found]
    assert values == sorted(values, reverse=True)


def test_the_number_of_threads_changes_nothing(described: NDArray[np.float16]) -> None:
    assert candidates(described, jobs=3) == candidates(described)


def test_hashing_finds_what_comparing_all_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    # Beyond FEW images the buckets must do: the same copies, among 4,200 others.
    many = synthetic(4200, 40, noise=1.5)
    assert len(many) > neighbours.FEW
    truth = {(k, 4160 + k) for k in range(40)}
    hashed = candidates(many)
    assert len(truth & pairs(hashed)) >= 39
    monkeypatch.setattr(neighbours, "FEW", 10_000)
    assert len(truth & pairs(candidates(many))) == 40
    assert pairs(hashed) - truth == set()


def test_a_family_of_copies_does_not_explode() -> None:
    many = synthetic(300, 1, noise=0.1)
    many[100:] = many[0] + 0.01 * np.random.default_rng(0).standard_normal(many[100:].shape)
    found = candidates(many)
    assert len(found) <= MAX_CANDIDATES * len(many)
    family = {index for pair in pairs(found) for index in pair}
    assert set(range(100, 300)) <= family


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_to_pair(count: int) -> None:
    assert candidates(np.zeros((count, FREQUENCIES, FREQUENCIES), np.float16)) == []


def test_two_images_are_compared_although_they_say_nothing_of_a_corpus() -> None:
    two = synthetic(2, 1, noise=0.5)
    assert pairs(candidates(two)) == {(0, 1)}
    assert candidates(synthetic(3, 1, noise=50)[:2]) == []


def test_embeddings_of_unrelated_images_are_nearly_orthogonal() -> None:
    many = synthetic(1000, 1, noise=0.1)
    vectors = Embedding(many)(many, WHOLE)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    products = vectors[:-1] @ vectors[:-1].T
    off = products[~np.eye(len(products), dtype=bool)]
    assert abs(off).mean() < 0.1
