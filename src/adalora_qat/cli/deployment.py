"""Commands on models that ship: ``export``, ``segment``, ``ship``, ``size``, ``bench``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from adalora_qat.cli.app import (
    Json,
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
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX file to write.")],
    data: Annotated[
        Path, typer.Option("--data", help="Manifest whose val split the parity gate uses.")
    ],
    stage: Annotated[str, typer.Option(help="stage1, ptq or stage2.")] = "stage2",
    golden: Annotated[
        bool, typer.Option("--golden", help="Also write inputs and outputs, <stem>.golden.npz.")
    ] = False,
    refine: Annotated[
        list[str] | None,
        typer.Option(
            help="Structure to ask for a second time, with its own box; repeat for several. "
            "model.refine of the run if left out."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Export to ONNX, refused unless the runtime agrees with the trained model."""
    from adalora_qat.checkpoint import RunFolder
    from adalora_qat.corpus.splits import read_manifest
    from adalora_qat.export.run import export_stage

    folder = RunFolder.open(run)
    records = labelled_records(read_manifest(data), "val", folder.config.data.prompt.targets)
    with watching() as watch:
        made = export_stage(
            folder, stage, out, records, watch.progress, golden=golden, refine=refine
        )
    parity = made.parity.figures()
    if as_json:
        print_json({"size_bytes": made.size_bytes, "kernels": dict(made.kernels), **parity})
        return
    out_console.print(
        f"{made.path}: {made.size_bytes / 1e6:.1f} MB; Dice with the trained model at least "
        f"{parity['dice_min']:.4f}, {parity['pixel_agreement']:.4%} of pixels equal, over "
        f"{parity['cases']} masks"
    )


@app.command(rich_help_panel="For maintainers")
def ship(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    data: Annotated[Path, typer.Option("--data", help="The manifest that it was trained on.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write, replaced as a whole.")],
    stage: Annotated[str, typer.Option(help="stage1, ptq or stage2.")] = "stage2",
    images: Annotated[
        int, typer.Option(min=30, help="Training images that the input check is fitted on.")
    ] = 160,
    as_json: Json = False,
) -> None:
    """Make a model to publish: export, calibrate, fit the warnings, write card and checksums."""
    from adalora_qat.checkpoint import RunFolder
    from adalora_qat.corpus.splits import read_manifest
    from adalora_qat.release.ship import ship as make

    folder, manifest = RunFolder.open(run), read_manifest(data)
    targets = folder.config.data.prompt.targets[:1]
    records = {s: labelled_records(manifest, s, targets) for s in ("train", "val", "test")}
    with watching() as watch:
        made = make(folder, stage, records, out, images=images, progress=watch.progress)
    if as_json:
        print_json({**vars(made), "folder": str(made.folder)})
        return
    for row in made.rows:
        out_console.print(
            f"{row['box']}, {row['source']}: Dice {row['dice_mean']:.4f} (n={row['n']})"
        )
    out_console.print(f"{made.folder}: {made.size_bytes / 1e6:.2f} MB, card and sums beside it")


@app.command()
def size(
    model: Annotated[Path, typer.Argument(help="A run folder, or a stage's, packed or ONNX file.")],
    policy: Annotated[
        str | None,
        typer.Option(help="Quantize the float32 model by this policy first (a name or a file)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Count the bytes of the file that ships, by part and precision, and compare with FP32."""
    from adalora_qat.study.size import DESCRIPTION, size_of

    sizes = size_of(model, policy)
    if as_json:
        print_json(sizes.figures())
        return
    precisions = sorted(sizes.by_precision())
    table = Table(title=f"{sizes.what}: policy {sizes.policy}")
    for column in ("bytes", *precisions, "all"):
        table.add_column(column, justify="left" if column == "bytes" else "right", no_wrap=True)
    parts = sorted(sizes.parts, key=lambda part: (part == DESCRIPTION, part))
    for part in parts:
        row = sizes.parts[part]
        cells = (f"{row[p]:,}" if row.get(p) else "" for p in precisions)
        table.add_row(part, *cells, f"{sum(row.values()):,}")
    table.add_row("all", *(f"{sizes.by_precision()[p]:,}" for p in precisions), f"{sizes.total:,}")
    out_console.print(table)
    if sizes.ratio is None or sizes.fp32_total is None:
        out_console.print("the file does not say which whole model it holds: no ratio to FP32")
    else:
        out_console.print(
            f"{sizes.total / 1e6:.2f} MB, {sizes.ratio:.2f}× smaller than the FP32 file of "
            f"{sizes.fp32_total / 1e6:.2f} MB"
        )


@app.command()
def bench(
    models: Annotated[
        list[Path] | None,
        typer.Argument(help="Run folders and ONNX files; the packaged model for --engines."),
    ] = None,
    engines: Annotated[
        bool,
        typer.Option("--engines", help="Time one ONNX file in each engine that is installed."),
    ] = False,
    data: Annotated[
        Path | None, typer.Option("--data", help="Manifest whose test split is segmented.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="How many images, at most.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each model.")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all by default.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file to write.")] = None,
    as_json: Json = False,
) -> None:
    """Compare models on this machine: size, load time, latency, memory, Dice, agreement.

    With --engines one file in each engine instead, on the packaged phantom: which is fastest here.
    """
    if out is not None and out.is_dir():
        raise DataError(f"--out {out} is a folder; name the JSON file to write")
    if engines:
        _bench_engines(models or [], rounds, threads, out, as_json)
        return
    if not models:
        raise DataError("give run folders or ONNX files to compare, or --engines")
    from adalora_qat.checkpoint import provenance
    from adalora_qat.corpus.splits import read_manifest
    from adalora_qat.files import write_json
    from adalora_qat.study import bench as benching

    with watching() as watch, tempfile.TemporaryDirectory() as folder:
        if data is None:
            records = benching.phantom_records(Path(folder) / "phantoms", images)
        else:
            records = labelled_records(read_manifest(data), "test", [benching.TARGET])[:images]
        if not records:
            raise DataError(f"{data} has no test image with a {benching.TARGET} mask")
        chosen = benching.bench_models(models, Path(folder), records[:8], watch.progress)
        cases = benching.cases_of(records)
        report = benching.bench(chosen, cases, rounds, threads, watch.progress)
    report["data"] = "phantoms" if data is None else f"test split of {data.name}"
    report |= {"images": len(cases), "rounds": rounds, "threads": threads, **provenance({})}
    if out is not None:
        write_json(out, report)
    if as_json:
        print_json(report)
        return
    _print_bench(report)


def _bench_engines(
    models: Sequence[Path], rounds: int, threads: int | None, out: Path | None, as_json: bool
) -> None:
    from adalora_qat.files import write_json
    from adalora_qat.runtime.engine_table import time_engines
    from adalora_qat.runtime.packaged import MODEL, weights_folder

    if len(models) > 1 or any(model.suffix != ".onnx" for model in models):
        raise DataError("--engines times one ONNX file: give one, or none for the packaged model")
    model = models[0] if models else weights_folder() / MODEL
    with watching() as watch:
        rows = time_engines(model, rounds, threads, watch.progress)
    if out is not None:
        write_json(out, {"model": model.name, "rounds": rounds, "rows": rows})
    if as_json:
        print_json(rows)
        return
    table = Table("engine", "load s", "one image, ms", "Dice with ONNX Runtime", "auto")
    for row in rows:
        if "missing" in row:
            table.add_row(row["engine"], "", row["missing"], "", "")
            continue
        times = f"{row['median_s'] * 1e3:.0f} (least {row['least_s'] * 1e3:.0f})"
        cells = (f"{row['load_s']:.2f}", times, f"{row['dice']:.4f}", "*" if row["auto"] else "")
        table.add_row(row["name"], *cells)
    out_console.print(table)
    out_console.print(
        f"{model.name}, a phantom from pixels to mask, {rounds} rounds in turn, median. * is what "
        "engine=auto takes"
    )


def _print_bench(report: Mapping[str, Any]) -> None:
    rows, reference = report["rows"], report["reference"]
    first = next(row for row in rows if row["name"] == reference)
    columns = ("model", "MB", "load ms", "latency ms", "peak MB", "Dice", "agreement")
    table = Table(*columns)
    for row in rows:
        versus = {
            key: f"  {first[key] / row[key]:.2f}×" if row is not first else ""
            for key in ("size_bytes", "median_s", "peak_mb")
        }
        spread = f"{row['p10_s'] * 1e3:.0f}–{row['p90_s'] * 1e3:.0f}"
        table.add_row(
            row["name"],
            f"{row['size_bytes'] / 1e6:.2f}{versus['size_bytes']}",
            f"{row['load_s'] * 1e3:.0f}",
            f"{row['median_s'] * 1e3:.0f} ({spread}){versus['median_s']}",
            f"{row['peak_mb']:.0f}{versus['peak_mb']}",
            "" if row["dice_mean"] is None else f"{row['dice_mean']:.4f}",
            f"{row['agreement']['dice_mean']:.4f}, {row['agreement']['equal_pixels']:.3%}",
        )
    out_console.print(table)
    threads = report["threads"] or "all"
    out_console.print(
        f"{report['images']} images ({report['data']}; exact boxes), {report['rounds']} rounds, "
        f"one process each, {threads} threads. Latency: median (10th to 90th percentile). Factors "
        "(smaller, faster, less) and agreement (Dice of the masks, equal pixels) are those with "
        f"{reference}"
    )
    if report["data"] == "phantoms":
        out_console.print("Dice is that on phantoms; give --data for radiographs")
    for words in report["words"]:
        out_console.print(f"· {words}")
