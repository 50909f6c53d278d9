"""Commands that train, and what comes before: ``demo``, ``train``, ``convert``, ``params``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from adalora_qat.cli.app import (
    Cpu,
    Json,
    Out,
    app,
    out_console,
    print_json,
    print_rows,
)
from adalora_qat.cli.log_lines import watching_or_logging
from adalora_qat.errors import CheckpointError, ConfigError


class Tracked(StrEnum):
    """What ``train`` can tell the losses to."""

    tensorboard = "tensorboard"
    mlflow = "mlflow"


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what changes the recipe, and what names data: ``--data jsrt=A shenzhen=B``.

    An argument changes the recipe if its key is one of the recipe: ``section.key``, or a plain
    key of the whole run, such as ``seed``. Every other NAME=PATH is a data set.
    """
    from adalora_qat.config import RunConfig

    known = RunConfig.model_fields
    changes = [each for each in arguments if each.partition("=")[0].partition(".")[0] in known]
    return changes, [each for each in arguments if each not in changes]


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Real data sets as NAME=PATH or NAME=READER:PATH (repeat, or several in one, by "
            "spaces) instead of phantoms, with the recipe litemedsam."
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=20, help="Phantoms to draw.")] = 36,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    cpu: Cpu = False,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value over the recipe.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the whole method: zero-shot, decoder fine-tuning, stage 1, PTQ, stage 2, INT8."""
    from adalora_qat.corpus.sources import parse_sources
    from adalora_qat.demo import run_demo
    from adalora_qat.train.alone import alone_in

    changes, more = split_arguments(overrides or []) if data else (overrides or [], [])
    sources = parse_sources(_one_each([*(data or []), *more]))
    with alone_in(out), watching_or_logging() as watch:
        summary = run_demo(
            out,
            sources=sources,
            count=count,
            seed=seed,
            overrides=changes,
            cpu=cpu,
            watch=watch,
            on_step=watch.on_step,
        )
    if as_json:
        print(json.dumps(summary))  # noqa: T201
        return
    print_rows(summary)
    out_console.print(f"\nEverything is in {out}: open {out / 'report.html'}")


def _one_each(given: Sequence[str]) -> list[str]:
    """Split arguments that hold several NAME=PATH: a space ends a path where a NAME= follows."""
    return [part for each in given for part in re.split(r"\s+(?=[A-Za-z][\w-]*=)", each)]


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
    stage1: Annotated[
        Path | None,
        typer.Option(
            "--stage1", metavar="RUN", help="Take the finished stage 1 of this run folder."
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of decoded images, for several runs to share; OUT/cache else."),
    ] = None,
    track: Annotated[
        list[Tracked] | None,
        typer.Option(help="Also tell the losses to this tracker; repeat for several."),
    ] = None,
    cpu: Cpu = False,
) -> None:
    """Train both stages, or a baseline; the same command continues an interrupted run.

    With --stage1, several second stages (other policies, other settings) start from one first.
    On several GPUs or machines, start it with torchrun or accelerate launch.
    """
    from adalora_qat.recipe import load_config

    # Before torch, which takes seconds: most mistakes are in here.
    config = load_config(recipe, overrides or [])

    from adalora_qat.baselines.training import BaselineTraining
    from adalora_qat.checkpoint import RunFolder
    from adalora_qat.corpus.splits import read_manifest, records_of
    from adalora_qat.samples.structures import usable
    from adalora_qat.study.facts import write_run_facts
    from adalora_qat.study.history import draw_ranks
    from adalora_qat.train.alone import alone_in
    from adalora_qat.train.inherit import inherit_stage1, source_of_stage1
    from adalora_qat.train.preflight import check_recipe
    from adalora_qat.train.processes import check_trackers, join
    from adalora_qat.train.stages import Resources, Training

    trackers = tuple(each.value for each in track or ())
    check_trackers(trackers)
    if config.baselines is not None and (stage == 2 or trackers or stage1 is not None):
        raise ConfigError(
            "a baseline has one stage and no trackers; leave --stage, --stage1 and --track out"
        )
    check_recipe(config)
    manifest = read_manifest(data)
    # Before a folder is made, which a wrong recipe would otherwise own.
    source = None if stage1 is None else source_of_stage1(stage1, config)
    processes = join(cpu=cpu)
    # The main process holds the folder for all.
    holding = alone_in(out) if processes.is_main_process else nullcontext()
    with holding, watching_or_logging(shown=processes.is_main_process) as watch:
        with processes.main_process_first():
            run = RunFolder.create(out, config)
            if source is not None and processes.is_main_process:
                inherit_stage1(run, source)
        train_records, val_records = (
            usable(records_of(manifest, split), config.data.prompt.targets, config.model.structures)
            for split in ("train", "val")
        )
        resources = Resources(
            cpu=cpu,
            cache=cache,
            track=trackers,
            on_step=watch.on_step,
            progress=watch.progress,
            tell=watch.phase,
        )
        if config.baselines is not None:
            BaselineTraining(run, train_records, val_records, resources).fit()
            write_run_facts(run)
        else:
            training = Training(run, train_records, val_records, resources)
            if stage in (None, 1):
                training.stage1()
                if processes.is_main_process:
                    write_run_facts(run)
                    draw_ranks(run.path)
            if stage in (None, 2):
                training.quantize()
                training.stage2()
                if processes.is_main_process:
                    write_run_facts(run)
            training.end()
    if processes.is_main_process:
        out_console.print(f"finished: {out}")


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="FILE.pth", help="An original checkpoint, .pth or .pt.")
    ],
    variant: Annotated[str, typer.Option("--variant", help="Which model it is of: see params.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors file to write.")],
    as_json: Json = False,
) -> None:
    """Convert Meta's, MedSAM's or MobileSAM's original checkpoint to safetensors.

    The file is read without running pickled code, and must fit the variant tensor by tensor.
    """
    from adalora_qat.model.sam import variant as variant_of
    from adalora_qat.model.weights import convert_file

    if out.suffix != ".safetensors":
        raise CheckpointError(f"--out {out} must end in .safetensors: that is what is written")
    digest = convert_file(source, variant_of(variant), out)
    if as_json:
        print_json({"file": str(out), "variant": variant, "sha256": digest})
        return
    out_console.print(f"{out}: SHA-256 {digest}", soft_wrap=True)
    out_console.print(f"use it with model.variant={variant} model.weights={out}", soft_wrap=True)


@app.command()
def adapter(
    run: Annotated[Path, typer.Argument(help="A run folder whose stage 1 has ended.")],
    out: Out,
    as_json: Json = False,
) -> None:
    """Write stage 1's adapter as a folder for PEFT and the Hub: weights, card, decoder if trained.

    Adapters of ViT variants load onto transformers' SamModel.
    """
    from adalora_qat.checkpoint import RunFolder
    from adalora_qat.train.adapter_folder import write_adapter_folder

    ranks = write_adapter_folder(RunFolder.open(run), out)
    if as_json:
        print_json({"folder": str(out), "ranks": ranks})
        return
    out_console.print(f"{out}: {len(ranks)} layers, {sum(ranks.values())} ranks in all")


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
    """Count parameters from the model itself, beside the paper's Table 2; bytes by precision."""
    from adalora_qat.baselines.parameters import count_baseline
    from adalora_qat.recipe import load_config
    from adalora_qat.study.parameters import beside_the_paper, count_parameters, layer_numerics

    config = load_config(recipe, overrides or [])
    if config.baselines is not None and policy:
        raise ConfigError("--policy is about quantization, and a baseline has none; leave it out")
    counts = count_parameters(config) if config.baselines is None else count_baseline(config)
    paper = beside_the_paper(counts, config)
    layers = layer_numerics(config, policy) if policy else []
    if as_json:
        answer = {**counts, "paper": asdict(paper)}
        print_json({**answer, "layers": layers} if policy else answer)
        return
    table = Table("", "parameters", "trainable at start", "after pruning")
    for part, row in counts["parts"].items():
        table.add_row(part, *(f"{row[key]:,}" for key in ("total", "start", "pruned")))
    total = counts["total"]
    table.add_row("all", *(f"{total[key]:,}" for key in ("total", "start", "pruned")))
    out_console.print(table)
    beside = Table("Table 2", "at start", "after pruning", f"paper: {paper.paper_name or '–'}")
    for each in paper.rows:
        shown = "–" if each.paper is None else f"{each.paper:g}"
        beside.add_row(each.column, f"{each.start:.2f}", f"{each.pruned:.2f}", shown)
    out_console.print(beside)
    sizes = (f"{name} {size / 1e6:.1f} MB" for name, size in counts["bytes"].items())
    out_console.print("weights, adapters merged: " + ", ".join(sizes))
    for note in (*counts["notes"], *paper.differences):
        out_console.print(f"· {note}", highlight=False)
    if layers:
        listing = Table("layer", "kind", "parameters", "numerics", title=f"policy {policy}")
        for row in layers:
            listing.add_row(row["name"], row["kind"], f"{row['parameters']:,}", row["numerics"])
        out_console.print(listing)
