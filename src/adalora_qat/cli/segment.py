"""The command that segments new radiographs; it runs on the base install."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adalora_qat.cli.app import Json, Out, app, err_console, out_console, print_json
from adalora_qat.cli.watch import watching
from adalora_qat.errors import DataError


@app.command()
def segment(
    image: Annotated[Path, typer.Argument(help="An image, or a folder of images.")],
    out: Out,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="An exported ONNX file; both lungs, as packaged, if left."),
    ] = None,
    box: Annotated[str | None, typer.Option(help="x0,y0,x1,y1 in pixels of the original.")] = None,
    boxes: Annotated[
        Path | None, typer.Option(help="CSV with the columns file,x0,y0,x1,y1.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all by default.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="End with exit code 3 if there are warnings.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Segment new images: <stem>_mask.png, <stem>_overlay.png and <stem>.json for each.

    Without a box the model finds one itself. A line warns of images that are rotated, inverted or
    unlike the training data, and of odd masks.
    """
    from adalora_qat.runtime.model import load
    from adalora_qat.runtime.segment import segment_files

    loaded = load(model, threads=threads)
    with watching() as watch:
        results = segment_files(
            image,
            loaded,
            out,
            box=_box(box),
            boxes_csv=boxes,
            progress=watch.progress,
        )
    odd = [result for result in results if result["warnings"]]
    for result in odd:
        words = "; ".join(warning["message"] for warning in result["warnings"])
        err_console.print(
            f"{result['image']}: {words}", style="yellow", markup=False, soft_wrap=True
        )
    if as_json:
        print_json(results)
    else:
        out_console.print(f"{len(results)} image{'s' * (len(results) != 1)} segmented into {out}")
    if strict and odd:
        raise typer.Exit(3)


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
