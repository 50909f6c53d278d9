"""SAM ViT-B's encoder at 1024² on a CPU: FP32 in PyTorch and ONNX Runtime against the policies.

    python benchmarks/vit_cpu_speed.py [--runs 2] [--rounds 2] [--threads 2] [--models ...]

writes ``vit_cpu.json`` into results/speed. FP32 stands there three times: PyTorch, eager; the
ONNX file that ``torch.onnx.export`` writes, with ONNX Runtime's own session options; and this
package's, which has every rearrangement that the INT8 files have, so that the last ratio is
what integers alone gain. Each model runs in a process of its own, in turn, on one phantom that
the calibration (on another) did not see. Weights are random: speed and memory are those of any
weights; the relative error of the embeddings is that of these.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _machine import describe_machine

if TYPE_CHECKING:
    from adalora_qat.model.sam import Segmenter

# Everything heavy is imported where it is used: each timed process imports this file, and what
# it imports would count as its memory.

VARIANT, SEED, SEEN_PHANTOM = "sam-vit-base", 0, 7
PYTORCH, BY_TORCH, OURS = "PyTorch eager FP32", "ONNX FP32 by torch.onnx", "ONNX none"
POLICIES = ("none", "full", "int8-all", "w4a8")
MODELS = (PYTORCH, BY_TORCH, *(f"ONNX {policy}" for policy in POLICIES))
# What is asked of the paper's policy: times faster, against whom.
BARS = {BY_TORCH: 1.9, PYTORCH: 4.0}


def write_image(path: Path) -> None:
    """Write a phantom in the model's frame, (1, 3, S, S); in a process of its own: torch."""
    import numpy as np

    from adalora_qat.imaging.geometry import image_to_model
    from adalora_qat.model.sam import variant
    from adalora_qat.phantom.phantom import phantom

    np.save(path, image_to_model(phantom(SEEN_PHANTOM).image, variant(VARIANT).frame)[0][None])


def random_model(attention: str = "sdpa") -> Segmenter:
    """Return the float model with random weights that keep signals' size; the same each time."""
    import torch

    from adalora_qat.model.sam import Segmenter, random_segmenter, variant

    made = random_segmenter(VARIANT, seed=SEED)
    generator = torch.Generator().manual_seed(SEED)
    # As first drawn, activations fade to nothing and errors say nothing of any trained model.
    for name, weight in made.image_encoder.named_parameters():
        if weight.ndim > 1:
            spread = 0.02 if "pos" in name else weight[0].numel() ** -0.5
            torch.nn.init.normal_(weight, std=spread, generator=generator)
    if attention == "sdpa":
        return made.eval()
    eager = Segmenter(variant(VARIANT), "eager")
    eager.load_state_dict(made.state_dict())
    return eager.eval()


def write(name: str, folder: Path) -> Path:
    """Write the encoder of one of MODELS; runs in a process of its own, for its memory."""
    import onnx
    import torch

    from adalora_qat.export.onnx import build_encoder, describe
    from adalora_qat.model.sam import variant
    from adalora_qat.quantize.policy import load_policy
    from adalora_qat.study.size import quantize_on_phantom

    path = folder / f"{name.replace(' ', '_')}.onnx"
    if name == BY_TORCH:
        encoder, side = random_model("eager").image_encoder, variant(VARIANT).frame.side
        torch.onnx.export(
            encoder, (torch.rand(1, 3, side, side),), path, dynamo=True, external_data=False,
            verbose=False, opset_version=18, input_names=["image"], output_names=["embeddings"],
        )  # fmt: skip
        return path
    policy = name.removeprefix("ONNX ")
    segmenter = quantize_on_phantom(random_model(), load_policy(policy))
    onnx.save(build_encoder(segmenter, describe(segmenter, policy, {})), path)
    return path


def turn(name: str, path: Path | None, picture: Path, runs: int, threads: int) -> dict[str, Any]:
    """Load a model, run it once to warm up and then ``runs`` times."""
    import numpy as np

    from adalora_qat.study.timing import peak_mb

    started = time.perf_counter()
    encode = _pytorch(threads) if path is None else _session(path, name == BY_TORCH, threads)
    load, pixels = time.perf_counter() - started, np.load(picture)
    found, seconds = encode(pixels), []
    for _ in range(runs):
        started = time.perf_counter()
        found = encode(pixels)
        seconds.append(time.perf_counter() - started)
    rows = np.asarray(found, dtype=np.float64)
    if rows.ndim == 4:  # planes (1, D, E, E), as PyTorch has them
        rows = rows[0].reshape(rows.shape[1], -1).T
    return {"load_s": load, "seconds": seconds, "peak_mb": peak_mb(), "embeddings": rows}


def _pytorch(threads: int) -> Any:
    import torch

    torch.set_num_threads(threads)
    encoder = random_model("eager").image_encoder

    def run(pixels: Any) -> Any:
        with torch.inference_mode():
            return encoder(torch.from_numpy(pixels)).numpy()

    return run


def _session(path: Path, defaults: bool, threads: int) -> Any:
    import onnxruntime as ort

    from adalora_qat.runtime.session import open_session

    if defaults:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    else:
        session = open_session(path, threads)
    return lambda pixels: session.run(None, {"image": pixels})[0]


def measure(given: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Write every model, then time them in turn."""
    import numpy as np

    context = multiprocessing.get_context("spawn")

    def apart(function: Any, *arguments: Any) -> Any:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(function, *arguments).result()

    picture = folder / "image.npy"
    apart(write_image, picture)
    files = {name: None if name == PYTORCH else apart(write, name, folder) for name in given.models}
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in files}
    for _ in range(given.rounds):
        for name, path in files.items():
            turns[name].append(apart(turn, name, path, picture, given.runs, given.threads))
            print(name, [round(s, 2) for s in turns[name][-1]["seconds"]], flush=True)
    reference = turns[given.models[0]][0]["embeddings"]
    rows = {}
    for name, seen in turns.items():
        times = sorted(second for one in seen for second in one["seconds"])
        error = np.linalg.norm(seen[0]["embeddings"] - reference) / np.linalg.norm(reference)
        path = files[name]
        rows[name] = {
            "size_bytes": None if path is None else path.stat().st_size,
            "median_s": statistics.median(times),
            "best_s": times[0],
            "worst_s": times[-1],
            "n": len(times),
            "load_s": statistics.median(one["load_s"] for one in seen),
            "peak_mb": max(one["peak_mb"] for one in seen),
            "embedding_error": float(error),
        }
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--out", type=Path, default=Path("results/speed"))
    given = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        rows = measure(given, Path(name))
    plain = [name for name in (PYTORCH, BY_TORCH, OURS) if name in rows]
    for row in rows.values():
        row["ratios"] = {
            other: {
                "faster": rows[other]["median_s"] / row["median_s"],
                "memory": row["peak_mb"] / rows[other]["peak_mb"],
            }
            for other in plain
        }
        ratios = "  ".join(f"{found['faster']:.2f}x" for found in row["ratios"].values())
        print(f"{row['median_s']:6.2f} s {row['peak_mb']:6.0f} MB  {ratios}")
    full = rows.get("ONNX full")
    result = {
        "command": " ".join(["python", "benchmarks/vit_cpu_speed.py", *sys.argv[1:]]),
        "model": f"{VARIANT} encoder, random weights, seed {SEED}",
        "embedding_error": f"of the embeddings, relative, against {given.models[0]}",
        "threads": given.threads,
        "load_average_before": round(before, 2),
        "load_average_after": round(os.getloadavg()[0], 2),
        **describe_machine(),
        "rows": rows,
        "bars": {
            f"full {factor}x {other}": full["ratios"][other]["faster"] >= factor
            for other, factor in BARS.items()
            if full is not None and other in plain
        },
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "vit_cpu.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
