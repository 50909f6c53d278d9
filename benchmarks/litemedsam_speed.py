"""LiteMedSAM on a CPU: FP32 in PyTorch and in ONNX Runtime against the policies, in turn.

    python benchmarks/litemedsam_speed.py [--images 6] [--rounds 4] [--threads 2]

writes ``litemedsam.json`` into results/speed. FP32 stands there three times: PyTorch, eager; the
ONNX file that ``torch.onnx.export`` writes; and this package's, which has every rearrangement
that the INT8 files have, so that the last ratio is what integers alone gain. All ONNX files run
with the same session options. Published weights, not fine-tuned, quantized after
a calibration on phantoms: the speeds are those of any trained model of this shape, the Dice is
that of these weights on phantoms. The load of the machine is in the file: ratios of a machine
that does other work are rough.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _machine import describe_machine

if TYPE_CHECKING:
    from adalora_qat.export.parity import ParityCase
    from adalora_qat.study.bench import BenchModel

# Everything heavy is imported where it is used: each timed process imports this file, and what
# it imports would count as its memory.

POLICIES = ("none", "full", "int8-all")
CALIBRATION, CHECKED = range(100, 108), range(2)


def seen(seed: int, frame: Any) -> ParityCase:
    """Return a phantom and the box of its lungs as the model sees them."""
    import numpy as np

    from adalora_qat.export.parity import ParityCase
    from adalora_qat.imaging.geometry import boxes_to_model, image_to_model, mask_box_inclusive
    from adalora_qat.phantom.phantom import phantom

    made = phantom(seed)
    image, frame_map = image_to_model(made.image, frame)
    box = mask_box_inclusive(made.masks["left_lung"] | made.masks["right_lung"])
    boxes = boxes_to_model(box[None], frame_map).astype(np.float32)
    return ParityCase(f"phantom {seed}", image, boxes, (frame.side, frame.side))


def exported(policy: str, folder: Path) -> BenchModel:
    """Quantize and export the published weights."""
    import torch

    from adalora_qat.config import ExportConfig, ModelConfig
    from adalora_qat.export.onnx import export_onnx
    from adalora_qat.model.weights import build
    from adalora_qat.quantize.batch_norm import fold_batch_norms
    from adalora_qat.quantize.convert import convert
    from adalora_qat.quantize.policy import load_policy
    from adalora_qat.quantize.prepare import freeze, observe, prepare
    from adalora_qat.study.bench import BenchModel

    segmenter, _ = build(ModelConfig())
    frame = segmenter.variant.frame
    fold_batch_norms(segmenter)
    if policy != "none":
        prepare(segmenter, load_policy(policy))
        observe(segmenter)
        with torch.inference_mode():
            for case in (seen(seed, frame) for seed in CALIBRATION):
                segmenter(torch.from_numpy(case.image)[None], torch.from_numpy(case.boxes)[None])
        freeze(segmenter)
        convert(segmenter)
    path, cases = folder / f"{policy}.onnx", [seen(seed, frame) for seed in CHECKED]
    # Weights that were not trained are not held to the gate of a model that ships.
    gate = ExportConfig(min_dice=0, min_pixel_agreement=0)
    made = export_onnx(segmenter, path, cases, policy=policy, sources={}, gate=gate)
    return BenchModel(f"ONNX {policy}", path, policy, made.size_bytes)


def in_pytorch(folder: Path) -> BenchModel:
    """Write the published weights as a stage's file, which PyTorch runs."""
    from adalora_qat.checkpoint import MODEL_FILE, save_model
    from adalora_qat.config import ModelConfig, RunConfig
    from adalora_qat.model.weights import build
    from adalora_qat.study.bench import PYTORCH, BenchModel

    path = folder / "published" / MODEL_FILE
    path.parent.mkdir()
    save_model(build(ModelConfig())[0], path, RunConfig(), "stage1")
    return BenchModel(PYTORCH, path, "none", path.stat().st_size)


def by_torch(folder: Path) -> BenchModel:
    """Export as PyTorch itself does, and give the file the metadata that the runtime reads."""
    import onnx
    import torch

    from adalora_qat.config import ModelConfig
    from adalora_qat.export.onnx import describe, write_model
    from adalora_qat.model.sam import Segmenter
    from adalora_qat.model.weights import build
    from adalora_qat.study.bench import BenchModel

    published, _ = build(ModelConfig())
    segmenter = Segmenter(published.variant, "eager")  # SDPA of transformers does not export
    segmenter.load_state_dict(published.state_dict())
    side, path = published.variant.frame.side, folder / "torch.onnx"
    given = (torch.rand(1, 3, side, side), torch.tensor([[[0.0, 0.0, side, side]]]))
    torch.onnx.export(
        segmenter.eval(), given, path, dynamo=True, external_data=False, verbose=False,
        opset_version=18, input_names=["image", "boxes"], output_names=["logits", "iou"],
    )  # fmt: skip
    write_model(onnx.load(path), path, describe(segmenter, "none", {}))
    return BenchModel("ONNX FP32 by torch.onnx", path, "none", path.stat().st_size)


def main() -> None:
    """Export, measure, print, write."""
    from adalora_qat.study.bench import bench, cases_of, phantom_records

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/speed"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = [in_pytorch(folder), by_torch(folder)]
        models += [exported(policy, folder) for policy in POLICIES]
        cases = cases_of(phantom_records(folder / "phantoms", given.images))
        before = os.getloadavg()[0]
        found = bench(models, cases, given.rounds, given.threads)
    for row in found["rows"]:
        print(
            f"{row['name']:24} {row['size_bytes'] / 1e6:6.2f} MB {row['median_s'] * 1e3:6.0f} ms "
            f"({row['p10_s'] * 1e3:.0f}-{row['p90_s'] * 1e3:.0f}) {row['peak_mb']:5.0f} MB peak "
            f"Dice {row['dice_mean']:.4f} agreement {row['agreement']['dice_mean']:.4f}"
        )
    print("\n".join(found["words"]))
    result = {
        "command": " ".join(["python", "benchmarks/litemedsam_speed.py", *sys.argv[1:]]),
        "weights": "published, not fine-tuned",
        "data": f"{given.images} phantoms, exact boxes",
        "rounds": given.rounds,
        "threads": given.threads,
        "load_average_before": round(before, 2),
        "load_average_after": round(os.getloadavg()[0], 2),
        **describe_machine(),
        **found,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "litemedsam.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
