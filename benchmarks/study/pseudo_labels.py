"""Masks of a structure for training images that have none, drawn by models that agree on them.

    python benchmarks/study/pseudo_labels.py DATA OUT MODEL MODEL [MODEL ...] --structure heart

DATA is a prepared folder, MODEL the ``model.safetensors`` of a stage trained with
``model.structures``. OUT is a prepared folder of the same records in which each *training* record
without a mask of the structure has the models' mean mask, if every model's own mask agrees with
it. Validation and test records are left as they are: a mask that a model drew is never a truth to
be measured against. (Xie et al., "Self-training with Noisy Student", 2020: teachers see the image
as it is, the student sees it augmented.)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from adalora_qat.checkpoint import load_model
from adalora_qat.corpus.records import Record
from adalora_qat.corpus.splits import MASK, read_manifest, records_of, write_manifest
from adalora_qat.imaging.components import largest_components
from adalora_qat.imaging.geometry import image_to_model, logits_to_original, whole_box
from adalora_qat.imaging.image_file import load_image
from adalora_qat.model.sam import Segmenter

# A mean mask is kept if the Dice of each model's mask with it is at least this.
AGREE = 0.93


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--structure", default="heart")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if len(args.models) < 2:
        parser.error("give at least two models: one cannot agree with itself")
    models = [load_model(path)[0].eval().to(args.device) for path in args.models]
    manifest, column = read_manifest(args.data), MASK + args.structure
    lacking = [r for r in records_of(manifest, "train") if args.structure not in r.masks]
    (args.out / "masks").mkdir(parents=True, exist_ok=True)
    drawn: dict[str, str] = {}
    for record in track(lacking, "pseudo-labels"):
        mask = agreed(models, record, args.structure)
        if mask is not None:
            path = args.out / "masks" / (record.id.replace("/", "_") + ".png")
            Image.fromarray(mask).save(path)
            drawn[record.id] = str(path.resolve())
    manifest[column] = [
        drawn.get(name, old) for name, old in zip(manifest["id"], manifest[column], strict=True)
    ]
    write_manifest(manifest, args.out)
    said = {"structure": args.structure, "agree": AGREE, "asked": len(lacking), "kept": len(drawn)}
    (args.out / "pseudo_labels.json").write_text(json.dumps(said) + "\n")
    print(json.dumps(said))


@torch.inference_mode()
def agreed(models: list[Segmenter], record: Record, structure: str) -> NDArray[np.bool_] | None:
    """Return the models' mean mask (H, W) of an image, None where they differ."""
    probabilities = []
    for model in models:
        pixels, frame_map = image_to_model(load_image(record.image), model.variant.frame)
        device = next(model.parameters()).device
        box = torch.from_numpy(whole_box(*frame_map.valid_hw).astype(np.float32))
        index = torch.tensor([[model.structures.index(structure)]])
        embeddings = model.encode(torch.from_numpy(pixels)[None].to(device))
        logits, _ = model.decode(embeddings, box[None, None].to(device), index.to(device))
        low_res = logits[0, 0].float().cpu().numpy()
        probabilities.append(1 / (1 + np.exp(-logits_to_original(low_res, frame_map))))
    mean = largest_components(np.mean(probabilities, axis=0) > 0.5, 1)
    each = [probability > 0.5 for probability in probabilities]
    return mean if mean.any() and all(_dice(mask, mean) >= AGREE for mask in each) else None


def _dice(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return float(2 * (first & second).sum() / max(1, first.sum() + second.sum()))


if __name__ == "__main__":
    main()
