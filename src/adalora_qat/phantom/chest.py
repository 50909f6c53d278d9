"""A chest radiograph: the attenuation along the rays through an anatomy, and its exact masks.

What the masks hold, as in the SCR drawings of JSRT (van Ginneken et al. 2006): a lung field is
the lung seen beside the heart and above the dome of the diaphragm. Lung behind the heart and
in the sulcus below the dome, though it is darker than its surroundings, is outside; opacities
are inside; pleural fluid is outside.

Chest coordinates (X, Y), the side s and the distance u are those of ``anatomy.py``; S is the
side of the picture in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from adalora_qat.phantom.anatomy import Chest, Field
from adalora_qat.phantom.exposure import expose


def draw_chest(
    rng: np.random.Generator, side: int
) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.bool_]]]:
    """Draw a chest: its radiograph (S, S) and the masks of both lungs and the heart, disjoint."""
    chest = Chest(rng)
    X, Y = chest.grid(side)
    margins = {-1: chest.lung(X, Y, -1), 1: chest.lung(X, Y, 1)}
    heart = chest.heart(X, Y)
    masks = {
        "left_lung": (margins[1] > 0) & (heart <= 0),
        "right_lung": (margins[-1] > 0) & (heart <= 0),
        "heart": heart > 0,
    }
    attenuation = _soft_tissue(chest, X, Y, margins, heart, rng)
    attenuation += _bones(chest, X, Y, rng) * (attenuation > 0)
    return expose(attenuation, rng), masks


def _soft_tissue(
    chest: Chest,
    X: Field,
    Y: Field,
    margins: Mapping[int, Field],
    heart: Field,
    rng: np.random.Generator,
) -> Field:
    def up_to(margin: Field, depth: float) -> Field:
        return np.sqrt(np.clip(margin * np.float32(1 / depth), 0, 1))

    body = up_to(chest.body(X, Y), 0.35)
    total = np.float32(rng.uniform(2.3, 2.9)) * body
    air = np.zeros_like(X)
    behind_heart, sulcus = rng.uniform(0.15, 0.5), rng.uniform(0.0, 0.3)
    for s, margin in margins.items():
        seen = 0.4 + 0.6 * up_to(margin, 0.30)
        air += np.where(margin > 0, np.where(heart > 0, behind_heart * seen, seen), 0)
        below = Y - chest.diaphragm(s * X, s)
        inside = np.minimum(chest.lateral(Y, s) - s * X, s * X - 0.1)
        air += np.where(
            (below > 0) & (margin <= 0), sulcus * up_to(inside, 0.2) * np.exp(-below / 0.07), 0
        )
    # Air weighs least where the chest is thin: the apices under the shoulders.
    air *= 0.72 + 0.28 * np.clip((Y - chest.top) / 0.5, 0, 1)
    aeration = np.float32(rng.uniform(1.15, 1.75))
    vessels = _to_picture(_vessels(rng), chest, X.shape[0])
    markings = np.float32(rng.uniform(0.35, 0.65)) * vessels
    markings += np.float32(rng.uniform(0.06, 0.14)) * _texture(X.shape[0], rng)
    total -= aeration * air
    total += markings * np.minimum(air, 1)
    total += _disease(X, Y, margins, rng) * np.minimum(air, 1)
    total += _trachea_and_gut(chest, X, Y, rng) * body
    return total


def _trachea_and_gut(chest: Chest, X: Field, Y: Field, rng: np.random.Generator) -> Field:
    sway = np.float32(rng.uniform(-0.03, 0.03)) * (Y + 1)
    tube = np.clip(1 - ((X - sway) / 0.055) ** 2, 0, 1) * np.clip((-0.22 - Y) / 0.1, 0, 1)
    total: Field = -np.float32(0.45) * np.sqrt(tube)
    for _ in range(rng.integers(0, 5)):
        x, y = rng.uniform(0.1, 0.6), chest.dome[1] + rng.uniform(0.1, 0.4)
        a, b = rng.uniform(0.04, 0.14), rng.uniform(0.03, 0.07)
        bubble = 1 - ((X - x) / a) ** 2 - ((Y - y) / b) ** 2
        total -= np.float32(rng.uniform(0.2, 0.6)) * np.sqrt(np.clip(bubble, 0, 1))
    return total


def _disease(
    X: Field, Y: Field, margins: Mapping[int, Field], rng: np.random.Generator
) -> Field | np.float32:
    total: Field | np.float32 = np.float32(0)
    for _ in range(rng.integers(0, 5) if rng.random() < 0.5 else 0):
        x, y = rng.uniform(0.2, 0.7) * (1 if rng.random() < 0.5 else -1), rng.uniform(-0.6, 0.5)
        a, b = rng.uniform(0.04, 0.25, 2)
        r2 = ((X - x) / a) ** 2 + ((Y - y) / b) ** 2
        total = total + np.float32(rng.uniform(0.2, 1.0)) * np.exp(-np.minimum(r2, 20))
    return total


def _bones(chest: Chest, X: Field, Y: Field, rng: np.random.Generator) -> Field:
    total = _spine(X, Y, rng)
    strength = np.float32(rng.uniform(0.16, 0.38))
    spacing, slope = rng.uniform(0.125, 0.15), rng.uniform(0.10, 0.22)
    first = chest.top + rng.uniform(0.0, 0.06)
    for s in (-1, 1):
        for index in range(10):
            _add_rib(total, chest, X, Y, s, first + spacing * index, index, slope, strength)
        _add_clavicle(total, X, Y, s, rng)
        _add_scapula(total, X, Y, s, rng)
    return total


def _spine(X: Field, Y: Field, rng: np.random.Generator) -> Field:
    width, period = rng.uniform(0.085, 0.11), rng.uniform(0.115, 0.14)
    bend = np.float32(rng.uniform(-0.02, 0.02)) * np.sin(2 * Y + np.float32(rng.uniform(0, 6)))
    across = (X - bend) / np.float32(width)
    vertebrae = 0.8 + 0.2 * np.cos(np.float32(2 * np.pi / period) * Y)
    square = across * across
    column = np.clip(1.25 - 0.8 * square * square, 0, 1) * vertebrae
    pedicles = np.exp(-(((np.abs(across) - 0.6) / 0.2) ** 2)) * (vertebrae - 0.6)
    density = rng.uniform(0.15, 0.4)
    # Great vessels and oesophagus lie before the column and blur its edges.
    wide = np.clip(1 - (X / np.float32(0.26)) ** 2, 0, 1)
    mediastinum = np.float32(rng.uniform(0.2, 0.5)) * wide * np.clip((Y + 0.6) / 0.3, 0, 1)
    result: Field = np.float32(density) * (column + 0.4 * pedicles) + mediastinum
    return result.astype(np.float32)


def _add_rib(
    total: Field,
    chest: Chest,
    X: Field,
    Y: Field,
    s: int,
    y0: float,
    index: int,
    slope: float,
    strength: np.float32,
) -> None:
    # A posterior arc from the spine to the chest wall, and the anterior arc back from there.
    reach = float(chest.lateral(np.asarray(min(y0 + slope, 0.6), np.float32), s)) + 0.03
    half = 0.021 + 0.001 * index
    lower = slope * (0.8 + 0.09 * index)

    def posterior(t: Field) -> Field:
        return t * t - 0.3 * np.sin(np.float32(np.pi) * t)

    def anterior(t: Field) -> Field:
        return 1 + 1.5 * (1 - t)

    columns = np.flatnonzero((s * X > 0).any(axis=0))
    for start, weight, top, bottom, course in (
        (0.06, 1.0, -0.2, 1.0, posterior),
        (0.5 * reach, 0.6, 0.9, 1.9, anterior),
    ):
        near = (y0 + top * lower - half < Y) & (y0 + bottom * lower + half > Y)
        rows = np.flatnonzero(near.any(axis=1))
        if rows.size == 0:
            continue
        part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        u = s * X[part]
        t = np.clip(u / np.float32(reach), 0, 1)
        square = ((Y[part] - np.float32(y0) - lower * course(t)) / np.float32(half)) ** 2
        # A hollow tube: bright cortex at both edges.
        tube = (0.7 + 0.5 * square * square) * np.clip((1.15 - square) / 0.3, 0, 1)
        ends = np.clip((u - start) / 0.05, 0, 1) * np.clip((reach - u) / 0.02, 0, 1)
        total[part] += strength * np.float32(weight) * tube * ends


def _add_clavicle(total: Field, X: Field, Y: Field, s: int, rng: np.random.Generator) -> None:
    y0, rise = rng.uniform(-0.62, -0.5), rng.uniform(0.08, 0.22)
    u = s * X
    t = np.clip((u - 0.08) / 0.75, 0, 1)
    course = y0 - rise * t + 0.05 * np.sin(2 * np.pi * t)
    across = np.abs(Y - course) / np.float32(0.038)
    bone = np.where(across < 1, 0.75 + 0.35 * across**3, 0) * np.clip((1.1 - across) / 0.2, 0, 1)
    ends = np.clip((u - 0.07) / 0.04, 0, 1) * np.clip((0.92 - u) / 0.1, 0, 1)
    total += np.float32(rng.uniform(0.2, 0.4)) * bone * ends


def _add_scapula(total: Field, X: Field, Y: Field, s: int, rng: np.random.Generator) -> None:
    edge, slant = rng.uniform(0.62, 0.82), rng.uniform(0.05, 0.3)
    u = s * X - slant * (Y + 0.2)
    blade = np.clip((u - edge) / 0.03, 0, 1) * np.clip((1.1 - u) / 0.1, 0, 1)
    blade *= np.clip((Y + 0.75) / 0.1, 0, 1) * np.clip((0.1 - Y - 0.6 * (1 - u)) / 0.05 + 4, 0, 1)
    blade *= np.clip((0.12 - Y) / 0.05, 0, 1)
    total += np.float32(rng.uniform(0.08, 0.25)) * blade
    joint = 1 - ((s * X - 0.98) / 0.12) ** 2 - ((Y + 0.62) / 0.12) ** 2
    total += np.float32(0.5) * np.sqrt(np.clip(joint, 0, 1))


_LAYER = 512


def _vessels(rng: np.random.Generator) -> Field:
    # Branches walk outwards from each hilum and taper; drawn once in chest coordinates.
    layer = np.zeros((_LAYER, _LAYER), dtype=np.uint8)
    for s in (-1, 1):
        hilum = (s * rng.uniform(0.17, 0.22), rng.uniform(-0.1, 0.0))
        for angle in np.linspace(-1.25, 1.35, 9) + rng.uniform(-0.12, 0.12, 9):
            _branch(layer, hilum, float(angle), s, rng.uniform(0.014, 0.024), 0.085, rng)
        cv2.ellipse(layer, _pixel(hilum), (16, 30), s * 12.0, 0, 360, 150, -1)
    return cv2.GaussianBlur(layer, (0, 0), 1.2).astype(np.float32) / np.float32(255)


def _branch(
    layer: NDArray[np.uint8],
    start: tuple[float, float],
    angle: float,
    s: int,
    width: float,
    step: float,
    rng: np.random.Generator,
) -> None:
    """Draw a vessel and its branches into ``layer``, in place, until they are too thin to see.

    Parameters
    ----------
    layer : (side, side) uint8.
    start : (x, y) in chest coordinates, −1 to 1.
    angle : from the horizontal, in radians.
    s : −1 to the left of the picture, 1 to the right.
    width, step : of the vessel and of one piece of it, in chest coordinates.
    rng : bends and forks it.
    """
    point = start
    while width > 0.003:
        angle += rng.normal(0, 0.14)
        follow = (point[0] + step * s * math.cos(angle), point[1] + step * math.sin(angle))
        brightness = min(255, int(60 + 9000 * width))
        thickness = max(1, round(width * _LAYER / 2))
        cv2.line(layer, _pixel(point), _pixel(follow), brightness, thickness, cv2.LINE_AA)
        if rng.random() < 0.55:
            turn = angle + rng.uniform(0.4, 0.8) * (1 if rng.random() < 0.5 else -1)
            _branch(layer, follow, turn, s, width * 0.6, step * 0.8, rng)
        point, width = follow, width * 0.8


def _pixel(point: tuple[float, float]) -> tuple[int, int]:
    return int((point[0] + 1) * _LAYER / 2), int((point[1] + 1) * _LAYER / 2)


def _to_picture(layer: Field, chest: Chest, side: int) -> Field:
    corners_x, corners_y = chest.grid(2)
    points = np.stack([corners_x, corners_y], axis=2)[[0, 0, 1], [0, 1, 0]]
    source = ((points + 1) * (_LAYER / 2) - 0.5).astype(np.float32)
    target = np.array([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75]]) * side - 0.5
    matrix = cv2.getAffineTransform(source, target.astype(np.float32))
    if side < _LAYER:
        layer = cv2.GaussianBlur(layer, (0, 0), 0.4 * _LAYER / side)
    warped: Field = cv2.warpAffine(layer, matrix, (side, side), flags=cv2.INTER_LINEAR)
    return warped


def _texture(side: int, rng: np.random.Generator) -> Field:
    total = np.zeros((side, side), dtype=np.float32)
    for cells in (12, 28, 64):
        noise = rng.standard_normal((cells, cells), dtype=np.float32)
        total += cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    return total
