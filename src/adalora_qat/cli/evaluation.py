"""Commands that measure and compare: ``evaluate``, ``reliability``, ``compare``, ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adalora_qat.cli.app import (
    Cpu,
    Jobs,
    Json,
    Out,
    app,
    err_console,
    out_console,
    print_json,
    print_rows,
)
from adalora_qat.cli.watch import watching
from adalora_qat.errors import DataError

if TYPE_CHECKING:
    from adalora_qat.study.study import Study

Baseline = Annotated[str, typer.Option(help="The model that all others are compared with.")]
Paper = Annotated[bool, typer.Option("--paper", help="Quote the paper's figures beside ours.")]
Margin = Annotated[
    float | None, typer.Option(help="Margin of equivalence in DSC; 0.005 by default.")
]


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A run folder, a stage's model, or an ONNX file.")],
    data: Annotated[Path, typer.Option("--data", help="A manifest or a prepare folder.")],
    out: Out,
    split: Annotated[str, typer.Option(help="Which split of the manifest.")] = "test",
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Mask to segment; repeat for several. Left out: the structures that the model "
            "finds without a box, and their union; else lung."
        ),
    ] = None,
    box: Annotated[
        str | None,
        typer.Option(
            help="oracle, oracle+jitterN (N px), whole-image or automatic. Left out: automatic for "
            "a model that finds structures without a box, else oracle."
        ),
    ] = None,
    cpu: Cpu = False,
    jobs: Jobs = 2,
    as_json: Json = False,
) -> None:
    """Measure a model on a split: one row a case, at the original size."""
    from adalora_qat.corpus.splits import read_manifest, records_of
    from adalora_qat.study.measure import evaluate_model, summarise_targets
    from adalora_qat.study.models import model_at

    records = records_of(read_manifest(data), split)
    chosen = model_at(model)
    with watching() as watch:
        found = evaluate_model(
            chosen, records, target or None, out, box, cpu=cpu, jobs=jobs, progress=watch.progress
        )
    row = summarise_targets(chosen.name, found.cases)
    if as_json:
        print_json(row)
        return
    several = "targets" in row
    print_rows({"rows": row["targets"] if several else [row]}, "structure" if several else "model")
    if "mean" in row:
        mean = row["mean"]
        out_console.print(f"mean: Dice {mean['dice_mean']:.4f}, IoU {mean['iou_mean']:.4f}")
    if ratio := row.get("cardiothoracic_ratio"):
        out_console.print(
            f"cardiothoracic ratio, predicted minus true: {ratio['bias']:+.4f} (sd "
            f"{ratio['sd']:.4f}), limits of agreement {ratio['lower']:+.4f} to "
            f"{ratio['upper']:+.4f}, mean absolute {ratio['mean_absolute']:.4f}; n={ratio['n']}"
        )
    out_console.print(f"per-case table: {out / 'cases.csv'}")


@app.command()
def reliability(
    evaluations: Annotated[
        list[Path], typer.Argument(help="Folders that evaluate wrote, or their tables.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the figure and its numbers.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare how good a model thinks its masks are with how good they are."""
    import pandas as pd

    from adalora_qat.evaluate.calibration import calibration_summary
    from adalora_qat.evaluate.calibration import reliability as grouped
    from adalora_qat.evaluate.case_table import read_cases
    from adalora_qat.files import write_text
    from adalora_qat.report.case_figures import reliability as diagram
    from adalora_qat.report.style import save_figure

    cases = pd.concat([read_cases(path) for path in evaluations], ignore_index=True)
    summary = calibration_summary(cases)
    if out is not None:
        cases["model"] = cases["model"] + ", " + cases["box"]
        groups = pd.concat(
            [grouped(part).assign(model=name) for name, part in cases.groupby("model", sort=False)]
        )
        for stem, table in (("reliability", groups), ("calibration", summary)):
            write_text(out / f"{stem}.csv", table.to_csv(index=False, lineterminator="\n"))
        save_figure(diagram(cases), out / "reliability")
    if as_json:
        print_json(summary.to_dict("records"))
        return
    for row in summary.to_dict("records"):
        words = f"{row['model']}, {row['box']}, {row['altered']} (n={row['n']}): "
        words += f"predicted IoU {row['predicted']:.4f}, true {row['true']:.4f}, "
        words += f"expected calibration error {row['ece']:.4f}, "
        words += f"rank correlation {row['rank_correlation']:.2f}"
        out_console.print(words, soft_wrap=True, highlight=False)


@app.command()
def compare(
    evaluations: Annotated[
        list[str],
        typer.Argument(
            help="Folders that evaluate or report wrote, their cases.csv or cases.parquet, or run "
            "folders with evaluations in them; NAME=PATH gives a name."
        ),
    ],
    baseline: Baseline,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for Markdown, LaTeX, CSV and JSON.")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Compare only this mask; repeat for several.")
    ] = None,
    margin: Margin = None,
    drop_missing: Annotated[
        bool,
        typer.Option("--drop-missing", help="Drop and count cases that one model lacks."),
    ] = False,
    predict_times: Annotated[
        bool,
        typer.Option(
            "--predict-times",
            help="Show the evaluations' own times as latency; report times better.",
        ),
    ] = False,
    paper: Paper = False,
    as_json: Json = False,
) -> None:
    """Compare models case by case: tables that fit the terminal, and verdicts in words."""
    from adalora_qat.study.entries import study_of
    from adalora_qat.study.study import write_study

    if out is not None and out.exists() and not out.is_dir():
        raise DataError(f"--out {out} is a file; give a folder")
    study = study_of(
        evaluations,
        baseline,
        target or (),
        margin,
        drop_missing=drop_missing,
        predict_times=predict_times,
        paper=paper,
    )
    written = write_study(study, out) if out is not None else []
    if as_json:
        print_json({**_values(study), "files": list(map(str, written))})
        return
    _print_study(study)
    if out is not None:
        out_console.print(f"tables as Markdown, LaTeX and CSV, verdicts and tests: {out}")


@app.command()
def report(
    models: Annotated[
        list[str],
        typer.Argument(help="Run folders, stages' models or ONNX files; NAME=PATH gives a name."),
    ],
    data: Annotated[Path, typer.Option("--data", help="A manifest or a prepare folder.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The page to write; results are kept beside it.")
    ] = Path("report.html"),
    baseline: Annotated[
        str | None,
        typer.Option(help="The model all others are compared with; decoder fine-tuning if left."),
    ] = None,
    split: Annotated[str, typer.Option(help="Which split of the manifest.")] = "test",
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Mask to segment; repeat for several, of which the page shows the first. Left "
            "out: the structures that all models find without a box, and their union; else lung."
        ),
    ] = None,
    box: Annotated[
        str | None,
        typer.Option(
            help="As for evaluate. Left out: automatic if all models find structures without one."
        ),
    ] = None,
    cases: Annotated[
        int | None, typer.Option(min=1, help="Measure only so many cases, spread over sources.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Also sweeps over boxes and degradations, CPU latency, SSIM maps, worst cases and "
            "simulated models: many minutes.",
        ),
    ] = False,
    paper: Paper = False,
    jitter_cases: Annotated[
        int | None,
        typer.Option(min=0, help="Cases of the sweep over boxes; 24 with --full, else 0."),
    ] = None,
    robustness_cases: Annotated[
        int | None,
        typer.Option(min=0, help="Cases of the sweep over degradations; 8 with --full, else 0."),
    ] = None,
    speed_cases: Annotated[
        int | None,
        typer.Option(min=0, help="Images that latency is timed on; 5 with --full, else 0."),
    ] = None,
    gallery_cases: Annotated[
        int, typer.Option(min=0, help="Cases to look through; 0 leaves them out.")
    ] = 100,
    weight_error: Annotated[
        bool, typer.Option(help="Draw the error that integers leave in the weights.")
    ] = True,
    zero_shot: Annotated[
        bool, typer.Option(help="Measure the pretrained model that a run started from, too.")
    ] = True,
    margin: Margin = None,
    cpu: Cpu = False,
    jobs: Jobs = 2,
    as_json: Json = False,
) -> None:
    """Measure and compare models, and write one page with tables, figures and cases.

    Stopped, it goes on where it was: results are kept in OUT_files, named after what they measure.
    """
    from adalora_qat.corpus.splits import read_manifest, records_of
    from adalora_qat.evaluate.structured import default_targets
    from adalora_qat.study.measure import Bench, some
    from adalora_qat.study.models import models_of, shared_structures
    from adalora_qat.study.study_page import Scope, report_study

    if out.suffix.lower() not in (".html", ".htm"):
        raise DataError(f"--out {out} must be a page, as in report.html")
    scope = Scope(
        full, jitter_cases, robustness_cases, speed_cases, gallery_cases, weight_error, margin,
        title, paper,
    )  # fmt: skip
    chosen = models_of(models, zero_shot=zero_shot)
    found = records_of(read_manifest(data), split)
    known = shared_structures(chosen)
    targets = target or (default_targets(known, found) if known else ["lung"])
    records = [record for record in found if any(map(record.mask_parts, targets))]
    records = records if cases is None else some(records, cases)
    # The union of both lungs is what most data sets draw.
    shown = "lung" if target is None and "lung" in targets else targets[0]
    box = box or ("automatic" if known else "oracle")
    with watching() as watch:
        folder = out.with_name(f"{out.stem}_files")
        bench = Bench(tuple(records), shown, folder, watch, cpu, jobs, tuple(targets), box)
        study = report_study(chosen, bench, out, baseline, scope)
    if as_json:
        print_json({**_values(study), "page": str(out), "files": str(folder)})
        return
    _print_verdicts(study)
    size = out.stat().st_size / 1e6
    out_console.print(f"{out} ({size:.1f} MB); tables and cases: {folder}", soft_wrap=True)


def _values(study: Study) -> dict[str, Any]:
    """Return a study for a program to read."""
    from dataclasses import asdict

    from adalora_qat.study.measure import summarise
    from adalora_qat.study.study import comparison_values

    by_model = study.cases.groupby("model", sort=False)
    return {
        "baseline": study.baseline,
        "models": [
            {**summarise(str(name), part), "facts": asdict(study.facts[str(name)])}
            for name, part in by_model
        ],
        "comparisons": comparison_values(study),
        "verdicts": list(study.verdicts),
    }


def _print_study(study: Study) -> None:
    from adalora_qat.report.terminal import fitted

    segmentation, _, efficiency, ablation = study.tables
    left = []
    for table in (segmentation, efficiency, ablation):
        shown, without = fitted(table, out_console.width)
        out_console.print(shown)
        out_console.print(table.caption, markup=False, highlight=False)
        out_console.print()
        left += without
    _print_verdicts(study)
    if left:
        out_console.print(
            f"Not shown at {out_console.width} columns: {', '.join(left)}. --out FOLDER writes "
            "every table whole.",
            markup=False,
            highlight=False,
        )


def _print_verdicts(study: Study) -> None:
    """Print the pooled verdicts on DSC; the other metrics and groups stand in the files."""
    from adalora_qat.evaluate.summaries import POOLED

    said = zip(study.comparisons, study.verdicts, strict=True)
    for comparison, words in said:
        if comparison.by == POOLED and comparison.metric == "dsc":
            out_console.print(f"- {words}", markup=False, highlight=False)
    if any(comparison.cautions for comparison in study.comparisons):
        err_console.print("[bold]Some models do not compare on equal terms: see the cautions.[/]")
