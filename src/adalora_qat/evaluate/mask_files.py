"""True masks as read, at the size of their image; predicted masks as written."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError
from adalora_qat.files import atomic_write
from adalora_qat.imaging.image_file import load_mask

Mask = NDArray[np.bool_]


def load_truth(record: Record, target: str, size: tuple[int, ...]) -> tuple[Mask, bool]:
    """Read a true mask at the image's size (H, W); parts are joined.

    Returns
    -------
    mask : (H, W) bool.
    resized : whether the file had another size and was resized by nearest neighbour.
    """
    parts = record.mask_parts(target)
    if not parts:
        raise DataError(f"{record.id} gives no {target} mask")
    height, width = size
    whole, resized = np.zeros((height, width), dtype=np.bool_), False
    for path in parts:
        mask = load_mask(path)
        if mask.shape != (height, width):
            resized = True
            nearest = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
            mask = np.asarray(nearest, dtype=np.bool_)
        whole |= mask
    return whole, resized


def mask_path(out: Path, case_id: str, target: str) -> Path:
    """Return where ``save_masks`` puts the predicted mask of a case."""
    safe = re.sub(r"[^\w.-]", "_", case_id)
    # Two ids that differ only in a replaced character must not share a file.
    tag = hashlib.sha256(case_id.encode()).hexdigest()[:8]
    return out / "masks" / f"{safe}-{tag}-{target}.png"


def save_mask(path: Path, mask: Mask) -> None:
    """Write a mask, (H, W) bool, as a 1-bit PNG."""
    with atomic_write(path) as temporary:
        Image.fromarray(mask).save(temporary, format="PNG")
