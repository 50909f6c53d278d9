"""Groups of records that belong together: duplicates, and images of one patient.

Exact duplicates have the same pixels; near duplicates resemble each other among many
(``neighbours``) and agree in fine detail once aligned (``registration``). That finds copies
re-encoded, resized, retouched or cropped by up to a tenth of a side, and another exposure of
one patient in the same posture. Mirrored or inverted copies, and a patient who stood otherwise,
are not found by pixels; there only patient ids help.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from adalora_qat.corpus.neighbours import Candidate, candidates
from adalora_qat.corpus.records import Record
from adalora_qat.corpus.registration import SAME_IMAGE, Layers, similarity
from adalora_qat.progress import Progress

SAME_PIXELS = "same pixels"
NEAR_DUPLICATE = "near duplicate"
SAME_PATIENT = "same patient"
# Candidates verified before what they joined is taken into account: enough to keep the
# cores busy, few enough that a family of copies is not compared all with all.
BATCH = 512


class Link(NamedTuple):
    """Two records that belong together, and why; ``first`` sorts before ``second``."""

    first: str
    second: str
    reason: str
    similarity: float | None = None


class Groups:
    """Disjoint sets of keys, merged by links (union-find); a group's name is its least key."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def root(self, key: str) -> str:
        """Return the name of the group that holds ``key``."""
        parent = self._parent
        while (above := parent.get(key, key)) != key:
            parent[key] = parent.get(above, above)
            key = above
        return key

    def join(self, one: str, two: str) -> None:
        """Make one group of the two that hold these keys."""
        least, other = sorted((self.root(one), self.root(two)))
        self._parent[other] = least


def group(ids: Iterable[str], links: Iterable[Link]) -> dict[str, str]:
    """Return id → group, named by the smallest id that links reach."""
    groups = Groups()
    for link in links:
        groups.join(link.first, link.second)
    return {key: groups.root(key) for key in ids}


def shared_links(keys: Mapping[str, Hashable], reason: str) -> list[Link]:
    """Link every id to the least id with the same key."""
    holders: dict[Hashable, list[str]] = defaultdict(list)
    for record_id in sorted(keys):
        holders[keys[record_id]].append(record_id)
    return [Link(ids[0], other, reason) for ids in holders.values() for other in ids[1:]]


def patient_links(records: Iterable[Record]) -> list[Link]:
    """Link one patient's images; a patient id is only unique within its source."""
    return shared_links(
        {r.id: (r.source, r.patient) for r in records if r.patient is not None}, SAME_PATIENT
    )


def near_duplicate_links(
    ids: Sequence[str],
    descriptors: NDArray[np.float16],
    thumbnail_of: Callable[[str], NDArray[np.uint8]],
    jobs: int = 1,
    progress: Progress | None = None,
) -> list[Link]:
    """Find the images that are one image, or one chest in one posture.

    Parameters
    ----------
    ids : (N) sorted, without exact duplicates.
    descriptors : (N, F, F) in the order of ``ids``.
    thumbnail_of : id → (S, S) thumbnail; asked for candidates only, a batch at a time.
    jobs : threads.
    progress : called with (done, total, "comparing look-alikes").

    Returns
    -------
    As many links as join each family of duplicates, not every pair within it.
    """
    pairs = candidates(descriptors, jobs, progress)
    waiting = iter(pairs)
    links: list[Link] = []
    groups = Groups()
    # OpenCV's own threads would fight with these.
    own_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with ThreadPoolExecutor(jobs) as pool:
            done = 0
            while batch := list(islice(waiting, BATCH)):
                done += len(batch)
                apart = [
                    p for p in batch if groups.root(ids[p.first]) != groups.root(ids[p.second])
                ]
                verified = _verify(apart, ids, thumbnail_of, pool)
                links += verified
                for link in verified:
                    groups.join(link.first, link.second)
                if progress:
                    progress(done, len(pairs), "comparing look-alikes")
    finally:
        cv2.setNumThreads(own_threads)
    return links


def _verify(
    pairs: Sequence[Candidate],
    ids: Sequence[str],
    thumbnail_of: Callable[[str], NDArray[np.uint8]],
    pool: ThreadPoolExecutor,
) -> list[Link]:
    """Return a link for each candidate whose two images are one.

    Parameters
    ----------
    pairs : indices into ``ids``.
    ids : of all images.
    thumbnail_of : id → thumbnail (S, S).
    pool : compares several pairs at a time.
    """
    needed = sorted({index for pair in pairs for index in (pair.first, pair.second)})
    layers = {index: Layers(thumbnail_of(ids[index])) for index in needed}

    def compare(pair: Candidate) -> float:
        other = pair.second if pair.larger == pair.first else pair.first
        return similarity(layers[pair.larger], layers[other], pair.window)

    return [
        Link(ids[pair.first], ids[pair.second], NEAR_DUPLICATE, round(agreement, 3))
        for pair, agreement in zip(pairs, pool.map(compare, pairs), strict=True)
        if agreement >= SAME_IMAGE
    ]
