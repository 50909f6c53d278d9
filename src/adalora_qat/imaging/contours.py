"""The outlines of masks as GeoJSON polygons in pixel coordinates.

A polygon runs along the outer edges of the pixels: its corners are whole numbers, the top left
corner of the image is (0, 0), and filling it gives the mask again, exactly. Polygons are those of
RFC 7946 but for the coordinates, which are x to the right and y down, in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Right, down, left, up. With the mask on the right hand of who walks along its edge in this
# picture (y down), an outer ring's area by the shoelace formula is positive.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
Point = tuple[int, int]


def geojson(masks: NDArray[np.bool_], structures: Sequence[str] = ()) -> dict[str, Any]:
    """Return a FeatureCollection with one MultiPolygon a mask, in the order of the masks.

    Parameters
    ----------
    masks : (N, H, W).
    structures : (N,) what each is of, or none; goes into the properties.
    """
    features = []
    for index, mask in enumerate(masks):
        properties: dict[str, Any] = {"object": index}
        if index < len(structures):
            properties["structure"] = structures[index]
        geometry = {"type": "MultiPolygon", "coordinates": polygons(mask)}
        features.append({"type": "Feature", "properties": properties, "geometry": geometry})
    return {"type": "FeatureCollection", "features": features}


def polygons(mask: NDArray[np.bool_]) -> list[list[list[list[int]]]]:
    """Return the polygons of a mask (H, W): each its outer ring, then its holes.

    Rings are closed (the first corner is the last again), and none touches itself: where two
    pixels touch at a corner only, two rings meet.
    """
    found = [(ring, _area(ring)) for ring in rings(mask)]
    outer = sorted(((ring, area) for ring, area in found if area > 0), key=lambda one: one[1])
    gathered = [[ring] for ring, _ in outer]
    arrays = [np.array(ring) for ring, _ in outer]
    lows, highs = (
        np.array([edge(axis=0) for edge in edges]).reshape(-1, 2)
        for edges in ([a.min for a in arrays], [a.max for a in arrays])
    )
    for ring, area in found:
        if area < 0:
            inside = _beside(ring)
            near = np.flatnonzero(((lows < inside) & (inside < highs)).all(axis=1))
            # The smallest that holds it, as an island in a lake is no part of the mainland.
            owner = next(index for index in near if _holds(arrays[index], inside))
            gathered[owner].append(ring)
    return [[[list(point) for point in ring] for ring in one] for one in gathered]


def rings(mask: NDArray[np.bool_]) -> list[list[Point]]:
    """Return closed rings along the edges of a mask (H, W), corners only where they turn."""
    ways = _ways(mask)
    closed = []
    while ways:
        start = next(iter(ways))
        direction = next(iter(ways[start]))
        path: list[Point] = [start]
        places = {start: 0}
        point = start
        while path:
            point, direction = _walk(ways, point, direction)
            if point in places:
                first = places[point]
                ring = path[first:]
                for passed in ring:
                    del places[passed]
                del path[first:]
                closed.append(_corners(ring))
                if not path:
                    break
            places[point] = len(path)
            path.append(point)
    return closed


def _ways(mask: NDArray[np.bool_]) -> dict[Point, dict[int, Point]]:
    """Return, for each corner on the edge, where one can go from it: direction → next corner."""
    padded = np.pad(mask, 1).astype(np.int8)
    down, across = np.diff(padded, axis=0)[:, 1:-1], np.diff(padded, axis=1)[1:-1]
    ways: dict[Point, dict[int, Point]] = {}
    for direction, edges, (dx, dy) in (
        (0, down == 1, (0, 0)),
        (1, across == -1, (0, 0)),
        (2, down == -1, (1, 0)),
        (3, across == 1, (0, 1)),
    ):
        step_x, step_y = _STEPS[direction]
        rows, columns = np.nonzero(edges)
        for y, x in zip((rows + dy).tolist(), (columns + dx).tolist(), strict=True):
            ways.setdefault((x, y), {})[direction] = (x + step_x, y + step_y)
    return ways


def _walk(ways: dict[Point, dict[int, Point]], point: Point, direction: int) -> tuple[Point, int]:
    """Take one step, which is used up; return where it leads, and the direction from there."""
    following = ways[point].pop(direction)
    if not ways[point]:
        del ways[point]
    onward = ways.get(following, {})
    # Where two ways part, the one that stays with the same pixel.
    turn = (direction + 1) % 4
    return following, turn if turn in onward else next(iter(onward), direction)


def _corners(ring: list[Point]) -> list[Point]:
    array = np.array(ring)
    before, after = np.roll(array, 1, axis=0), np.roll(array, -1, axis=0)
    kept = array[((array - before) != (after - array)).any(axis=1)].tolist()
    return [(x, y) for x, y in [*kept, kept[0]]]


def _area(ring: list[Point]) -> float:
    x, y = np.array(ring, dtype=np.int64).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2


def _beside(ring: list[Point]) -> NDArray[np.float64]:
    """Return the middle of a pixel of the mask at the first edge of a ring."""
    (x0, y0), (x1, y1) = ring[:2]
    dx, dy = np.sign(x1 - x0), np.sign(y1 - y0)
    return np.array([x0 + (dx - dy) / 2, y0 + (dy + dx) / 2])


def _holds(ring: NDArray[Any], point: NDArray[np.float64]) -> bool:
    """Return whether a point lies in a ring: it has an odd number of edges to its right."""
    x, y = ring.T
    upright = (x[:-1] == x[1:]) & (x[:-1] > point[0])
    low, high = np.minimum(y[:-1], y[1:]), np.maximum(y[:-1], y[1:])
    return int((upright & (low < point[1]) & (point[1] < high)).sum()) % 2 == 1
