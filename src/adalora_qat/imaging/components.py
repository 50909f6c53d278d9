"""Connected components of a mask, in NumPy alone: the deployed runtime has no SciPy.

Runs of foreground in each row are joined with those of the row above that they touch, as in
He, Chao and Suzuki, "A run-based two-scan labeling algorithm" (2008). A mask has a few hundred
runs, so the loop over them is short whatever the number of pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def largest_components(mask: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """Return the mask (H, W) with only its ``count`` largest components, 8-connected."""
    labels, areas = label(mask)
    if len(areas) <= count:
        return mask.copy()
    kept = np.zeros(len(areas) + 1, dtype=np.bool_)
    kept[1 + np.argsort(-areas, kind="stable")[:count]] = True
    chosen: NDArray[np.bool_] = kept[labels]
    return chosen


def label(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a number for each 8-connected component of a mask (H, W).

    Returns
    -------
    labels : (H, W), 0 outside, components from 1 in the order of their first pixels.
    areas : (components,), pixels of each.
    """
    rows, starts, stops = _runs(mask)
    parents = np.arange(len(rows))
    first = np.searchsorted(rows, np.arange(mask.shape[0] + 1))
    for row in range(1, mask.shape[0]):
        above, end = first[row - 1], first[row]
        for run in range(first[row], first[row + 1]):
            # Runs above that end before this one starts touch no later run either.
            while above < end and stops[above] < starts[run]:
                above += 1
            other = above
            while other < end and starts[other] <= stops[run]:
                _join(parents, run, other)
                other += 1
    roots = np.array([_root(parents, run) for run in range(len(rows))], dtype=np.int64)
    _, numbers = np.unique(roots, return_inverse=True)
    labels = np.zeros(mask.shape, dtype=np.int64)
    for row, start, stop, number in zip(rows, starts, stops, numbers, strict=True):
        labels[row, start:stop] = number + 1
    areas = np.bincount(numbers, weights=stops - starts).astype(np.int64)
    return labels, areas


def _runs(
    mask: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return row, first column and column after the last of each run of foreground."""
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    return rows, starts, np.nonzero(edges == -1)[1]


def _root(parents: NDArray[np.int64], run: int) -> int:
    while parents[run] != run:
        parents[run] = parents[parents[run]]
        run = int(parents[run])
    return run


def _join(parents: NDArray[np.int64], one: int, other: int) -> None:
    a, b = _root(parents, one), _root(parents, other)
    # The earlier run stays the root, so components are numbered by their first pixels.
    parents[max(a, b)] = min(a, b)
