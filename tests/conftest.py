"""What tests of several rooms share: the real samples, models ready for export."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from adalora_qat.export.parity import ParityCase
    from adalora_qat.model.sam import Segmenter

REPOSITORY = Path(__file__).parents[1]
SIDE = 64


def cases(count: int, boxes: int = 1) -> list["ParityCase"]:
    """Random images and boxes in the frame of the test variants."""
    from adalora_qat.export.parity import ParityCase

    rng = np.random.default_rng(count)
    made = []
    for index in range(count):
        corners = rng.uniform(0, SIDE / 2, (boxes, 2))
        edges = np.concatenate([corners, corners + rng.uniform(8, SIDE / 2, (boxes, 2))], axis=1)
        image = rng.random((3, SIDE, SIDE), dtype=np.float32)
        made.append(ParityCase(f"case {index}", image, edges.astype(np.float32), (SIDE, SIDE)))
    return made


@cache
def _converted(variant: str, policy: str) -> "Segmenter":
    # torch is imported here and not above: the base install runs tests without it.
    import torch

    from adalora_qat.model.sam import random_segmenter
    from adalora_qat.quantize.batch_norm import fold_batch_norms
    from adalora_qat.quantize.convert import convert
    from adalora_qat.quantize.policy import load_policy, parse_policy
    from adalora_qat.quantize.prepare import freeze, observe, prepare

    torch.set_num_threads(1)
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


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what engines arrange out of the user's cache."""
    from adalora_qat.runtime import model

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("engines")
        patch.setattr(model, "default_cache", lambda: folder)
        yield


@pytest.fixture(scope="session")
def converted() -> Callable[[str, str], "Segmenter"]:
    """Give a small random model, calibrated and converted; shared, so not to be changed."""
    return _converted


@pytest.fixture(scope="session")
def some_cases() -> Callable[..., list["ParityCase"]]:
    return cases


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real samples."""
    folder = Path(os.environ.get("ADALORA_QAT_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real samples are not at {folder}; set ADALORA_QAT_DATA")
    return folder


@pytest.fixture(scope="session")
def fuzz_inputs() -> ModuleType:
    """Return the fuzzing benchmark, which also writes DICOM files in every encoding."""
    path = REPOSITORY / "benchmarks" / "fuzz_inputs.py"
    spec = importlib.util.spec_from_file_location("fuzz_inputs", path)
    if spec is None or spec.loader is None:
        pytest.skip(f"{path} is not there")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
