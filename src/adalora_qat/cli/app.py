"""The application, its consoles, and the options and printing that commands share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from adalora_qat import __version__

app = typer.Typer(
    help="Compact, trustworthy medical segmentation: AdaLoRA, quantization-aware fine-tuning, "
    "real INT8. Research software, not a medical device.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
# Results go to stdout, everything else to stderr, so that --json can be piped.
out_console, err_console = Console(), Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder to write to; made if it is not there.")
]
Jobs = Annotated[int, typer.Option(min=1, help="Parallel workers.")]
Cpu = Annotated[bool, typer.Option("--cpu", help="Stay on the CPU even where there is a GPU.")]


@app.callback(invoke_without_command=True)
def version(
    context: typer.Context,
    show: Annotated[bool, typer.Option("--version", "-V", help="Print the version.")] = False,
) -> None:
    """Carry the options that belong to no command."""
    if show:
        print(__version__)  # noqa: T201
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())  # noqa: T201


def print_rows(summary: Mapping[str, Any], what: str = "model") -> None:
    """Print the rows of a summary as a table; ``what`` heads their names."""
    table = Table(what, "Dice", "± sd", "IoU", "n")
    for row in summary["rows"]:
        table.add_row(
            row["name"],
            f"{row['dice_mean']:.4f}",
            f"{row['dice_std']:.4f}",
            f"{row['iou_mean']:.4f}",
            str(row["n"]),
        )
    out_console.print(table)


def print_json(value: Any) -> None:
    """Print a result as JSON, for a program to read."""
    print(json.dumps(value, default=str), flush=True)  # noqa: T201


def labelled_records(manifest: Any, split: str, targets: Sequence[str]) -> list[Any]:
    """Return the records of a split that have a mask for every target."""
    from adalora_qat.corpus.splits import records_of

    records = records_of(manifest, split)
    return [record for record in records if all(map(record.mask_parts, targets))]
