"""Which structure each mask of a result is of, and the files of masks by structure."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adalora_qat.errors import DataError
from adalora_qat.files import atomic_write
from adalora_qat.predictor import STRUCTURE_NAME

COLUMN = "structure"


def read_structures(boxes_csv: Path) -> dict[str, tuple[str, ...]]:
    """Read the column ``structure`` of a table of boxes, if it has one.

    Parameters
    ----------
    boxes_csv : a table whose boxes were read already (``segment.read_boxes``).

    Returns
    -------
    File name → the structure of each of its rows, in their order; empty without the column.

    Raises
    ------
    DataError
        If a row names none, or one that cannot be part of a file's name.
    """
    with boxes_csv.open(newline="", encoding="utf-8-sig") as handle:
        reader = csv.DictReader(handle, skipinitialspace=True)
        if COLUMN not in (reader.fieldnames or []):
            return {}
        structures: dict[str, tuple[str, ...]] = {}
        for row in reader:
            name = (row[COLUMN] or "").strip()
            if not re.fullmatch(STRUCTURE_NAME, name):
                raise DataError(
                    f"{boxes_csv}, line {reader.line_num}: {name!r} cannot name a structure; give "
                    "lower-case letters, digits and underscores, a letter first, or leave the "
                    "column out"
                )
            file = Path(row["file"]).name
            structures[file] = (*structures.get(file, ()), name)
    return structures


def mask_names(stem: str, structures: Sequence[str]) -> dict[str, str]:
    """Return structure → name of the file of its masks."""
    return {structure: f"{stem}_{structure}_mask.png" for structure in structures}


def save_masks(
    folder: Path, stem: str, masks: NDArray[np.bool_], structures: Sequence[str]
) -> list[Path]:
    """Write one 0/255 PNG a structure: the union of its masks.

    Parameters
    ----------
    masks : (N, H, W), in the order of ``structures``.
    structures : (N,) names; several masks may be of one.
    """
    paths = []
    for structure, name in mask_names(stem, structures).items():
        chosen = [index for index, each in enumerate(structures) if each == structure]
        union = masks[chosen].any(axis=0)
        paths.append(folder / name)
        with atomic_write(paths[-1]) as temporary:
            Image.fromarray(np.where(union, np.uint8(255), np.uint8(0))).save(temporary)
    return paths
