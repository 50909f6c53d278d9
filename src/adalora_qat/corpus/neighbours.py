"""Pairs of images that may be one: near neighbours among many, in near-linear time.

Descriptors are whitened, so that what all chests share counts little and what is rare counts
much, and then hashed with random rotations (cross-polytope hashing: Andoni, Indyk, Laarhoven,
Razenshteyn and Schmidt, NIPS 2015). Only images that meet in a bucket are compared, so time
grows with the images and the meetings, not with all pairs.

N images, E = 160 dimensions of an embedding, T tables.
"""

from __future__ import annotations

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from adalora_qat.corpus.descriptor import WHOLE, WINDOWS, Window, window_map
from adalora_qat.progress import Progress

DIMENSIONS = 160
# A corpus tells its own covariance only as far as it has images; up to about this many, the
# usual one (identity, for weighted descriptors) still counts.
PRIOR_IMAGES = 500
SPREAD_FLOOR = 0.05
TABLES = 20
# The bucket of an image is the pair of its two largest coordinates after a rotation. A query
# looks into the buckets of the pairs among its three largest.
PROBED = 3
# Bits of the sketch by which most chance meetings are told apart before the real comparison.
SKETCH_WORDS = 3
SKETCH_BITS = 64 * SKETCH_WORDS
# Cosine of pairs that are always worth a registration, and of those that are if there are
# not too many. Of copies that were re-encoded, shrunk to 224 px, cropped by up to 5 % and
# changed in contrast at once, 99.5 % lie above the first; of pairs of different chests
# 1 in 50,000. Other exposures of one patient lie between the two as often as above both.
STRONG, MIN_SIMILARITY = 0.68, 0.5
# How many of the latter: as many as this, or this share of the images. Their number would
# grow with the square of the corpus, and the time to verify them with it.
MIN_WEAK, WEAK_SHARE = 1000, 0.1
# Angle θ between two vectors flips a share θ/π of the bits; two standard deviations on top
# keep 98 % of the least alike, all others, and 3 in 1,000 of the unrelated.
_FLIPPED = math.acos(MIN_SIMILARITY) / math.pi
MAX_FLIPPED = SKETCH_BITS * _FLIPPED + 2 * math.sqrt(SKETCH_BITS * _FLIPPED * (1 - _FLIPPED))
# Candidates an image may bring, best first: a large family of copies is joined by chains.
MAX_CANDIDATES = 6
# Up to this many images, comparing all with all is quicker than hashing, and misses nothing.
FEW = 4096
_BLOCK = 4096
_SEED = 20240607


class Candidate(NamedTuple):
    """Images ``first`` < ``second`` may be one: a window of ``larger`` resembles the other."""

    similarity: float
    first: int
    second: int
    larger: int
    window: Window


def candidates(
    descriptors: NDArray[np.float16], jobs: int = 1, progress: Progress | None = None
) -> list[Candidate]:
    """Return the pairs that resemble each other, most alike first.

    Parameters
    ----------
    descriptors : (N, F, F) from ``descriptor.describe``.
    jobs : threads.
    progress : called with (done, total, "looking for look-alikes").

    Returns
    -------
    Each pair once. The same descriptors in the same order give the same list.
    """
    if len(descriptors) < 2:
        return []
    embed = Embedding(descriptors)
    index = _Index(embed(descriptors, WHOLE))
    best: dict[tuple[int, int], Candidate] = {}

    def search(task: tuple[Window, int]) -> list[tuple[int, int, float]]:
        window, start = task
        return index.alike(embed(descriptors[start : start + _BLOCK], window), start)

    tasks = list(product(WINDOWS, range(0, len(descriptors), _BLOCK)))
    with ThreadPoolExecutor(jobs) as pool:
        for done, (task, alike) in enumerate(zip(tasks, pool.map(search, tasks), strict=True), 1):
            for image, other, similarity in alike:
                pair = (image, other) if image < other else (other, image)
                if pair not in best or similarity > best[pair].similarity:
                    best[pair] = Candidate(similarity, *pair, image, task[0])
            if progress:
                progress(done, len(tasks), "looking for look-alikes")
    ranked = sorted(best.values(), key=lambda c: (-c.similarity, c.first, c.second))
    return _capped(ranked, len(descriptors))


def _capped(ranked: list[Candidate], images: int) -> list[Candidate]:
    """Keep the best few pairs of each image, and of the weak ones the best of all."""
    kept: list[Candidate] = []
    brought: Counter[int] = Counter()
    weak = max(MIN_WEAK, int(WEAK_SHARE * images))
    for pair in ranked:
        if pair.similarity < STRONG:
            weak -= 1
        if weak < 0:
            break
        if min(brought[pair.first], brought[pair.second]) < MAX_CANDIDATES:
            kept.append(pair)
            brought.update((pair.first, pair.second))
    return kept


class Embedding:
    """Descriptors → unit vectors (N, E) whose dot product is near 0 for unrelated images."""

    def __init__(self, descriptors: NDArray[np.float16]) -> None:
        count, whole = len(descriptors), window_map(WHOLE)
        total, outer = np.zeros(len(whole)), np.zeros((len(whole), len(whole)))
        for start in range(0, count, _BLOCK):
            values = _flat(descriptors[start : start + _BLOCK]) @ whole.T
            total += values.sum(axis=0, dtype=np.float64)
            outer += values.T @ values
        trust = count / (count + PRIOR_IMAGES)
        mean = total / count
        own = outer / count - np.outer(mean, mean)
        spread, axes = np.linalg.eigh(trust * own + (1 - trust) * np.eye(len(own)))
        # The floor keeps directions that hardly vary from being blown up to noise.
        axes = axes / np.sqrt(spread + SPREAD_FLOOR * spread.mean())
        self._axes = axes[:, ::-1][:, :DIMENSIONS].astype(np.float32)
        self._origin = (trust * mean).astype(np.float32) @ self._axes

    def __call__(self, descriptors: NDArray[np.float16], window: Window) -> NDArray[np.float32]:
        """Embed a window of each image."""
        whole_map = window_map(window).T @ self._axes
        values = np.concatenate(
            [
                _flat(descriptors[at : at + _BLOCK]) @ whole_map - self._origin
                for at in range(0, len(descriptors), _BLOCK)
            ]
        )
        length = np.linalg.norm(values, axis=1, keepdims=True)
        return np.asarray(values / np.maximum(length, 1e-6), dtype=np.float32)


class _Index:
    """Whole images by bucket, and the search in it."""

    def __init__(self, embedded: NDArray[np.float32]) -> None:
        random = np.random.default_rng(_SEED)
        size = embedded.shape[1]
        turns = [np.linalg.qr(random.standard_normal((size, size)))[0] for _ in range(TABLES)]
        self._rotations = np.concatenate(turns, axis=1).astype(np.float32)
        self._planes = random.standard_normal((size, SKETCH_BITS)).astype(np.float32)
        self._embedded = embedded
        self._few = len(embedded) <= FEW
        blocks = [embedded[at : at + _BLOCK] for at in range(0, len(embedded), _BLOCK)]
        self._sketches = np.concatenate([self._sketch(block) for block in blocks])
        # (buckets, N): which whole images lie in a bucket.
        self._inside = sparse.vstack([self._buckets(block, 2) for block in blocks]).T.tocsr()

    def alike(self, queries: NDArray[np.float32], start: int) -> list[tuple[int, int, float]]:
        """Return (image, other, cosine) for the images that resemble another.

        Parameters
        ----------
        queries : (M, E) unit vectors, of a window of the images from ``start`` on.
        """
        query, other = self._all(queries) if self._few else self._meetings(queries)
        cosine = np.einsum("pe,pe->p", queries[query], self._embedded[other])
        keep = (cosine >= MIN_SIMILARITY) & (query + start != other)
        columns = (query[keep] + start, other[keep], cosine[keep])
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def _all(self, queries: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return (query, image) of those that resemble each other."""
        query, image = np.nonzero(queries @ self._embedded.T >= MIN_SIMILARITY)
        return query, image

    def _meetings(self, queries: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return (query, image) of those that share a bucket and have similar sketches."""
        # The product of two sparse matrices, query × bucket and bucket × image.
        met = (self._buckets(queries, PROBED) @ self._inside).tocoo()
        flipped = sum(
            np.bitwise_count(own[met.row] ^ theirs[met.col]).astype(np.int16)
            for own, theirs in zip(self._sketch(queries).T, self._sketches.T, strict=True)
        )
        keep = flipped <= MAX_FLIPPED
        return met.row[keep], met.col[keep]

    def _buckets(self, values: NDArray[np.float32], among: int) -> sparse.csr_array:
        """Return (N, buckets): 1 for the pairs among the largest coordinates, per table."""
        count, size = values.shape
        rotated = (values @ self._rotations).reshape(count, TABLES, size)
        largest = _largest(rotated, among)
        pairs = list(combinations(range(among), 2))
        columns = np.empty((count, len(pairs), TABLES), dtype=np.int32)
        for place, (first, second) in enumerate(pairs):
            one, two = largest[..., first], largest[..., second]
            # Which of the two is larger flips easily, so a bucket does not say.
            columns[:, place] = np.minimum(one, two) * (2 * size) + np.maximum(one, two)
        columns += np.arange(TABLES, dtype=np.int32) * (2 * size) ** 2
        starts = np.arange(count + 1, dtype=np.int32) * (len(pairs) * TABLES)
        return sparse.csr_array(
            (np.ones(columns.size, np.uint8), columns.ravel(), starts),
            shape=(count, TABLES * (2 * size) ** 2),
        )

    def _sketch(self, values: NDArray[np.float32]) -> NDArray[np.uint64]:
        packed = np.packbits(values @ self._planes > 0, axis=1).view(np.uint64)
        # By columns, which are what is gathered from.
        return np.asfortranarray(packed)


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.int32]:
    """Return the ``count`` largest coordinates by size, as 2·index + (1 if negative)."""
    sizes = np.abs(values)
    largest = np.empty((*values.shape[:-1], count), dtype=np.int32)
    for rank in range(count):
        place = sizes.argmax(axis=-1)[..., None]
        np.put_along_axis(sizes, place, -1, axis=-1)
        negative = np.take_along_axis(values, place, axis=-1) < 0
        largest[..., rank : rank + 1] = 2 * place + negative
    return largest


def _flat(descriptors: NDArray[np.float16]) -> NDArray[np.float32]:
    return descriptors.reshape(len(descriptors), -1).astype(np.float32)
