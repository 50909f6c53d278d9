"""How much of a test score is the luck of the split: the same recipe on several splits.

    adalora-qat prepare jsrt=PATH shenzhen=PATH --seed 1 --out DATA1
    adalora-qat train litemedsam seed=1 --data DATA1 --out RUN1
    python benchmarks/split_spread.py measure RUN1 DATA1 --out OUT      # once a split
    python benchmarks/split_spread.py table OUT --out results/splits/splits.json

Dice in the model frame (256 px), oracle boxes, models as PyTorch runs them (PTQ simulated):
for comparing splits, not for quoting beside figures at the original size.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from _machine import describe_machine
from adalora_qat.checkpoint import MODEL_FILE, RunFolder, load_model
from adalora_qat.corpus.splits import read_manifest, records_of
from adalora_qat.files import write_json
from adalora_qat.model.sam import Segmenter
from adalora_qat.model.weights import build
from adalora_qat.recipe import load_config
from adalora_qat.samples.dataset import SegmentationDataset
from adalora_qat.train.losses import hard_dice

STAGES = ("stage1", "ptq", "stage2")


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("measure", help="a run on its own test split")
    one.add_argument("run", type=Path)
    one.add_argument("data", type=Path)
    one.add_argument("--out", type=Path, required=True)
    several = commands.add_parser("table", help="the spread over what was measured")
    several.add_argument("folder", type=Path)
    several.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "measure":
        cases = measure(RunFolder.open(arguments.run), arguments.data)
        write_json(arguments.out / f"test256_{arguments.run.name}.json", cases)
    else:
        write_json(arguments.out, spread(arguments.folder))


def measure(run: RunFolder, data: Path) -> dict[str, dict[str, float]]:
    """Return model → case → Dice on the test split."""
    records = records_of(read_manifest(data), "test", "lung")
    models = {"zero_shot": build(load_config("litemedsam").model)[0]} | {
        stage: load_model(run.stage(stage) / MODEL_FILE)[0]
        for stage in STAGES
        if run.finished(stage)
    }
    dataset = SegmentationDataset(
        records, run.config.data, models["zero_shot"].variant.frame, train=False
    )
    return {name: _dice(model, dataset) for name, model in models.items()}


@torch.no_grad()
def _dice(model: Segmenter, dataset: SegmentationDataset) -> dict[str, float]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    result = {}
    for index in range(len(dataset)):
        sample = dataset[index]
        logits, _ = model(sample.image[None].to(device), sample.boxes[None].to(device))
        masks = sample.masks[None].to(device, torch.float32)
        result[sample.id] = float(hard_dice(logits.float(), masks, torch.ones_like(masks[:, :1])))
    return result


def spread(folder: Path) -> dict[str, Any]:
    """Return each split's means, and their mean and standard deviation over the splits."""
    files = sorted(folder.glob("test256_*.json"))
    splits = {file.stem.removeprefix("test256_"): json.loads(file.read_text()) for file in files}
    rows = {name: _means(models) for name, models in splits.items()}
    shared = set.intersection(*(set(row) for row in rows.values()))
    over = {
        model: {
            "mean": float(np.mean([row[model]["all"] for row in rows.values()])),
            "sd": float(np.std([row[model]["all"] for row in rows.values()], ddof=1)),
        }
        for model in ("zero_shot", *STAGES)
        if model in shared
    }
    return {
        "what": "Dice at 256 px on the test split, oracle boxes, by split",
        "rows": rows,
        "over_splits": over,
        "tabulated_on": describe_machine(),
    }


def _means(models: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    result = {}
    for model, cases in models.items():
        sources: dict[str, list[float]] = {"all": list(cases.values())}
        for case, dice in cases.items():
            sources.setdefault(case.partition("/")[0], []).append(dice)
        result[model] = {name: float(np.mean(values)) for name, values in sources.items()}
        result[model]["n"] = len(cases)
    return result


if __name__ == "__main__":
    main()
