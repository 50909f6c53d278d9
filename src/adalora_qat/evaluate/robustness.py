"""How a model holds when the image or its prompt is worse than in the study.

Each degradation is a pure transform of the image as read, at its own size and depth, with
the truth moved alike where pixels move. Grey levels are treated on the image's own range
(its minimum to its maximum), so that 8-, 12- and 16-bit images are degraded equally.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError
from adalora_qat.evaluate.cases import Alteration, evaluate_cases
from adalora_qat.predictor import Predictor, uses_boxes
from adalora_qat.progress import Progress

Grey = NDArray[np.float32]
Mask = NDArray[np.bool_]

REFERENCE_SIDE = 512
"""Blur is stated in pixels of an image whose longest side is this; others scale with it."""
JITTERS_PX = (0, 5, 10, 20, 40)
WHOLE_IMAGE = "whole-image"


@dataclass(frozen=True)
class Degradation:
    """One way in which an image can be worse, at several strengths.

    Attributes
    ----------
    kind : its name; ``kind=strength`` stands in the per-case table's column ``altered``.
    axis : label of the strength with its unit.
    neutral : the strength at which nothing changes.
    strengths : those evaluated by default, without the neutral one.
    grey : (image (H, W) in [0, 1], strength, generator) → the same, degraded.
    mask : (mask, strength) → the truth after the same move, or None if nothing moves.
    """

    kind: str
    axis: str
    neutral: float
    strengths: tuple[float, ...]
    grey: Callable[[Grey, float, np.random.Generator], Grey]
    mask: Callable[[Mask, float], Mask] | None = None

    def at(self, strength: float) -> Alteration:
        """Return the alteration of one strength."""

        def image(given: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
            return on_own_range(given, lambda grey: self.grey(grey, strength, rng))

        moved = self.mask
        return Alteration(
            f"{self.kind}={strength:g}",
            image,
            None if moved is None else lambda mask: moved(mask, strength),
        )


def on_own_range(image: NDArray[Any], change: Callable[[Grey], Grey]) -> NDArray[Any]:
    """Apply a change of a [0, 1] grey image to an image of any depth, channel by channel.

    Parameters
    ----------
    image : (H, W) or (H, W, C); unchanged if it is of one colour.
    change : (H, W) float32 → the same; what leaves [0, 1] is clipped, as a detector would.

    Returns
    -------
    Size and dtype as given; integers rounded.
    """
    low, high = float(image.min()), float(image.max())
    if high <= low:
        return image
    channels = image[..., None] if image.ndim == 2 else image
    changed = np.empty(channels.shape, np.float32)
    for c in range(channels.shape[2]):
        grey = ((channels[..., c] - low) / (high - low)).astype(np.float32)
        changed[..., c] = np.clip(change(grey), 0, 1)
    values = (changed * (high - low) + low).reshape(image.shape)
    if np.issubdtype(image.dtype, np.integer):
        values = values.round()
    return values.astype(image.dtype)


def add_noise(grey: Grey, sd: float, rng: np.random.Generator) -> Grey:
    """Add Gaussian noise of standard deviation ``sd``, a share of the grey range."""
    return grey + np.float32(sd) * rng.standard_normal(grey.shape, dtype=np.float32)


def blur(grey: Grey, sigma_px: float, rng: np.random.Generator) -> Grey:
    """Blur with a Gaussian of ``sigma_px`` at ``REFERENCE_SIDE`` pixels."""
    sigma = sigma_px * max(grey.shape) / REFERENCE_SIDE
    return np.asarray(ndimage.gaussian_filter(grey, sigma), dtype=np.float32)


def change_contrast(grey: Grey, factor: float, rng: np.random.Generator) -> Grey:
    """Stretch grey levels about their mean; a factor above 1 clips both ends.

    A model that normalises by minimum and maximum undoes a factor below 1 but for the
    rounding to whole grey levels: that half of the axis tests the rounding.
    """
    mean = np.float32(grey.mean())
    return mean + np.float32(factor) * (grey - mean)


def rotate(grey: Grey, degrees: float, rng: np.random.Generator) -> Grey:
    """Turn about the centre, counter-clockwise, bilinear; what comes in is black."""
    return np.asarray(_turned(grey, degrees, Image.Resampling.BILINEAR), dtype=np.float32)


def rotate_mask(mask: Mask, degrees: float) -> Mask:
    """Turn a mask, (H, W) bool, as ``rotate`` turns its image: bilinear and cut at one half."""
    return np.asarray(_turned(mask, degrees, Image.Resampling.BILINEAR)) >= 0.5


def compress_jpeg(grey: Grey, quality: float, rng: np.random.Generator) -> Grey:
    """Encode as 8-bit JPEG (baseline) of a quality from 1 to 95, and decode."""
    buffer = io.BytesIO()
    Image.fromarray((grey * 255).round().astype(np.uint8)).save(
        buffer, "JPEG", quality=round(quality)
    )
    return np.asarray(Image.open(buffer), dtype=np.float32) / np.float32(255)


def lower_resolution(grey: Grey, factor: float, rng: np.random.Generator) -> Grey:
    """Average down by ``factor`` and interpolate back: detail goes, geometry stays."""
    height, width = grey.shape
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    picture = Image.fromarray(grey).resize(small, Image.Resampling.BOX)
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


DEGRADATIONS: Mapping[str, Degradation] = MappingProxyType(
    {
        entry.kind: entry
        for entry in (
            Degradation(
                "noise", "Noise, sd (share of grey range)", 0, (0.02, 0.05, 0.1, 0.2), add_noise
            ),
            Degradation("blur", "Blur, σ (px at 512 px)", 0, (1, 2, 4, 8), blur),
            Degradation(
                "contrast", "Contrast (factor)", 1, (0.1, 0.25, 0.5, 1.5, 2, 4), change_contrast
            ),
            Degradation(
                "rotation",
                "Rotation (degrees)",
                0,
                (-20, -10, -5, 5, 10, 20),
                rotate,
                rotate_mask,
            ),
            Degradation("jpeg", "JPEG quality", 100, (75, 50, 25, 10, 5), compress_jpeg),
            Degradation(
                "resolution", "Resolution lowered (times)", 1, (2, 4, 8, 16), lower_resolution
            ),
        )
    }
)


def alterations(kinds: Sequence[str] | None = None) -> list[Alteration]:
    """Return every strength of the named degradations; all of them by default.

    Raises
    ------
    DataError
        If a name is not known.
    """
    chosen = list(DEGRADATIONS) if kinds is None else list(kinds)
    unknown = [kind for kind in chosen if kind not in DEGRADATIONS]
    if unknown:
        raise DataError(
            f"unknown degradation {', '.join(unknown)}; known: {', '.join(DEGRADATIONS)}"
        )
    return [
        DEGRADATIONS[kind].at(strength)
        for kind in chosen
        for strength in DEGRADATIONS[kind].strengths
    ]


def parse_altered(name: str) -> tuple[str, float] | None:
    """Split ``noise=0.05`` into kind and strength; None for any other name."""
    kind, separator, strength = name.partition("=")
    if not separator or kind not in DEGRADATIONS:
        return None
    return kind, float(strength)


def evaluate_prompts(
    predictor: Predictor,
    records: Sequence[Record],
    targets: Sequence[str],
    jitters_px: Sequence[int] = JITTERS_PX,
    out: Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Evaluate with oracle boxes, with each jitter, and with no prompt.

    Every setting is a per-case table of its own under ``out``, so that a stopped evaluation
    goes on; returns them one below the other. ``options`` go to ``evaluate_cases``.
    """
    modes: list[str] = [f"oracle+jitter{px}" if px else "oracle" for px in jitters_px]
    # One that looks at the image alone has one answer, and no prompt is the name for it.
    every = [*modes, WHOLE_IMAGE] if uses_boxes(predictor) else [WHOLE_IMAGE]
    parts = [
        evaluate_cases(
            predictor,
            records,
            targets,
            mode,
            out=out / "prompts" / mode if out else None,
            progress=_named(progress, mode),
            **options,
        )
        for mode in every
    ]
    return pd.concat(parts, ignore_index=True)


def evaluate_degradations(
    predictor: Predictor,
    records: Sequence[Record],
    targets: Sequence[str],
    kinds: Sequence[str] | None = None,
    box_mode: str = "oracle",
    out: Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Evaluate the image as read and under every degradation; as ``evaluate_prompts``.

    The box is the same oracle's throughout: taken from the truth after its move.
    """
    steps: list[Alteration | None] = [None, *alterations(kinds)]
    parts = []
    for step in steps:
        name = step.name if step else "as-read"
        folder = out / "degradations" / name if out else None
        told = _named(progress, name)
        parts.append(
            evaluate_cases(
                predictor,
                records,
                targets,
                box_mode,
                out=folder,
                progress=told,
                alteration=step,
                **options,
            )
        )
    return pd.concat(parts, ignore_index=True)


def _turned(values: NDArray[Any], degrees: float, resample: Image.Resampling) -> Image.Image:
    return Image.fromarray(values.astype(np.float32)).rotate(degrees, resample=resample)


def _named(progress: Progress | None, name: str) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total, what: progress(done, total, f"{name}: {what}")
