import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from adalora_qat.export.parity import ParityCase
from adalora_qat.model.sam import Segmenter, random_segmenter
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.quantize.convert import convert
from adalora_qat.quantize.policy import load_policy, parse_policy
from adalora_qat.quantize.prepare import freeze, observe, prepare

# The hand-made model file that several tests of this room share.
sys.path.insert(0, str(Path(__file__).parent))

torch.set_num_threads(1)

SIDE = 64


def cases(count: int, boxes: int = 1) -> list[ParityCase]:
    """Random images and boxes in the frame of the test variants."""
    rng = np.random.default_rng(count)
    made = []
    for index in range(count):
        corners = rng.uniform(0, SIDE / 2, (boxes, 2))
        edges = np.concatenate([corners, corners + rng.uniform(8, SIDE / 2, (boxes, 2))], axis=1)
        image = rng.random((3, SIDE, SIDE), dtype=np.float32)
        made.append(ParityCase(f"case {index}", image, edges.astype(np.float32), (SIDE, SIDE)))
    return made


@cache
def _converted(variant: str, policy: str) -> Segmenter:
    segmenter = random_segmenter(variant, seed=3)
    # Batch norms that do something: fresh ones are the identity.
    generator = torch.Generator().manual_seed(0)
    for module in segmenter.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                tensor.data.add_(torch.rand(tensor.shape, generator=generator) * 0.2)
    fold_batch_norms(segmenter)
    if policy == "none":
        return segmenter
    table = parse_policy(policy, "test") if "\n" in policy else load_policy(policy)
    prepare(segmenter, table)
    observe(segmenter)
    with torch.inference_mode():
        for case in cases(3, boxes=2):
            segmenter(torch.from_numpy(case.image)[None], torch.from_numpy(case.boxes)[None])
    freeze(segmenter)
    return convert(segmenter).eval()  # type: ignore[return-value]


@pytest.fixture(scope="session")
def converted() -> Callable[[str, str], Segmenter]:
    """Give a small random model, calibrated and converted; shared, so not to be changed."""
    return _converted


@pytest.fixture(scope="session")
def some_cases() -> Callable[..., list[ParityCase]]:
    return cases
