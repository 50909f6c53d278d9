"""How nearly can two runtimes of one quantized model agree? As nearly as it agrees with itself.

    python benchmarks/parity_floor.py RUN DATA MODEL.onnx --cases 24 --out results/parity/floor.json

A rounding that falls the other way moves what follows, and other roundings with it. The
quantized PyTorch model is compared with ONNX Runtime, and with itself after Gaussian noise of
1e-6 was added to the image (0–1), which no observer could see: where the two figures are equal,
the runtime adds nothing of its own.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from _machine import describe_machine
from adalora_qat.checkpoint import MODEL_FILE, RunFolder, load_model
from adalora_qat.corpus.splits import read_manifest, records_of
from adalora_qat.export.onnx import onnx_model, torch_model
from adalora_qat.export.parity import Model, measure_parity
from adalora_qat.export.run import deployable, parity_cases
from adalora_qat.files import write_json
from adalora_qat.runtime.session import open_session

NOISE = 1e-6


def main() -> None:
    """Measure both and write them side by side."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--stage", default="stage2")
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    run = RunFolder.open(given.run)
    segmenter, _ = load_model(run.stage(given.stage) / MODEL_FILE)
    records = records_of(read_manifest(given.data), "val", "lung")
    spread = np.linspace(0, len(records) - 1, min(given.cases, len(records))).astype(int)
    cases = parity_cases(
        [records[index] for index in spread], run.config.data, segmenter.variant.frame
    )
    reference = torch_model(deployable(segmenter))
    others = {"itself": disturbed(reference), "onnx_runtime": onnx_model(open_session(given.model))}
    write_json(
        given.out,
        {
            "what": "agreement of the quantized PyTorch model with itself after noise on the "
            "image, and with ONNX Runtime",
            "noise": NOISE,
            "agreement": {
                name: asdict(measure_parity(reference, other, cases))
                for name, other in others.items()
            },
            "machine": describe_machine(),
        },
    )


def disturbed(model: Model) -> Model:
    """Return the model as it sees images with noise on them."""
    rng = np.random.default_rng(0)

    def run(image: NDArray[np.float32], boxes: NDArray[np.float32]) -> Any:
        noise = NOISE * rng.standard_normal(image.shape, dtype=np.float32)
        return model(image + noise, boxes)

    return run


if __name__ == "__main__":
    main()
