"""Commands that measure: ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adalora_qat.cli.app import (
    Cpu,
    Jobs,
    Json,
    Out,
    app,
    out_console,
    predictor_of,
    print_json,
    print_rows,
)
from adalora_qat.cli.watch import watching


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A run folder, a stage's model, or an ONNX file.")],
    data: Annotated[Path, typer.Option("--data", help="A manifest or a prepare folder.")],
    out: Out,
    split: Annotated[str, typer.Option(help="Which split of the manifest.")] = "test",
    target: Annotated[
        list[str] | None, typer.Option(help="Mask to segment; repeat for several.")
    ] = None,
    box: Annotated[
        str, typer.Option(help="oracle, oracle+jitterN (N px), or whole-image.")
    ] = "oracle",
    cpu: Cpu = False,
    jobs: Jobs = 2,
    as_json: Json = False,
) -> None:
    """Measure a model on a split: one row a case, at the original size."""
    from adalora_qat.data.splits import read_manifest, records_of
    from adalora_qat.demo import summarise
    from adalora_qat.evaluate.cases import evaluate_cases

    targets = target or ["lung"]
    records = records_of(read_manifest(data), split)
    predictor = predictor_of(model, cpu=cpu)
    with watching() as watch:
        cases = evaluate_cases(
            predictor, records, targets, box, out, jobs=jobs, progress=watch.progress
        )
    row = summarise(predictor.name, cases)
    if as_json:
        print_json(row)
        return
    print_rows({"rows": [row]})
    out_console.print(f"per-case table: {out / 'cases.csv'}")
