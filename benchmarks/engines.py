"""LiteMedSAM in every engine that a user could take on a CPU, in turn: speed and accuracy.

    python benchmarks/engines.py prepare FOLDER   # exports and quantizes; minutes
    python benchmarks/engines.py score FOLDER     # Dice of each row, into FOLDER
    python benchmarks/engines.py time FOLDER --threads 2 [--rounds 8] [--out results/speed]

``time`` writes ``engines.json``, and adds to one of the same commit what another count of threads
needs. Rows: what ``torch.onnx.export`` writes, in ONNX Runtime and in
OpenVINO; that file quantized by ``onnxruntime.quantization`` (Q/DQ) and by NNCF; this package's
FP32 and INT8 files in both. One image, one box, from pixels in the model frame to logits. All
sessions are open at once and take turns, a pause before each. Published weights, not fine-tuned,
calibrated on phantoms: the speeds are those of any trained model of this shape; Dice is with the
true masks of other phantoms, agreement that of the masks with those of the first row.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from _machine import describe_machine
from litemedsam_speed import CALIBRATION, by_torch, exported, seen

SHOWN = range(300, 308)
Run = Callable[[Any], Any]
PLAIN, STATIC, NNCF = "torch.onnx", "qdq.onnx", "nncf.xml"
OURS = {"none": "FP32", "int8-all": "INT8"}


def prepare(folder: Path) -> None:
    """Write every file that is timed."""
    import nncf
    import openvino as ov
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folder.mkdir(parents=True, exist_ok=True)
    by_torch(folder)
    for policy in OURS:
        exported(policy, folder)
    cases = [seen(seed, _frame()) for seed in CALIBRATION]
    feeds = [{"image": case.image[None], "boxes": case.boxes[None]} for case in cases]

    class Reader:
        """Gives the calibration images one by one, as ONNX Runtime asks for them."""

        def __init__(self) -> None:
            self._left = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._left, None)

    whole = folder / "shaped.onnx"
    quant_pre_process(folder / PLAIN, whole, skip_symbolic_shape=True)
    quantize_static(
        whole, folder / STATIC, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
    )  # fmt: skip
    model = ov.Core().read_model(folder / PLAIN)
    quantized = nncf.quantize(
        model, nncf.Dataset(feeds), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(feeds)
    )
    ov.save_model(quantized, folder / NNCF, compress_to_fp16=False)


def _frame() -> Any:
    from adalora_qat.imaging.geometry import Frame

    return Frame(256, "minmax")


def opened(folder: Path, threads: int) -> dict[str, Run]:
    """Open every file in every engine that runs it: name → case to logits (N, L, L)."""
    import openvino as ov

    from adalora_qat.runtime.engines import processor_features
    from adalora_qat.runtime.networks import OnnxNetwork, box_feeds
    from adalora_qat.runtime.openvino_network import OpenVinoNetwork
    from adalora_qat.runtime.session import inference_session, session_options

    def by_runtime(name: str) -> Run:
        session = inference_session(folder / name, session_options(threads))
        return lambda case: session.run(
            ["logits"], {"image": case.image[None], "boxes": case.boxes[None]}
        )[0][0]

    def by_openvino(name: str, precision: str) -> Run:
        settings = {
            "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
        }  # fmt: skip
        settings["CACHE_DIR"] = str(folder / "cache")
        compiled = ov.Core().compile_model(folder / name, "CPU", settings)
        request = compiled.create_infer_request()

        def run(case: Any) -> Any:
            request.infer({"image": case.image[None], "boxes": case.boxes[None]})
            return request.get_tensor("logits").data[0].copy()

        return run

    def ours(policy: str, precision: str | None) -> Run:
        path = folder / f"{policy}.onnx"
        data = path.read_bytes()
        network: Any = (
            OnnxNetwork(path, data, threads, cache=folder / "cache")
            if precision is None
            else OpenVinoNetwork(path, data, threads, precision, cache=folder / "cache")
        )
        return lambda case: network.decode(network.encode(case.image[None]), box_feeds(case.boxes))[
            0
        ][0]

    precisions = ["f32"] + ["bf16"] * ("amx_bf16" in processor_features())
    runs = {"torch.onnx FP32, ONNX Runtime": by_runtime(PLAIN)}
    runs["torch.onnx Q/DQ by onnxruntime.quantization, ONNX Runtime"] = by_runtime(STATIC)
    for precision in precisions:
        runs[f"torch.onnx FP32, OpenVINO {precision}"] = by_openvino(PLAIN, precision)
        runs[f"the same Q/DQ, OpenVINO {precision}"] = by_openvino(STATIC, precision)
        runs[f"torch.onnx INT8 by NNCF, OpenVINO {precision}"] = by_openvino(NNCF, precision)
    for policy, words in OURS.items():
        runs[f"ours {words}, ONNX Runtime"] = ours(policy, None)
        for precision in precisions:
            runs[f"ours {words}, OpenVINO {precision}"] = ours(policy, precision)
    return runs


def dice(a: Any, b: Any) -> float:
    """Return the Dice of two masks."""
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))


def accuracy(runs: dict[str, Run]) -> dict[str, dict[str, float]]:
    """Return each row's Dice with the true masks, and with the masks of the first row."""
    from adalora_qat.imaging.geometry import image_to_model
    from adalora_qat.phantom.phantom import phantom

    found: dict[str, dict[str, float]] = {}
    first: list[Any] = []
    cases = [seen(seed, _frame()) for seed in SHOWN]
    truths = []
    for seed in SHOWN:
        made = phantom(seed)
        lungs = (made.masks["left_lung"] | made.masks["right_lung"]).astype(np.float32)
        framed, _ = image_to_model(lungs, _frame())
        truths.append(framed[0] > framed[0].mean())
    for name, run in runs.items():
        masks = [run(case)[0] > 0 for case in cases]
        first = first or masks
        found[name] = {
            "dice": float(np.mean([dice(m, t) for m, t in zip(masks, truths, strict=True)])),
            "agreement": float(np.mean([dice(m, t) for m, t in zip(masks, first, strict=True)])),
        }
    return found


def timed(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Let the rows take turns; seconds of each."""
    case = seen(SHOWN[0], _frame())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for name in [*runs] * (rounds + 1):
        time.sleep(0.02)  # the threads of the row before stop spinning
        started = time.perf_counter()
        runs[name](case)
        seconds[name].append(time.perf_counter() - started)
    return {name: times[1:] for name, times in seconds.items()}


def main() -> None:
    """Prepare the files, score them or time them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["prepare", "score", "time"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/speed"))
    given = parser.parse_args()
    scores = given.folder / "scores.json"
    if given.what == "prepare":
        prepare(given.folder)
    elif given.what == "score":
        scores.write_text(json.dumps(accuracy(opened(given.folder, given.threads))))
    else:
        measure(given, json.loads(scores.read_text()))


def measure(given: argparse.Namespace, scores: dict[str, Any]) -> None:
    """Time the rows with one count of threads, print and write them."""
    machine, file = describe_machine(), given.out / "engines.json"
    report: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if report.get("commit") != machine["commit"]:
        report = {"weights": "published, not fine-tuned", **machine, "threads": {}, "rows": scores}
    key = str(given.threads)
    report["threads"][key] = {
        "command": f"python benchmarks/engines.py time FOLDER --threads {key} "
        f"--rounds {given.rounds}",
        "rounds": given.rounds,
        "load_average_before": round(os.getloadavg()[0], 2),
    }
    for name, seconds in timed(opened(given.folder, given.threads), given.rounds).items():
        row = report["rows"][name]
        row |= {f"least_s_{key}": min(seconds), f"median_s_{key}": float(np.median(seconds))}
        print(
            f"{name:58} {min(seconds) * 1e3:6.0f} ms, median {np.median(seconds) * 1e3:6.0f}; "
            f"Dice {row['dice']:.4f} agreement {row['agreement']:.4f}"
        )
    given.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
