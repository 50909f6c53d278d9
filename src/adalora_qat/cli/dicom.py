"""Commands that take and give DICOM: a folder, a node, an archive's web interface."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adalora_qat.cli.app import Json, app, err_console, out_console, print_json
from adalora_qat.cli.log_lines import watching_or_logging
from adalora_qat.cli.segment import stopping
from adalora_qat.errors import ConfigError

if TYPE_CHECKING:
    from adalora_qat.dicom.folder import Outcome

Objects = Annotated[str, typer.Option("--objects", help="Of SEG, SR, SC and GSPS.")]
ModelFile = Annotated[
    Path | None, typer.Option("--model", help="An exported ONNX file; the packaged one if left.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; all by default.")]


@app.command()
def dicom(
    source: Annotated[
        Path | None,
        typer.Argument(metavar="IN", help="Folder, DICOMDIR, zip or file; else MERCURE_IN_DIR."),
    ] = None,
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="Folder to write; else MERCURE_OUT_DIR.")
    ] = None,
    objects: Objects = "SEG,SR,SC",
    model: ModelFile = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Segment DICOM radiographs: SEG, SR, SC and GSPS objects for each, and result.json.

    Images that are no frontal chest radiographs are refused with a reason; the exit code is then
    still 0, as they were answered. Without arguments the folders are those that mercure names.
    """
    from adalora_qat.dicom.answer import Answering
    from adalora_qat.dicom.folder import answer_folder
    from adalora_qat.dicom.objects import checked_kinds
    from adalora_qat.runtime.model import load

    mercure = source is None
    source, out = source or _folder("MERCURE_IN_DIR"), out or _folder("MERCURE_OUT_DIR")
    kinds = checked_kinds(objects.split(","))
    loaded = load(model, threads=threads)
    with stopping() as signals, watching_or_logging() as watch:
        outcome = answer_folder(
            source,
            out,
            lambda reports: Answering(loaded, kinds, reports),
            mercure_names=mercure,
            progress=watch.progress,
            stop=lambda: bool(signals),
        )
    _say(outcome, out, as_json)
    if outcome.stopped:
        raise typer.Exit(128 + signals[0])


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        raise ConfigError(f"give the folders IN and OUT, or set {variable}")
    return Path(value)


def _say(outcome: Outcome, out: Path, as_json: bool) -> None:
    for one in outcome.refused:
        err_console.print(f"refused: {one['image']}: {one['reason']}", style="yellow", markup=False)
    if as_json:
        print_json({"images": outcome.images, "refused": outcome.refused})
        return
    line = f"{len(outcome.images)} images answered into {out}, {len(outcome.refused)} refused"
    out_console.print(line, markup=False, highlight=False, soft_wrap=True)
