"""Commands on models that ship: ``export``, ``segment``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adalora_qat.cli.app import (
    Json,
    Out,
    app,
    labelled_records,
    out_console,
    print_json,
)
from adalora_qat.cli.watch import watching
from adalora_qat.errors import DataError


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    out: Annotated[Path, typer.Option("--out", help="The ONNX file to write.")],
    data: Annotated[
        Path, typer.Option("--data", help="Manifest whose val split the parity gate uses.")
    ],
    stage: Annotated[str, typer.Option(help="stage1, ptq or stage2.")] = "stage2",
    as_json: Json = False,
) -> None:
    """Export to ONNX, refused unless the runtime agrees with the trained model."""
    from adalora_qat.checkpoint import RunFolder
    from adalora_qat.data.splits import read_manifest
    from adalora_qat.export.run import export_stage

    folder = RunFolder.open(run)
    records = labelled_records(read_manifest(data), "val", folder.config.data.prompt.targets[:1])
    with watching() as watch:
        exported = export_stage(folder, stage, out, records, watch.progress)
    parity = exported.parity.figures()
    if as_json:
        print_json({"size_bytes": exported.size_bytes, "kernels": exported.kernels, **parity})
        return
    out_console.print(
        f"{out}: {exported.size_bytes / 1e6:.1f} MB; Dice with the trained model at least "
        f"{parity['dice_min']:.4f}, {parity['pixel_agreement']:.4%} of pixels equal, over "
        f"{parity['cases']} masks"
    )


@app.command()
def segment(
    image: Annotated[Path, typer.Argument(help="An image, or a folder of images.")],
    model: Annotated[Path, typer.Option("--model", help="An exported ONNX file.")],
    out: Out,
    box: Annotated[str | None, typer.Option(help="x0,y0,x1,y1 in pixels of the original.")] = None,
    boxes: Annotated[
        Path | None, typer.Option(help="CSV with the columns file,x0,y0,x1,y1.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all by default.")] = None,
    as_json: Json = False,
) -> None:
    """Segment new images: <stem>_mask.png, <stem>_overlay.png and <stem>.json for each."""
    from adalora_qat.export.runtime import OnnxPredictor
    from adalora_qat.export.segment import segment_files

    predictor = OnnxPredictor(model, threads=threads)
    with watching() as watch:
        results = segment_files(
            image,
            predictor,
            out,
            box=_box(box),
            boxes_csv=boxes,
            progress=watch.progress,
        )
    if as_json:
        print_json(results)
        return
    out_console.print(f"{len(results)} image{'s' * (len(results) != 1)} segmented into {out}")


def _box(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        box = [float(part) for part in text.split(",")]
    except ValueError:
        box = []
    if len(box) != 4:
        raise DataError(f"--box {text!r} must be four numbers x0,y0,x1,y1 in original pixels")
    return box
