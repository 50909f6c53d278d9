"""Commands on data: ``prepare``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from adalora_qat.cli.app import (
    Jobs,
    Json,
    Out,
    app,
    out_console,
    print_json,
)
from adalora_qat.cli.watch import watching


@app.command()
def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=PATH | NAME=READER:PATH",
            help="Data sets: jsrt=PATH where NAME is a reader, or a name of your own with its "
            "reader, as in hospital_a=pairs:PATH.",
        ),
    ],
    out: Out,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split.")] = 0,
    external: Annotated[
        list[str] | None, typer.Option(help="A source that is only ever an external test set.")
    ] = None,
    jobs: Jobs = 2,
    as_json: Json = False,
) -> None:
    """Read data sets, quarantine what is unfit, group duplicates, split 80:10:10."""
    from adalora_qat.corpus.prepare import prepare as prepare_data
    from adalora_qat.corpus.sources import parse_sources

    named = parse_sources(sources)
    with watching() as watch:
        report = prepare_data(
            named,
            out,
            seed,
            external=external or (),
            jobs=jobs,
            progress=watch.progress,
        )
    if as_json:
        print_json({**vars(report), "folder": str(report.folder)})
        return
    table = Table("source", "found", "used", "quarantined")
    for name in report.found:
        table.add_row(
            name,
            str(report.found[name]),
            str(report.used[name]),
            str(report.quarantined[name]),
        )
    out_console.print(table)
    out_console.print(", ".join(f"{split}: {n}" for split, n in report.splits.items()))
    for name, notes in report.notes.items():
        for note in notes:
            out_console.print(f"note on {name}: {note}", markup=False, highlight=False)
    out_console.print(f"manifest, quarantine and groups are in {out}")
