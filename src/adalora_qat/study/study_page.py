"""One command's page: measure the models of runs, compare them, draw, and write one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from adalora_qat.checkpoint import RunFolder, provenance
from adalora_qat.errors import DataError
from adalora_qat.files import sha256_file, write_json, write_text
from adalora_qat.recipe import dump_config
from adalora_qat.report.page import Figure, Gallery, ReportContent, Section, write_report
from adalora_qat.report.style import standalone_svg
from adalora_qat.study.facts import write_facts
from adalora_qat.study.measure import (
    LATENCY_NOTE,
    SPEED_ROUNDS,
    STUDY_FILE,
    Bench,
    Measured,
    counted,
    forecast,
    latencies,
    machine_of,
    measure,
    sweep_degradations,
    sweep_prompts,
)
from adalora_qat.study.models import Model, description
from adalora_qat.study.sections import (
    Roles,
    agreement_figure,
    box_section,
    gallery_of,
    robustness_section,
    roles_of,
    similarity_section,
    training_section,
    weight_section,
    worst_section,
)
from adalora_qat.study.structure_section import structure_section
from adalora_qat.study.study import Study, compare_models, write_study
from adalora_qat.study.study_report import study_content

FEW: Final = 30
# Cases of the sweeps over boxes and degradations, and images timed, of a full report.
SWEPT: Final = (24, 8)
TIMED: Final = 5


@dataclass(frozen=True)
class Scope:
    """How much a report measures, and what its page says; 0 leaves a part out.

    By default the page holds what one prediction a case and model gives: accuracy with every
    comparison, cases with masks, training, ranks, quantization error, sizes, provenance.

    Attributes
    ----------
    full : also the sweeps, CPU latency, SSIM maps, the worst cases, single layers' weight errors,
        and the simulation of a quantized stage whose ONNX file is measured.
    jitter_cases, robustness_cases : cases of the sweeps over boxes and over degradations; None
        takes 24 and 8 if ``full``, else none.
    speed_cases : images of which CPU latency is the median; None takes 5 if ``full``, else none.
    gallery_cases : cases to look through on the page.
    weight_error : whether to draw the paper's Fig. 3.
    margin : of equivalence in DSC; None takes half a Dice point.
    title : heading of the page; None names the target.
    paper : quote the paper's figures beside ours.
    """

    full: bool = False
    jitter_cases: int | None = None
    robustness_cases: int | None = None
    speed_cases: int | None = None
    gallery_cases: int = 100
    weight_error: bool = True
    margin: float | None = None
    title: str | None = None
    paper: bool = False

    def __post_init__(self) -> None:
        if min(*self.sweeps, self.timed_images, self.gallery_cases) < 0:
            raise DataError("numbers of cases must be 0 (leave out) or more")
        if self.margin is not None and not self.margin > 0:
            raise DataError(f"margin={self.margin} must be more than 0, as in 0.005")

    @property
    def sweeps(self) -> tuple[int, int]:
        """Cases of the sweep over boxes, and of that over degradations."""
        given = zip((self.jitter_cases, self.robustness_cases), SWEPT, strict=True)
        boxes, degraded = (
            count if count is not None else usual * self.full for count, usual in given
        )
        return boxes, degraded

    @property
    def timed_images(self) -> int:
        """Images that latency is timed on."""
        return self.speed_cases if self.speed_cases is not None else TIMED * self.full


def report_study(
    models: Sequence[Model], bench: Bench, out: Path, baseline: str | None, scope: Scope
) -> Study:
    """Measure, compare, and write the page and its tables.

    Parameters
    ----------
    models : as from ``models_of``.
    bench : the cases and the folder beside the page.
    out : the page; written last, and whole.
    baseline : the model all others are compared with; None takes decoder fine-tuning, else
        the first model that was trained in floats, else the first.

    Raises
    ------
    DataError
        If the baseline is not among the models, or there is no case.
    """
    if not bench.records:
        raise DataError(f"no case with a mask of {bench.target}: choose another split or target")
    chosen = choose_baseline(models, baseline)
    found = measure(bench, models if scope.full else without_simulations(models, chosen))
    study = _study(found, bench, chosen, scope)
    content = _content(study, models, found, bench, scope)
    write_study(study, bench.folder / "tables")
    write_figures(content, bench.folder / "figures")
    listed = [m.folder.relative_to(bench.folder).as_posix() for m in found]
    write_json(bench.folder / STUDY_FILE, {"baseline": chosen, "evaluations": listed})
    write_report(content, out)
    return study


def write_figures(content: ReportContent, folder: Path) -> list[Path]:
    """Write every drawn figure of a page as SVG, in ink on white; return the paths."""
    written = []
    for section in content.sections:
        for block in section.blocks:
            if isinstance(block, Figure) and isinstance(block.picture, str):
                written.append(folder / f"{block.slug}.svg")
                write_text(written[-1], standalone_svg(block.picture))
    return written


def choose_baseline(models: Sequence[Model], given: str | None) -> str:
    """Return the baseline's name, as in ``report_study``."""
    names = [model.name for model in models]
    if given is not None:
        if given not in names:
            raise DataError(f"--baseline {given!r} is none of the models: {'; '.join(names)}")
        return given
    trained = [m for m in models if m.kind == "stage1"]
    decoder = [m for m in trained if m.run and m.run.config.stage1.encoder == "frozen"]
    return (decoder or trained or list(models))[0].name


def without_simulations(models: Sequence[Model], baseline: str) -> list[Model]:
    """Leave out quantized stages whose exported file is there: its integers are what ships.

    PyTorch simulates integers at the highest cost of all models, and the export's parity gate
    has held the file against that simulation already. The baseline stays.
    """
    exported = {(m.run.path, m.stage) for m in models if m.run is not None and m.kind == "onnx"}
    return [
        m for m in models
        if m.name == baseline or not m.quantized or m.run is None
        or (m.run.path, m.kind) not in exported
    ]  # fmt: skip


def _study(found: Sequence[Measured], bench: Bench, baseline: str, scope: Scope) -> Study:
    timed, n = latencies(bench, [m.model for m in found], scope.timed_images)
    facts = {m.model.name: replace(m.facts, latency_ms=timed.get(m.model.name)) for m in found}
    for m in found:  # so that ``compare`` has the latencies of one report
        machine = machine_of(m.model, cpu=bench.cpu)
        write_facts(m.folder, m.model.name, facts[m.model.name], machine)
    cases = {m.model.name: m.cases for m in found}
    note = LATENCY_NOTE.format(n=n, rounds=SPEED_ROUNDS) if timed else ""
    if len(cases) == 1:
        return Study(baseline, next(iter(cases.values())), facts, (), note, scope.paper)
    margins = None if scope.margin is None else {"dsc": scope.margin}
    return compare_models(
        cases, baseline, facts, margins=margins, latency_note=note, paper=scope.paper
    )


def _content(
    study: Study,
    models: Sequence[Model],
    found: Sequence[Measured],
    bench: Bench,
    scope: Scope,
) -> ReportContent:
    # Pictures show one target.
    roles = roles_of([m.of(bench.target) for m in found], study.baseline)
    runs = _runs(found)
    sections = _sweeps(bench, roles, scope)
    bench.watch.phase("figures")
    if scope.full:
        sections = [similarity_section(bench, roles), *sections, worst_section(bench, roles)]
    if scope.weight_error and (stage := _quantized_stage(models)) is not None:
        sections.append(weight_section(stage, each=scope.full, paper=scope.paper))
    if len(bench.measured) > 1:
        sections.insert(0, structure_section(found))
    sections.append(training_section(runs))
    galleries: list[Gallery] = []
    if scope.gallery_cases and (shown := gallery_of(bench, roles, scope.gallery_cases)):
        galleries.append(shown[0])
        sections.append(Section("case-table", "Every case in figures", (shown[1],)))
    area = agreement_figure(bench, roles.quantized)
    content = study_content(
        scope.title or f"Segmentation of {', '.join(bench.measured).replace('_', ' ')}",
        _lede(study, models, bench),
        study,
        figures=[area] if area else [],
        galleries=galleries,
        provenance=_provenance(study, found, bench),
        sections=sections,
    )
    configs = {f"Configuration, {run.path.resolve().name}": dump_config(run.config) for run in runs}
    return replace(content, attachments={**content.attachments, **configs})


def _sweeps(bench: Bench, roles: Roles, scope: Scope) -> list[Section]:
    """Compare the float model and the one that ships where prompts and images are worse."""
    swept = list({m.model.name: m for m in (roles.reference, roles.quantized)}.values())
    models = [m.model for m in swept]
    boxes, degraded = scope.sweeps
    if said := forecast(bench, swept, boxes, degraded):
        bench.watch.phase(said)
    found = []
    if boxes:
        found.append(box_section(sweep_prompts(bench, models, boxes)))
    if degraded:
        found.append(robustness_section(sweep_degradations(bench, models, degraded)))
    return found


def _quantized_stage(models: Sequence[Model]) -> Model | None:
    """Return the last model that still holds its weights from before rounding."""
    stages = [m for m in models if m.quantized and m.kind != "onnx"]
    return stages[-1] if stages else None


def _runs(found: Sequence[Measured]) -> list[RunFolder]:
    runs = {str(m.model.run.path.resolve()): m.model.run for m in found if m.model.run}
    return list(runs.values())


def _lede(study: Study, given: Sequence[Model], bench: Bench) -> str:
    n = len(bench.records)
    sources = sorted({record.source for record in bench.records})
    few = f" {counted(n, 'case')} say little: read the intervals, not the means." * (n < FEW)
    prompted = set(study.cases["box"])
    boxes = " with boxes from the true masks (oracle boxes)" if prompted == {"oracle"} else ""
    against = f" and compared with {study.baseline}" if len(study.models) > 1 else ""
    left = [m.name for m in given if m.name not in study.models]
    simulated = (
        f" {', '.join(left)}: measured as exported, not as simulated in training." if left else ""
    )
    return (
        f"{counted(len(study.models), 'model')} on {counted(n, 'image')} of "
        f"{', '.join(sources)}{boxes}, measured at the original image size{against}."
        f"{simulated}{few}"
    )


def _provenance(study: Study, found: Sequence[Measured], bench: Bench) -> dict[str, str]:
    facts = provenance({})
    by_source: dict[str, int] = {}
    for record in bench.records:
        by_source[record.source] = by_source.get(record.source, 0) + 1
    told: dict[str, Any] = {
        "cases": ", ".join(f"{source} {n}" for source, n in sorted(by_source.items())),
        "target": ", ".join(bench.measured),
        "box": ", ".join(dict.fromkeys(study.cases["box"])),
        "machine": ", ".join(f"{k} {v}" for k, v in facts["machine"].items() if v is not None),
        "versions": ", ".join(f"{k} {v}" for k, v in facts["versions"].items()),
        "commit": facts["commit"] or "unknown",
    }
    for measured in found:
        described = description(measured.model)
        told[measured.model.name] = ", ".join(f"{k} {v}" for k, v in described.items())
    told["tables"] = ", ".join(
        f"{m.model.name} {sha256_file(m.folder / 'cases.parquet')[:16]}" for m in found
    )
    return {label: str(value) for label, value in told.items()}
