"""Images made worse, one kind at a time: how far a model of the study holds.

    python benchmarks/study/robustness.py MODEL DATA OUT.csv [--cases 24] [--box oracle]

MODEL is a run folder, a stage's model or an ONNX file. Writes one row a case and alteration:
noise, blur, contrast, rotation, JPEG, resolution, each at several strengths, and the image as read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.progress import Progress

from adalora_qat.corpus.splits import read_manifest, records_of
from adalora_qat.evaluate.robustness import alterations, evaluate_degradations
from adalora_qat.files import write_text
from adalora_qat.study.measure import some
from adalora_qat.study.models import model_at

CASES = 24
KEPT = ["id", "source", "box", "altered", "dsc"]


def sweep(model: Path, data: Path, out: Path, count: int = CASES, box: str = "oracle") -> None:
    """Write the table of a model on ``count`` test images, spread over sources and labels.

    Raises
    ------
    DataError, CheckpointError
        If the manifest or the model cannot be read.
    """
    records = some(records_of(read_manifest(data), "test"), count)
    predictor, _ = model_at(model).open(cpu=False)
    settings = len(alterations()) + 1
    with Progress() as bars:
        task = bars.add_task(f"{settings} alterations", total=settings * len(records))
        cases = evaluate_degradations(
            predictor, records, ["lung"], box_mode=box, progress=lambda *_: bars.advance(task)
        )
    text = cases[KEPT].to_csv(index=False, float_format="%.5g", lineterminator="\n")
    write_text(out, text)


def main() -> None:
    """Sweep one model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--box", default="oracle")
    given = parser.parse_args()
    sweep(given.model, given.data, given.out, given.cases, given.box)


if __name__ == "__main__":
    main()
