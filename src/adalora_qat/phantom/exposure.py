"""From attenuation to a picture: scatter, exposure, noise, collimation and a side marker."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from adalora_qat.phantom.anatomy import Field


def expose(attenuation: Field, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the radiograph of a body.

    Parameters
    ----------
    attenuation : (S, S), the logarithm by which a ray is weakened, at least 0.
    rng : draws how it was exposed.

    Returns
    -------
    (S, S) uint8, dense bright.
    """
    side = attenuation.shape[0]
    primary = np.exp(-np.clip(attenuation, 0, 6))
    coarse = cv2.resize(primary, (32, 32), interpolation=cv2.INTER_AREA)
    haze = cv2.resize(cv2.GaussianBlur(coarse, (0, 0), 3), (side, side))
    blur = cv2.GaussianBlur(primary, (0, 0), side / 256 * rng.uniform(0.4, 0.9))
    dose = blur + np.float32(rng.uniform(0.05, 0.5)) * haze
    # Grain has a stream of its own: its length depends on the side, the patient does not.
    grain: Field = rng.spawn(1)[0].standard_normal((side, side), dtype=np.float32)
    grain = cv2.GaussianBlur(grain, (0, 0), 0.6)
    dose += np.float32(rng.uniform(0.005, 0.02)) * np.sqrt(dose) * grain
    density = -np.log(np.maximum(dose, np.float32(1e-3)))
    low, high = np.quantile(density[::4, ::4], [rng.uniform(0.005, 0.08), rng.uniform(0.96, 1)])
    tone = np.clip((density - low) / (high - low), 0, 1) ** np.float32(rng.uniform(0.7, 1.5))
    bottom, top = rng.uniform(0, 25), rng.uniform(215, 255)
    grey: NDArray[np.uint8] = np.round(bottom + (top - bottom) * tone).astype(np.uint8)
    _stamp(grey, rng)
    return grey


def _stamp(grey: NDArray[np.uint8], rng: np.random.Generator) -> None:
    side = grey.shape[0]
    if rng.random() < 0.5:
        # Collimation: unexposed edges.
        for edge in rng.integers(0, 4, rng.integers(1, 4)):
            np.rot90(grey, edge)[: round(side * rng.uniform(0.005, 0.04))] = rng.choice([0, 255])
    if rng.random() < 0.7:
        letter = "L" if rng.random() < 0.5 else "R"
        x = rng.uniform(0.84, 0.9) if letter == "L" else rng.uniform(0.03, 0.1)
        place = (round(side * x), round(side * rng.uniform(0.08, 0.16)))
        cv2.putText(grey, letter, place, cv2.FONT_HERSHEY_SIMPLEX, side / 400, 250,
                    max(1, side // 160), cv2.LINE_AA)  # fmt: skip
