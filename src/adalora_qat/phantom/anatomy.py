"""The anatomy of a phantom: outlines of lungs, heart and body as closed formulas.

Chest coordinates (X, Y): the picture spans −1…1, X grows to the right of the picture (the
patient's left), Y downwards; u = |X| of one side, s = −1 for the left of the picture, +1 for
its right. Formulas take coordinates of any shape and hold at any resolution.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[Any]  # float32, one value per pixel


class Chest:
    """A random anatomy: the outlines of lungs, heart and body as formulas.

    Outlines are margins: positive inside, negative outside, near the outline about the
    distance to it. Every method takes chest coordinates of one shape, X and Y or u, float32,
    and the side ``s``, −1 for the left of the picture or +1 for its right, and returns float32
    of that shape.

    Parameters
    ----------
    rng : draws the anatomy.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        def around(mean: float, spread: float) -> float:
            return float(mean + spread * np.clip(rng.standard_normal(), -2, 2))

        self.scale, self.shift = around(0.95, 0.06), (around(0, 0.04), around(0, 0.04))
        self.tilt = np.deg2rad(around(0, 2.0))
        self.top, self.widest = around(-0.72, 0.04), around(0.42, 0.06)
        self.apex, self.wide = around(0.30, 0.02), around(0.72, 0.04)
        self.roundness = around(1.9, 0.15)
        self.medial = {-1: around(0.15, 0.015), 1: around(0.13, 0.015)}
        dome = around(0.42, 0.07)
        self.dome = {-1: dome, 1: dome + around(0.06, 0.025)}
        self.lateral_drop = {s: around(0.26, 0.06) for s in (-1, 1)}
        self.medial_drop = {s: around(0.07, 0.03) for s in (-1, 1)}
        self.wobble = {s: (around(0, 0.008), rng.uniform(0, 2 * np.pi)) for s in (-1, 1)}
        self.knob, self.knob_y = around(0.075, 0.02), around(-0.32, 0.03)
        self.trunk = around(0.07, 0.02)
        self.heart_at = (around(0.12, 0.025), self.dome[1] - around(0.24, 0.02))
        self.heart_axes = (around(0.43, 0.04), around(0.29, 0.03))
        self.heart_turn = np.deg2rad(around(54, 5))
        self.wall, self.waist = around(0.13, 0.03), around(0.05, 0.05)
        self.fluid = {s: around(0.18, 0.08) if rng.random() < 0.12 else None for s in (-1, 1)}

    def grid(self, side: int) -> tuple[Field, Field]:
        """Return chest coordinates (X, Y) of the pixel centres, each (S, S)."""
        axis = (np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / side) - 1
        x, y = axis[None, :] - self.shift[0], axis[:, None] - self.shift[1]
        cos, sin = np.cos(self.tilt) / self.scale, np.sin(self.tilt) / self.scale
        return np.float32(cos) * x + np.float32(sin) * y, np.float32(cos) * y - np.float32(sin) * x

    def lateral(self, Y: Field, s: int) -> Field:
        """Return u of the inner chest wall of side ``s`` (−1: picture left) at height Y."""
        t = np.clip((Y - self.top) / (self.widest - self.top), 0, 1)
        arch = (1 - (1 - t) ** 2.2) ** np.float32(1 / self.roundness)
        size, phase = self.wobble[s]
        below = np.clip(Y - self.widest, 0, None)
        u: Field = self.apex + (self.wide - self.apex) * arch - 0.2 * below * below
        return u + np.float32(size) * np.sin(9 * Y + np.float32(phase))

    def mediastinal(self, Y: Field, s: int) -> Field:
        """Return u of the border of lung and mediastinum, the heart left out."""
        t = np.clip((Y - self.top) / 0.22, 0, 1)
        u = self.apex - (self.apex - self.medial[s]) * np.sqrt(1 - (1 - t) ** 2)
        if s > 0:
            u = u + self.knob * np.exp(-(((Y - self.knob_y) / 0.09) ** 2))
            u = u + self.trunk * np.exp(-(((Y - self.knob_y - 0.2) / 0.1) ** 2))
        return u.astype(np.float32)

    def diaphragm(self, u: Field, s: int) -> Field:
        """Return Y of the dome, or of the fluid that stands on it, at a distance u."""
        middle = np.float32(0.36)
        lateral = np.clip((u - middle) / (self.wide - middle), 0, 1.3)
        medial = np.clip((middle - u) / middle, 0, None)
        y = self.dome[s] + self.lateral_drop[s] * lateral**2.4 + self.medial_drop[s] * medial**2
        level = self.fluid[s]
        if level is not None:
            # A meniscus: the fluid climbs along the chest wall.
            climb = np.clip((u - 0.25) / (self.wide - 0.25), 0, 1.2) ** 3
            y = np.minimum(y, self.dome[s] + self.lateral_drop[s] - level * (0.45 + climb))
        result: Field = y.astype(np.float32)
        return result

    def lung(self, X: Field, Y: Field, s: int) -> Field:
        """Return the margin of the lung of side ``s``, part behind the heart included."""
        u = s * X
        sides = np.minimum(self.lateral(Y, s) - u, u - self.mediastinal(Y, s))
        margin: Field = np.minimum(np.minimum(sides, self.diaphragm(u, s) - Y), Y - self.top)
        return margin

    def heart(self, X: Field, Y: Field) -> Field:
        """Return the margin of the heart; it rests on the diaphragm."""
        dx, dy = X - self.heart_at[0], Y - self.heart_at[1]
        cos, sin = np.float32(np.cos(self.heart_turn)), np.float32(np.sin(self.heart_turn))
        along, across = (cos * dx + sin * dy) / self.heart_axes[0], cos * dy - sin * dx
        # Broad at the apex, narrow at the great vessels.
        across = across / (self.heart_axes[1] * (1 + 0.22 * along))
        inside = (1 - np.sqrt(along * along + across * across)) * self.heart_axes[1]
        floor = self.dome[1] + 0.07 - 0.05 * X
        return np.minimum(inside, floor - Y).astype(np.float32)

    def body(self, X: Field, Y: Field) -> Field:
        """Return the margin of the body: chest wall, shoulders, neck, upper arms."""
        u = np.abs(X)
        chest = self.lateral(Y, 1) + self.wall - self.waist * np.clip(Y - 0.5, 0, None)
        flare = np.clip((-0.1 - Y) / 0.35, 0, None)
        shoulder = -1.02 + 0.34 * np.clip((u - 0.2) / 0.8, 0, None) ** 1.1
        outline = np.minimum(chest + 0.6 * flare * flare - u, Y - shoulder)
        return np.maximum(outline, 0.2 - u).astype(np.float32)
