"""Time the shipped model end to end against LiteMedSAM in PyTorch FP32, in one run, in turns.

    python benchmarks/shipped_speed.py MODEL IMAGE... --out results/shipped/speed.json

An image is read from its file, resized, encoded once, decoded twice (the automatic prompt) and its
mask brought to the size of the image, by both. Each turn is a process of its own. The first mask is
timed from the start of the command `adalora-qat segment` to its end.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from _machine import describe_machine
from adalora_qat.files import sha256_file, write_json


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {"int8": [], "pytorch_fp32": []}
    context = multiprocessing.get_context("spawn")
    for _ in range(arguments.rounds):
        for name, spent in seconds.items():
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                spent += pool.submit(turn, name, arguments.model, arguments.images).result()
    medians = {name: statistics.median(spent) for name, spent in seconds.items()}
    found: dict[str, Any] = {
        "median_s": medians,
        "ratio": medians["pytorch_fp32"] / medians["int8"],
        "all_s": {name: [round(s, 4) for s in spent] for name, spent in seconds.items()},
        "first_mask_s": first_mask(arguments.model, arguments.images[0], arguments.rounds),
        "images": len(arguments.images),
        "rounds": arguments.rounds,
        "model_sha256": sha256_file(arguments.model),
        "measured_on": describe_machine(),
    }
    write_json(arguments.out, found)
    print(medians, f"ratio {found['ratio']:.2f}", f"first mask {found['first_mask_s']} s")


def turn(name: str, model: Path, images: Sequence[Path]) -> list[float]:
    """Segment the images with one model; the first one twice, to warm up."""
    from adalora_qat.imaging.automatic_prompt import predict_automatically
    from adalora_qat.imaging.radiograph import read_radiograph

    predictor = _open(name, model)
    spent = []
    for image in [images[0], *images]:
        started = time.perf_counter()
        predict_automatically(predictor, read_radiograph(image).pixels)
        spent.append(time.perf_counter() - started)
    return spent[1:]


def first_mask(model: Path, image: Path, rounds: int) -> list[float]:
    """Time the whole command."""
    spent = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-m", "adalora_qat.cli", "segment", str(image)]
            started = time.perf_counter()
            subprocess.run(
                [*command, "--model", str(model), "--out", out], check=True, capture_output=True
            )
            spent.append(round(time.perf_counter() - started, 3))
    return spent


def _open(name: str, model: Path) -> Any:
    if name == "int8":
        from adalora_qat.runtime.onnx_predictor import OnnxPredictor

        return OnnxPredictor(model)
    from adalora_qat.config import ModelConfig
    from adalora_qat.export.run import deployable
    from adalora_qat.model.predict import TorchPredictor
    from adalora_qat.model.weights import build

    return TorchPredictor(deployable(build(ModelConfig())[0]), name)


if __name__ == "__main__":
    main()
