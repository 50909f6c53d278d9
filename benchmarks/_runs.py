"""How far two runs of one configuration lie apart: ranks, losses, weights, validation."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from adalora_qat.checkpoint import MODEL_FILE, load_model

# Neither the thresholded IoU, which counts pixels, nor counters are losses.
LOSSES = ("total", "bce", "dice", "ortho")


def difference(run: Path, reference: Path, stage: str = "stage1") -> dict[str, Any]:
    """Compare two run folders' finished stage.

    Returns
    -------
    Whether ranks and masks are the same and every byte is; the largest relative difference of any
    loss of any step; the largest difference of any weight and of any validation Dice.
    """
    ranks, expected = (_events(each / stage) for each in (run, reference))
    first, second = (_rows(each / stage / "history.csv") for each in (run, reference))
    dice = [_rows(each / stage / "epochs.csv") for each in (run, reference)]
    weights = [load_model(each / stage / MODEL_FILE)[0].state_dict() for each in (run, reference)]
    same_shapes = [t.shape for t in weights[0].values()] == [t.shape for t in weights[1].values()]
    return {
        "steps": len(first),
        "ranks_and_masks_identical": ranks == expected and same_shapes,
        "loss_relative_difference": max(
            abs(a[key] - b[key]) / max(abs(b[key]), 1e-3)
            for a, b in zip(first, second, strict=True)
            for key in LOSSES
        ),
        "weight_difference": max(
            float((a.double() - b.double()).abs().max())
            for a, b in zip(weights[0].values(), weights[1].values(), strict=True)
            if a.numel()
        )
        if same_shapes
        else None,
        "val_dice_difference": max(
            abs(a["val_dice"] - b["val_dice"]) for a, b in zip(*dice, strict=True)
        ),
        "bit_identical": (run / stage / MODEL_FILE).read_bytes()
        == (reference / stage / MODEL_FILE).read_bytes(),
    }


def _events(folder: Path) -> list[Any]:
    file = folder / "ranks.json"
    events = json.loads(file.read_text()) if file.is_file() else []
    return [(event["step"], event["budget"], event["ranks"]) for event in events]


def _rows(path: Path) -> list[dict[str, float]]:
    with path.open() as file:
        return [{key: float(value) for key, value in each.items()} for each in csv.DictReader(file)]
