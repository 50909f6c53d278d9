"""A trained stage as the small file of integers that it is, and back into an ONNX file.

    python benchmarks/study/pack.py export PACKED RUN DATA OUT.onnx

holds the exported graph against the packed model on the validation split, as ``export`` does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.progress import Progress

from adalora_qat.checkpoint import MODEL_FILE, RunFolder, load_model
from adalora_qat.config import ExportConfig
from adalora_qat.corpus.splits import read_manifest, records_of
from adalora_qat.export.onnx import export_onnx
from adalora_qat.export.run import deployable, parity_cases
from adalora_qat.files import sha256_file
from adalora_qat.model.sam import random_segmenter
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.quantize.pack import load_packed, save_packed

PACKED = "packed.safetensors"


def pack_stage(run: Path, stage: str) -> Path:
    """Write ``RUN/STAGE/packed.safetensors`` from the stage's model."""
    source = run / stage / MODEL_FILE
    segmenter, _ = load_model(source)
    path = run / stage / PACKED
    save_packed(deployable(segmenter), path, source={f"{stage}/{MODEL_FILE}": sha256_file(source)})
    return path


def export(
    packed: Path,
    run: RunFolder,
    data: Path,
    out: Path,
    every: int = 1,
    gate: ExportConfig | None = None,
) -> None:
    """Export a packed model; every ``every``-th validation image passes the parity gate."""
    config = run.config
    skeleton = random_segmenter(config.model.variant, 0, side=config.model.side)
    fold_batch_norms(skeleton)
    segmenter = load_packed(packed, skeleton).eval()
    records = records_of(read_manifest(data), "val", config.data.prompt.targets[0])[::every]
    with Progress() as bars:
        task = bars.add_task("parity", total=len(records))
        export_onnx(
            segmenter,  # type: ignore[arg-type]
            out,
            parity_cases(records, config.data, skeleton.variant.frame),
            policy=config.quantize.policy,
            sources={packed.name: sha256_file(packed)},
            gate=gate or config.export,
            progress=lambda done, _, what: bars.update(task, completed=done, description=what),
        )


def main() -> None:
    """Export a packed file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=["export"])
    parser.add_argument("packed", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take every n-th validation image")
    given = parser.parse_args()
    export(given.packed, RunFolder.open(given.run), given.data, given.out, given.every)


if __name__ == "__main__":
    main()
