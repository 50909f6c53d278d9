"""An abdomen: a slice of a computed tomogram with exact masks of the liver and both kidneys.

Coordinates (X, Y): the picture spans −1…1, X grows to the right (the patient's left), Y
downwards (to the back). Densities are in Hounsfield units: water 0, air −1000. Margins are
positive inside an organ, negative outside. S is the side of the picture in pixels.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[Any]  # float32, one value per pixel

AIR, FAT, MUSCLE, BOWEL, BONE = -1000, -100, 55, 30, 350
# Grey levels span these densities, the usual window of an abdomen.
WINDOW_HU = (-160.0, 240.0)


class Abdomen:
    """A random anatomy: the outlines of body and organs as formulas.

    Parameters
    ----------
    rng : draws the anatomy; the same draws at every side of the picture.
    side : S.
    """

    def __init__(self, rng: np.random.Generator, side: int) -> None:
        self._rng = rng
        axis = (np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / side) - 1
        size, turn = rng.uniform(0.95, 1.08), rng.normal(0, 0.03)
        x, y = axis[None, :] - rng.normal(0, 0.03), axis[:, None] - rng.normal(0, 0.03)
        self.X = ((np.cos(turn) * x + np.sin(turn) * y) / size).astype(np.float32)
        self.Y = ((np.cos(turn) * y - np.sin(turn) * x) / size).astype(np.float32)

    def blob(
        self, x: float, y: float, a: float, b: float, turn: float = 0.0, spread: float = 0.03
    ) -> Field:
        """Return the margin of a rounded organ.

        Parameters
        ----------
        x, y : its centre, moved at random by ``spread``.
        a, b : half its width and height, changed at random by a tenth.
        turn : radians, clockwise.
        """
        rng = self._rng
        x, y = x + rng.normal(0, spread), y + rng.normal(0, spread)
        a, b = a * rng.uniform(0.9, 1.1), b * rng.uniform(0.9, 1.1)
        turn += rng.normal(0, 0.1)
        dx, dy = self.X - np.float32(x), self.Y - np.float32(y)
        u = (np.cos(turn) * dx + np.sin(turn) * dy) / a
        v = (np.cos(turn) * dy - np.sin(turn) * dx) / b
        angle = np.arctan2(v, u)
        outline = np.ones_like(angle)
        for wave in (2, 3, 5):
            outline += rng.normal(0, 0.06 / wave) * np.cos(wave * angle + rng.uniform(0, 6.3))
        margin: Field = ((outline - np.hypot(u, v)) * min(a, b)).astype(np.float32)
        return margin


def draw_abdomen(
    rng: np.random.Generator, side: int
) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.bool_]]]:
    """Draw a slice (S, S) and the disjoint masks of ``liver`` and ``kidneys``."""
    anatomy = Abdomen(rng, side)
    skin = anatomy.blob(0, 0, 0.9, 0.74, spread=0.01)
    cavity = skin - np.float32(rng.uniform(0.08, 0.16))
    kidneys = np.maximum(*(_kidney(anatomy, s) for s in (-1, 1)))
    right, left = anatomy.blob(-0.42, -0.08, 0.36, 0.4), anatomy.blob(-0.1, -0.3, 0.32, 0.17, 0.15)
    liver = np.minimum(np.maximum(right, left), cavity - 0.02)
    masks = {"liver": (liver > 0) & (kidneys <= 0), "kidneys": kidneys > 0}
    density = _density(anatomy, skin, cavity, rng)
    enhanced = rng.uniform(0.0, 1.0)
    texture = _smooth_noise(rng, side)
    density[masks["liver"]] = (80 + 40 * enhanced + 5 * texture)[masks["liver"]]
    # The cortex takes up more contrast than the pelvis in the middle.
    cortex = 1 - np.clip(kidneys / 0.09, 0, 1)
    density[masks["kidneys"]] = (75 + (60 + 60 * cortex) * enhanced + 4 * texture)[masks["kidneys"]]
    _add_vessels(density, anatomy, masks["liver"], enhanced, rng)
    return _picture(density, rng), masks


def _kidney(anatomy: Abdomen, s: int) -> Field:
    """Return the margin of one kidney, a bean whose dent looks to the spine."""
    bean = anatomy.blob(s * 0.4, 0.28, 0.13, 0.17, s * 0.5)
    dent = anatomy.blob(s * 0.25, 0.24, 0.07, 0.05)
    return np.minimum(bean, -dent)


def _density(
    anatomy: Abdomen, skin: Field, cavity: Field, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return everything but the organs with masks: fat, muscle, bone, spleen, gut."""
    density = np.where(skin > 0, np.float32(FAT), np.float32(AIR)).astype(np.float32)
    wall = (cavity > -0.05) & (cavity <= 0)
    back = anatomy.blob(-0.2, 0.48, 0.2, 0.14), anatomy.blob(0.2, 0.48, 0.2, 0.14)
    muscle = wall | ((np.maximum(*back) > 0) & (skin > 0.05))
    density[muscle] = MUSCLE
    inside = cavity > 0.02
    for _ in range(rng.integers(7, 13)):
        x, y = rng.uniform((0.0, -0.35), (0.5, 0.2))
        loop = anatomy.blob(x, y, 0.1, 0.08) > 0
        gas = rng.random() < 0.25
        density[loop & inside] = AIR / 2 if gas else BOWEL + rng.uniform(-10, 30)
    spleen = anatomy.blob(0.62, 0.05, 0.13, 0.25, 0.2)
    density[(spleen > 0) & inside] = 100
    vertebra = np.maximum(anatomy.blob(0, 0.33, 0.13, 0.1), anatomy.blob(0, 0.5, 0.05, 0.12))
    density[vertebra > 0] = BONE * 0.6
    density[(vertebra > 0) & (vertebra < 0.02)] = BONE
    return density


def _add_vessels(
    density: Field,
    anatomy: Abdomen,
    liver: NDArray[np.bool_],
    enhanced: float,
    rng: np.random.Generator,
) -> None:
    """Draw the aorta, the vena cava and branches inside the liver into ``density``, in place.

    Parameters
    ----------
    density : (S, S) Hounsfield units.
    anatomy : gives the shapes.
    liver : (S, S).
    enhanced : how much contrast agent the blood carries, 0 to 1.
    rng : draws the branches.
    """
    blood = np.float32(45 + 160 * enhanced)
    aorta, cava = anatomy.blob(0.05, 0.16, 0.05, 0.05), anatomy.blob(-0.12, 0.14, 0.06, 0.045)
    density[np.maximum(aorta, cava) > 0] = blood
    for _ in range(rng.integers(4, 9)):
        x, y = rng.uniform((-0.65, -0.35), (-0.1, 0.15))
        branch = anatomy.blob(x, y, 0.02, 0.05, spread=0)
        density[(branch > 0) & liver] = blood


def _picture(density: Field, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Blur by the detector, add noise as a reconstruction has it, and apply the window."""
    side = density.shape[0]
    blurred: Field = cv2.GaussianBlur(density, (0, 0), side / 256 * rng.uniform(0.5, 0.9))
    # A stream of its own: its length depends on the side, the patient does not.
    grain: Field = rng.spawn(1)[0].standard_normal((side, side), dtype=np.float32)
    # Filtered back-projection leaves little noise at low frequencies.
    grain = cv2.GaussianBlur(grain, (0, 0), 0.6) - cv2.GaussianBlur(grain, (0, 0), 3)
    blurred += np.float32(rng.uniform(8, 22) / max(float(grain.std()), 1e-6)) * grain
    low, high = WINDOW_HU
    grey = np.clip((blurred - low) / (high - low), 0, 1) * 255
    return np.asarray(np.round(grey), dtype=np.uint8)


def _smooth_noise(rng: np.random.Generator, side: int) -> Field:
    noise: Field = rng.standard_normal((24, 24), dtype=np.float32)
    return cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
