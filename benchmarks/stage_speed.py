"""Stage 2 beside stage 1: SAM ViT-B at 1024², one GPU, built by the package's own parts.

    PYTHONPATH=src python benchmarks/stage_speed.py [--deadline 200] [--only "stage 1"]

writes stage_speed.json into $OUT (or ./out). Model, adapters, choice of what trains, observers,
frozen scales, attention, loss and optimizer are those of ``Training``; the tensors of a batch lie
on the GPU (``two_gpus.py`` times whole runs, feed included). bf16, torch.compile, batch 16,
r = 48, weights random. Stage 2 is the policy "full"; by default only Λ trains.

Errors are those of the loss and of ∂Λ against the same step in FP32, eager, with transformers'
attention; in stage 2 both are fake-quantized with the same scales.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _gpu_rows import Results, drive, peak_gb, relative_error, reset, table, timed, work
from adalora_qat.adapt.inject import inject
from adalora_qat.config import RunConfig
from adalora_qat.model.fast_attention import install_best
from adalora_qat.model.sam import Segmenter, random_segmenter
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.quantize.policy import load_policy
from adalora_qat.quantize.prepare import freeze, observe, prepare
from adalora_qat.train.objective import LossWeights, Objective
from adalora_qat.train.selection import (
    choose_trainable_stage1,
    choose_trainable_stage2,
    parameter_groups,
    parameter_groups_stage2,
    trainable,
)

BATCH, CHECKED = 16, 4
CONFIG = {"model": "SAM ViT-B, random weights", "side": 1024, "rank": 48, "batch": BATCH,
          "policy": "full", "precision": "bf16", "compile": True,
          "images of the check in FP32": CHECKED}  # fmt: skip
ROWS: Mapping[str, Mapping[str, Any]] = {
    "stage 1": {"stage": 1},
    "stage 2, Λ trains": {"stage": 2},
    "stage 2, Λ and decoder train": {"stage": 2, "train": ("lambda", "decoder")},
}


def batch(count: int) -> dict[str, Tensor]:
    """Return what the objective takes: images, a box each, blobs as masks."""
    generator = torch.Generator("cuda").manual_seed(3)
    # One plane, as the feed sends greyscale: the compiler then sees what it sees in training.
    plane = torch.randn(BATCH, 1, 1024, 1024, device="cuda", generator=generator)
    images = plane.expand(-1, 3, -1, -1)
    coarse = torch.rand(BATCH, 1, 16, 16, device="cuda", generator=generator)
    masks = (torch.nn.functional.interpolate(coarse, size=1024, mode="bilinear") > 0.5).float()
    box = torch.tensor([[100.0, 120.0, 900.0, 800.0]], device="cuda")
    return {
        "inputs": images[:count],
        "boxes": box.repeat(count, 1, 1),
        "masks": masks[:count],
        "valid": torch.ones((), device="cuda").expand(count, 1, 1024, 1024),
        "weights": torch.full((count,), 1 / count, device="cuda"),
    }


def build(options: Mapping[str, Any]) -> tuple[Segmenter, list[dict[str, Any]], LossWeights]:
    """Return the model ready for its stage, the optimizer's groups and the loss's weights."""
    values = {"stage2": {"train": options.get("train", ("lambda",))}}
    config = RunConfig.model_validate(values)
    model = random_segmenter("sam-vit-base", 0)
    generator = torch.Generator().manual_seed(1)
    for adapter in inject(model.image_encoder, config.adapt, 0).values():
        adapter.lam.data.normal_(std=0.3, generator=generator)
    model.cuda()
    if options["stage"] == 1:
        choose_trainable_stage1(model, config)
        return model, parameter_groups(model, config), LossWeights(config.stage1.lambda_ortho)
    fold_batch_norms(model)
    prepare(model, load_policy("full"), config.quantize)
    observe(model)
    given = batch(CHECKED)
    with torch.no_grad():
        model(given["inputs"], given["boxes"])
    freeze(model)
    choose_trainable_stage2(model, config)
    return model, parameter_groups_stage2(model, config), LossWeights()


def outcome(
    run: Callable[..., Any], model: Segmenter, given: dict[str, Tensor], *, half: bool
) -> tuple[Tensor, Tensor]:
    """Return the loss and the gradients of all Λ."""
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        losses = run(given)
    losses.total.backward()
    named = trainable(model)
    gradient = torch.cat([p.grad for n, p in named.items() if n.endswith(".lam")]).clone()
    for parameter in named.values():
        parameter.grad = None
    return losses.total.detach(), gradient


def run(row: str, _: Results) -> Results:
    """Measure one row."""
    options = ROWS[row]
    reset()
    model, groups, weights = build(options)
    objective = Objective(model, weights, "image")
    wanted = outcome(objective, model, batch(CHECKED), half=False)
    model.to(memory_format=torch.channels_last)
    install_best(model, torch.device("cuda"), torch.bfloat16)
    found = outcome(objective, model, batch(CHECKED), half=True)
    errors = {
        "relative_error": relative_error(found[0], wanted[0]),
        "gradient_error": relative_error(found[1], wanted[1]),
    }
    del found, wanted
    objective.compile()
    optimizer, given = torch.optim.AdamW(groups, fused=True), batch(BATCH)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            losses = objective(given)
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    started = time.perf_counter()
    step()
    torch.cuda.synchronize()
    first_s = time.perf_counter() - started
    torch.cuda.reset_peak_memory_stats()
    median, worst = timed(step, 15, 4)
    return {
        "images_per_s": BATCH / median,
        "median_ms": median * 1e3,
        "worst_ms": worst * 1e3,
        "peak_gb": peak_gb(),
        **errors,
        "first_s": first_s,
        "trainable": sum(p.numel() for p in trainable(model).values()),
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deadline", type=float, default=200, help="seconds for everything")
    parser.add_argument("--only", nargs="+", help="only rows whose name holds one of these")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    rows = [r for r in ROWS if not given.only or any(part in r for part in given.only)]
    if given.worker:
        work(rows, Path(given.worker[0]), float(given.worker[1]), run)
    else:
        print("\n".join(table(drive(rows, "stage_speed", given.deadline, CONFIG))))


if __name__ == "__main__":
    main()
