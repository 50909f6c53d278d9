"""Groups, and the links that make them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from adalora_qat.corpus.descriptor import describe, thumbnail
from adalora_qat.corpus.duplicates import (
    NEAR_DUPLICATE,
    Link,
    group,
    near_duplicate_links,
    patient_links,
    shared_links,
)
from adalora_qat.corpus.records import Record
from adalora_qat.phantom.phantom import phantom


def test_links_chain_into_one_group_named_by_its_least_member() -> None:
    links = [Link("c", "d", "x"), Link("b", "c", "y"), Link("e", "f", "x")]
    assert group("abcdefg", links) == {
        "a": "a", "b": "b", "c": "b", "d": "b", "e": "e", "f": "e", "g": "g",
    }  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40))
def test_groups_are_the_connected_components(edges: list[tuple[int, int]]) -> None:
    keys = [f"{n:02}" for n in range(31)]
    # The plain way: spread each label to its neighbours until nothing changes.
    label = {key: key for key in keys}
    for _ in keys:
        for one, two in edges:
            label[keys[one]] = label[keys[two]] = min(label[keys[one]], label[keys[two]])
    assert group(keys, [Link(keys[a], keys[b], "x") for a, b in edges]) == label


def test_the_same_key_links_to_the_least_id() -> None:
    assert shared_links({"b": 1, "a": 1, "c": 2, "d": 1}, "same") == [
        Link("a", "b", "same"),
        Link("a", "d", "same"),
    ]


def test_a_patient_id_counts_within_its_source_only(tmp_path: object) -> None:
    def record(name: str, source: str, patient: str | None) -> Record:
        return Record(f"{source}/{name}", source, image=None, patient=patient)  # type: ignore[arg-type]

    records = [
        record("1", "a", "007"),
        record("2", "a", "007"),
        record("3", "b", "007"),
        record("4", "a", None),
        record("5", "a", None),
    ]
    assert [link[:2] for link in patient_links(records)] == [("a/1", "a/2")]


@pytest.fixture(scope="module")
def corpus() -> dict[str, NDArray[np.uint8]]:
    """Twelve chests; the first three again at another size, the first once more, cropped."""
    chests = [phantom(seed, 192).image for seed in range(12)]
    again = [chest[::2, ::2] for chest in chests[:3]]
    images = [*chests, *again, chests[0][9:, :183]]
    return {f"{n:02}": thumbnail(image) for n, image in enumerate(images)}


def links_of(corpus: dict[str, NDArray[np.uint8]], jobs: int = 1) -> list[Link]:
    described = np.stack([describe(small) for small in corpus.values()])
    return near_duplicate_links(list(corpus), described, corpus.__getitem__, jobs)


def test_near_duplicates_are_grouped_and_nothing_else(
    corpus: dict[str, NDArray[np.uint8]],
) -> None:
    links = links_of(corpus)
    groups = group(corpus, links)
    assert groups["12"] == groups["15"] == "00"
    assert groups["13"] == "01"
    assert groups["14"] == "02"
    assert len(set(groups.values())) == 12
    assert all(link.reason == NEAR_DUPLICATE and link.first < link.second for link in links)


def test_threads_and_repetition_change_nothing(corpus: dict[str, NDArray[np.uint8]]) -> None:
    assert links_of(corpus, jobs=2) == links_of(corpus) == links_of(corpus)


def test_thumbnails_are_asked_for_candidates_only(corpus: dict[str, NDArray[np.uint8]]) -> None:
    asked = []

    def thumbnail_of(key: str) -> NDArray[np.uint8]:
        asked.append(key)
        return corpus[key]

    described = np.stack([describe(small) for small in corpus.values()])
    near_duplicate_links(list(corpus), described, thumbnail_of)
    assert len(asked) == len(set(asked))
    assert {"00", "12", "15"} <= set(asked)
