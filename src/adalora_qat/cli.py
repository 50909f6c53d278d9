"""The command line: the composition root, and the only module that prints.

Heavy rooms are imported inside the commands that need them, so that ``segment`` starts fast
and works without torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from adalora_qat import __version__
from adalora_qat.config import load_config
from adalora_qat.errors import DataError, UserError

if TYPE_CHECKING:
    from adalora_qat.train.loop import StepReport

app = typer.Typer(
    help="Compact, trustworthy medical segmentation: AdaLoRA, quantization-aware fine-tuning, "
    "real INT8. Research software, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Results go to stdout, everything else to stderr, so that --json can be piped.
_out, _err = Console(), Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON on stdout.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write to; made if it is not there.")]
Jobs = Annotated[int, typer.Option(min=1, help="Parallel workers.")]
Cpu = Annotated[bool, typer.Option("--cpu", help="Stay on the CPU even where there is a GPU.")]


def main() -> None:
    """Run the command line: a user's mistake is one plain line and exit code 2."""
    try:
        app()
    except UserError as error:
        _err.print(f"[bold red]error:[/] {_escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "adalora_qat":
            raise
        _err.print(
            f"[bold red]error:[/] this command needs {error.name}, which is not installed; run "
            "pip install 'adalora-qat\\[train]'",
            soft_wrap=True,
        )
        sys.exit(2)


@app.callback(invoke_without_command=True)
def version(
    context: typer.Context,
    show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Carry the options that belong to no command."""
    if show:
        print(__version__)  # noqa: T201
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())  # noqa: T201


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Real data sets as NAME=PATH (repeat, or several in one, by spaces) instead of "
            "phantoms, with the recipe litemedsam."
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=20, help="Phantoms to draw.")] = 40,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    cpu: Cpu = False,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value over the recipe.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the whole method: zero-shot, decoder fine-tuning, stage 1, PTQ, stage 2, INT8."""
    from adalora_qat.demo import run_demo

    # ``--data jsrt=A shenzhen=B``: what follows the first looks like an override.
    extra = [each for each in overrides or [] if "." not in each.partition("=")[0]]
    sources = _pairs([*(data or []), *(extra if data else [])])
    changes = [each for each in overrides or [] if not (data and each in extra)]
    with _watching() as watch:
        summary = run_demo(
            out, sources=sources, count=count, seed=seed, overrides=changes, cpu=cpu, watch=watch
        )
    if as_json:
        print(json.dumps(summary))  # noqa: T201
        return
    _print_rows(summary)
    _out.print(f"\nEverything is in {out}: open {out / 'report.html'}")


@app.command()
def prepare(
    sources: Annotated[list[str], typer.Argument(help="Data sets as NAME=PATH.")],
    out: Out,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split.")] = 0,
    external: Annotated[
        list[str] | None, typer.Option(help="A source that is only ever an external test set.")
    ] = None,
    jobs: Jobs = 2,
    as_json: Json = False,
) -> None:
    """Read data sets, quarantine what is unfit, group duplicates, split 80:10:10."""
    from adalora_qat.data.prepare import prepare as prepare_data

    with _watching() as watch:
        report = prepare_data(
            _pairs(sources), out, seed, external=external or (), jobs=jobs, progress=watch.progress
        )
    if as_json:
        _print_json({**vars(report), "folder": str(report.folder)})
        return
    table = Table("source", "found", "used", "quarantined")
    for name in report.found:
        table.add_row(
            name,
            str(report.found[name]),
            str(report.used[name]),
            str(report.quarantined[name]),
        )
    _out.print(table)
    _out.print(", ".join(f"{split}: {n}" for split, n in report.splits.items()))
    _out.print(f"manifest, quarantine and groups are in {out}")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value over the recipe.")
    ] = None,
    data: Annotated[
        Path, typer.Option("--data", help="A manifest, or the folder that prepare wrote.")
    ] = Path("data"),
    out: Out = Path("runs/run"),
    stage: Annotated[
        int | None, typer.Option(min=1, max=2, help="Only this stage; both by default.")
    ] = None,
    cpu: Cpu = False,
) -> None:
    """Train both stages; the same command continues an interrupted run."""
    from adalora_qat.checkpoint import RunFolder
    from adalora_qat.data.splits import read_manifest
    from adalora_qat.train.stages import Resources, Training

    config = load_config(recipe, overrides or [])
    manifest = read_manifest(data)
    run = RunFolder.create(out, config)
    with _watching() as watch:
        training = Training(
            run,
            _labelled(manifest, "train", config.data.prompt.targets),
            _labelled(manifest, "val", config.data.prompt.targets),
            Resources(cpu=cpu, on_step=watch.on_step, progress=watch.progress),
        )
        if stage in (None, 1):
            training.stage1()
        if stage in (None, 2):
            training.quantize()
            training.stage2()
    _out.print(f"finished: {out}")


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
    predictor = _predictor(model, cpu=cpu)
    with _watching() as watch:
        cases = evaluate_cases(
            predictor, records, targets, box, out, jobs=jobs, progress=watch.progress
        )
    row = summarise(predictor.name, cases)
    if as_json:
        _print_json(row)
        return
    _print_rows({"rows": [row]})
    _out.print(f"per-case table: {out / 'cases.csv'}")


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
    records = _labelled(read_manifest(data), "val", folder.config.data.prompt.targets[:1])
    with _watching() as watch:
        exported = export_stage(folder, stage, out, records, watch.progress)
    parity = exported.parity.figures()
    if as_json:
        _print_json({"size_bytes": exported.size_bytes, "kernels": exported.kernels, **parity})
        return
    _out.print(
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
    with _watching() as watch:
        results = segment_files(
            image,
            predictor,
            out,
            box=_box(box),
            boxes_csv=boxes,
            progress=watch.progress,
        )
    if as_json:
        _print_json(results)
        return
    _out.print(f"{len(results)} image{'s' * (len(results) != 1)} segmented into {out}")


@app.command()
def params(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value over the recipe.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Also list what this policy gives each layer.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Count parameters from the model itself: total, trainable, by part, bytes."""
    from adalora_qat.train.parameters import count_parameters, layer_numerics

    counts = count_parameters(load_config(recipe, overrides or []))
    layers = layer_numerics(load_config(recipe, overrides or []), policy) if policy else []
    if as_json:
        _print_json({**counts, "layers": layers} if policy else counts)
        return
    table = Table("", "parameters", "trainable at start", "after pruning")
    for part, row in counts["parts"].items():
        table.add_row(part, *(f"{row[key]:,}" for key in ("total", "start", "pruned")))
    total = counts["total"]
    table.add_row("all", *(f"{total[key]:,}" for key in ("total", "start", "pruned")))
    _out.print(table)
    _out.print(
        f"trainable {total['start'] / total['total']:.1%} at start, "
        f"{total['pruned'] / total['total']:.1%} after pruning: "
        f"{total['total'] / max(1, total['pruned']):.1f}× fewer than the whole model"
    )
    for note in counts["notes"]:
        _out.print(f"· {note}")
    if layers:
        listing = Table("layer", "kind", "parameters", "numerics", title=f"policy {policy}")
        for row in layers:
            listing.add_row(row["name"], row["kind"], f"{row['parameters']:,}", row["numerics"])
        _out.print(listing)


class Watch:
    """Progress bars for training steps and for other long work."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}

    def on_step(self, report: StepReport) -> None:
        """Show a training step: stage, epoch, loss, validation Dice."""
        dice = "" if report.val_dice is None else f" · val Dice {report.val_dice:.4f}"
        text = f"epoch {report.epoch}/{report.epochs} · loss {report.loss:.4f}{dice}"
        self._show(report.stage, report.step, report.steps, text)

    def progress(self, done: int, total: int, what: str) -> None:
        """Show other work: done of total."""
        self._show("work", done, total, what)

    def phase(self, name: str) -> None:
        """Begin a phase: bars of the one before stay, finished."""
        self._tasks.pop("work", None)
        self._bars.console.print(f"[bold]{name}[/]")

    def _show(self, key: str, done: int, total: int, text: str) -> None:
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task("" if key == "work" else key, text="")
        self._bars.update(self._tasks[key], completed=done, total=total, text=text)
        if done >= total:
            self._bars.stop_task(self._tasks.pop(key))


@contextmanager
def _watching() -> Iterator[Watch]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=_err) as bars:
        yield Watch(bars)


def _pairs(given: Sequence[str]) -> dict[str, Path]:
    pairs = {}
    for item in (part for each in given for part in each.split()):
        name, separator, path = item.partition("=")
        if not separator or not name or not path:
            raise DataError(f"{item!r} must have the form NAME=PATH, as in jsrt=data/jsrt")
        pairs[name] = Path(path)
    return pairs


def _labelled(manifest: Any, split: str, targets: Sequence[str]) -> list[Any]:
    from adalora_qat.data.splits import records_of

    records = records_of(manifest, split)
    return [record for record in records if all(map(record.mask_parts, targets))]


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


def _predictor(model: Path, *, cpu: bool) -> Any:
    if model.suffix == ".onnx":
        from adalora_qat.export.runtime import OnnxPredictor

        return OnnxPredictor(model)
    from adalora_qat.demo import stage_predictor

    return stage_predictor(model, cpu=cpu)


def _print_rows(summary: Mapping[str, Any]) -> None:
    table = Table("model", "Dice", "± sd", "IoU", "n")
    for row in summary["rows"]:
        table.add_row(
            row["name"],
            f"{row['dice_mean']:.4f}",
            f"{row['dice_std']:.4f}",
            f"{row['iou_mean']:.4f}",
            str(row["n"]),
        )
    _out.print(table)


def _print_json(value: Any) -> None:
    print(json.dumps(value, default=str))  # noqa: T201


def _escape(text: str) -> str:
    return text.replace("[", "\\[")


if __name__ == "__main__":
    main()
