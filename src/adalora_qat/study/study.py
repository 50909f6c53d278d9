"""Several models on the same cases: the paper's Tables 1, 2 and 3, and what the tests say.

Everything is built from per-case tables and plain facts about each model; nothing is
measured here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from adalora_qat.errors import DataError
from adalora_qat.evaluate.compare import compare_groups, holm_adjusted
from adalora_qat.evaluate.comparison import Comparison, verdict
from adalora_qat.evaluate.metrics import METRICS
from adalora_qat.evaluate.summaries import POOLED, summarize
from adalora_qat.files import write_json, write_text
from adalora_qat.report.paper import ABLATIONS, ATTRIBUTION, MODELS, PublishedModel
from adalora_qat.report.tables import (
    MISSING,
    Column,
    Spread,
    Table,
    Value,
    metric_digits,
    write_tables,
)

SCORES: Final = ("dsc", "iou", "nsd_deepmind2d_2px", "nsd_medsam_2px")


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model besides its cases; None where it was not counted or measured.

    Attributes
    ----------
    total, trainable : parameters of the whole model, and those that training moved.
    bytes : of the real file that ships, whole model.
    latency_ms : CPU time for one image, as measured beside the others in one run.
    encoder, decoder : how each part was trained ("AdaLoRA", "frozen", "full, INT8").
    paper : key in ``paper.MODELS``/``ABLATIONS`` of the published counterpart, None for none.
    """

    total: int | None = None
    trainable: int | None = None
    bytes: int | None = None
    latency_ms: float | None = None
    encoder: str = MISSING
    decoder: str = MISSING
    paper: str | None = None

    def __post_init__(self) -> None:
        if self.paper is not None and self.paper not in {*MODELS, *ABLATIONS}:
            raise DataError(
                f"paper={self.paper!r} is no published model; known: "
                f"{', '.join(sorted({*MODELS, *ABLATIONS}))}"
            )


@dataclass(frozen=True)
class Study:
    """The outcome of comparing models with one baseline.

    Attributes
    ----------
    baseline : the model that all others are compared with.
    cases : every model's per-case table, one below the other, ``model`` as named here.
    facts : model → facts.
    comparisons : pooled and by group, Holm-adjusted as one family.
    latency_note : how the latencies among the facts were taken.
    paper : whether tables quote the paper's figures beside ours.
    """

    baseline: str
    cases: pd.DataFrame
    facts: Mapping[str, ModelFacts]
    comparisons: tuple[Comparison, ...]
    latency_note: str = ""
    paper: bool = False

    @property
    def models(self) -> list[str]:
        """The models, in the order given."""
        return list(dict.fromkeys(self.cases["model"]))

    @property
    def tables(self) -> tuple[Table, ...]:
        """The paper's Tables 1, 2 and 3, and the differences behind Table 1."""
        return (
            segmentation_table(self),
            difference_table(self.comparisons),
            efficiency_table(self),
            ablation_table(self),
        )

    @property
    def verdicts(self) -> tuple[str, ...]:
        """What each comparison shows, in words."""
        return tuple(verdict(comparison) for comparison in self.comparisons)


def compare_models(
    cases: Mapping[str, pd.DataFrame],
    baseline: str,
    facts: Mapping[str, ModelFacts] | None = None,
    metrics: Sequence[str] = SCORES,
    by: Sequence[str] = ("source", "label"),
    margins: Mapping[str, float] | None = None,
    latency_note: str = "",
    *,
    paper: bool = False,
    **options: Any,
) -> Study:
    """Compare every model with the baseline on the same cases.

    Parameters
    ----------
    cases : name of the model, as it shall stand in the tables → its per-case table.
    baseline : one of these names.
    facts : name → facts; a model without any has dashes in Tables 2 and 3.
    metrics, by, margins, options : as for ``statistics.compare_groups``.
    latency_note : how the facts' latencies were taken, for the caption of Table 2.
    paper : quote the paper's figures in columns of their own.

    Raises
    ------
    DataError
        If there are fewer than two models, the baseline is not among them, facts name
        another model, or tables cannot be paired.
    """
    if len(cases) < 2 or baseline not in cases:
        raise DataError(
            f"give at least two models, the baseline among them: got {', '.join(cases) or 'none'}; "
            f"baseline {baseline!r}"
        )
    unknown = [name for name in facts or {} if name not in cases]
    if unknown:
        raise DataError(f"facts of {', '.join(unknown)}, but these models have no cases")
    named = {name: table.assign(model=name) for name, table in cases.items()}
    found = [
        comparison
        for name in cases
        if name != baseline
        for comparison in compare_groups(
            named[name], named[baseline], metrics, margins, by, **options
        )
    ]
    return Study(
        baseline,
        pd.concat(named.values(), ignore_index=True),
        {name: (facts or {}).get(name, ModelFacts()) for name in cases},
        # One family over all models: each pair alone would be corrected too little.
        holm_adjusted(found),
        latency_note,
        paper,
    )


def write_study(study: Study, folder: Path) -> list[Path]:
    """Write the tables (Markdown, LaTeX, CSV), the verdicts and the comparisons as JSON."""
    written = write_tables(study.tables, folder)
    lines = "\n".join(f"- {line}" for line in study.verdicts)
    write_text(folder / "verdicts.md", f"Baseline: {study.baseline}\n\n{lines}\n")
    write_json(folder / "comparisons.json", comparison_values(study))
    return [*written, folder / "verdicts.md", folder / "comparisons.json"]


def comparison_values(study: Study) -> list[dict[str, Any]]:
    """Return every comparison as plain values for JSON, null for what is not a number."""
    return [_finite(asdict(comparison)) for comparison in study.comparisons]


def segmentation_table(study: Study) -> Table:
    """Return Table 1: DSC, IoU and both variants of NSD, mean ± sd, with median and IQR."""
    columns = [Column("Model"), Column("n"), Column("dropped")]
    columns += [Column(METRICS[name].title, metric_digits(name)) for name in SCORES]
    columns += [Column("DSC median [IQR]")]
    if study.paper:
        columns += [Column(f"{name}, paper", 4, faint=True) for name in ("DSC", "IoU", "NSD")]
    rows: list[tuple[Value, ...]] = []
    for model in study.models:
        part = study.cases[study.cases["model"] == model]
        found = {name: summarize(part[name]) for name in SCORES}
        dice, paper = found["dsc"], MODELS.get(study.facts[model].paper or "")
        cells: list[Value] = [model, dice.n, dice.dropped]
        cells += [Spread(found[name].mean, found[name].sd) for name in SCORES]
        cells += [f"{dice.median:.4f} [{dice.q1:.4f}, {dice.q3:.4f}]" if dice.n else None]
        if study.paper:
            cells += [paper.dsc, paper.iou, paper.nsd] if paper else [None] * 3
        rows.append(tuple(cells))
    caption = (
        f"Mean ± standard deviation over cases at the original image size. {_terms(study.cases)} "
        "NSD depends on the code that computes it, so it is given by two definitions."
    )
    if study.paper:
        caption += f" The paper names neither code nor resolution of its NSD. {ATTRIBUTION}"
    return Table(
        "table-1-segmentation", "Segmentation performance", caption, tuple(columns), tuple(rows)
    )


def difference_table(comparisons: Sequence[Comparison]) -> Table:
    """Return every paired comparison: effect, interval, tests, and what they allow to say."""
    columns = (
        Column("Model"), Column("Metric"), Column("Group"), Column("n"), Column("units"),
        Column("dropped"), Column("Δ mean", 4, signed=True), Column("95 % interval"),
        Column("Shown"), Column("rank-biserial", 2, signed=True), Column("Wilcoxon p (Holm)"),
        Column("TOST p (Holm)"), Column("Margin", 3),
    )  # fmt: skip
    rows = tuple(
        (
            c.model_a, METRICS[c.metric].title,
            "all" if c.by == POOLED else f"{c.by}: {c.group}", c.n, c.n_clusters, len(c.dropped),
            c.mean_difference, _interval(c), shown(c), c.wilcoxon.rank_biserial,
            _p(c.wilcoxon_p_holm), _p(c.tost_p_holm), c.margin,
        )
        for c in comparisons
    )  # fmt: skip
    against = ", ".join(dict.fromkeys(c.model_b for c in comparisons))
    caption = (
        "Δ = model − baseline, paired by case; BCa bootstrap interval of the mean, by patient "
        "where known (units). “No difference detected” does not mean that there is none: that "
        "is what equivalence (TOST, ± margin) tests. p-values are Holm-adjusted over all rows."
    )
    return Table("table-1-differences", f"Differences to {against}", caption, columns, rows)


def shown(comparison: Comparison) -> str:
    """Return in a few words what a comparison shows; the whole verdict says it fully."""
    c = comparison
    if c.identical:
        return "identical"
    words = []
    if c.different:
        upward = c.wilcoxon.rank_biserial > 0
        words.append("better" if upward == c.higher_is_better else "worse")
    if c.equivalent:
        words.append("equivalent")
    elif c.noninferior:
        words.append("non-inferior")
    return ", ".join(words) if words else "undecided"


def efficiency_table(study: Study) -> Table:
    """Return Table 2: parameters, reduction, DSC, with bytes and latency added."""
    columns = [
        Column("Model"), Column("Total (M)", 2), Column("Trainable (M)", 2),
        Column("Reduction (×)", 1), Column("DSC (%)", 2), Column("File (MB)", 1),
        Column("CPU latency (ms)", 0),
    ]  # fmt: skip
    if study.paper:
        quoted = (("Total (M)", 1), ("Trainable (M)", 1), ("Reduction (×)", 1), ("DSC (%)", 2))
        columns += [Column(f"{name}, paper", digits, faint=True) for name, digits in quoted]
    rows: list[tuple[Value, ...]] = []
    for model in study.models:
        facts = study.facts[model]
        paper = MODELS.get(facts.paper or "", PublishedModel(model))
        cells: list[Value] = [
            model, _over(facts.total, 1e6), _over(facts.trainable, 1e6), _reduction(facts),
            _dice_percent(study, model), _over(facts.bytes, 1e6), facts.latency_ms,
        ]  # fmt: skip
        if study.paper:
            cells += [paper.total_millions, paper.trainable_millions, paper.reduction]
            cells += [paper.dsc_percent]
        rows.append(tuple(cells))
    said = [
        "Total counts the whole model (encoder, prompt encoder, decoder, adapters). Reduction = "
        "total / trainable. File: bytes of the file that ships, 1 MB = 10⁶ bytes."
    ]
    if any(study.facts[model].latency_ms is not None for model in study.models):
        said.append("Latencies compare only within one run on one machine.")
    said += [study.latency_note] if study.latency_note else []
    if study.paper:
        said.append(f"The paper’s 89.7 M is SAM ViT-B’s image encoder alone. {ATTRIBUTION}")
    return Table(
        "table-2-efficiency", "Parameter efficiency", " ".join(said), tuple(columns), tuple(rows)
    )


def ablation_table(study: Study) -> Table:
    """Return Table 3: what was trained in encoder and decoder, share trained, Dice."""
    columns = [
        Column("Method"), Column("Encoder"), Column("Decoder"), Column("Train (%)", 1),
        Column("Dice (%)", 2),
    ]  # fmt: skip
    if study.paper:
        columns += [
            Column("Method, paper", faint=True), Column("Train (%), paper", 1, faint=True),
            Column("Dice (%), paper", 2, faint=True),
        ]  # fmt: skip
    rows: list[tuple[Value, ...]] = []
    for model in study.models:
        facts = study.facts[model]
        share = None
        if facts.total and facts.trainable is not None:
            share = 100 * facts.trainable / facts.total
        paper = ABLATIONS.get(facts.paper or "")
        theirs: list[Value] = (
            [paper.method, paper.train_percent, paper.dice_percent] if paper else [None] * 3
        )
        ours: list[Value] = [model, facts.encoder, facts.decoder, share]
        ours.append(_dice_percent(study, model))
        rows.append((*ours, *theirs) if study.paper else tuple(ours))
    caption = "Train (%): trained parameters of all parameters."
    if study.paper:
        caption += f" {ATTRIBUTION}"
    return Table(
        "table-3-ablation", "Component-wise ablation", caption, tuple(columns), tuple(rows)
    )


def _dice_percent(study: Study, model: str) -> float:
    return 100 * summarize(study.cases.loc[study.cases["model"] == model, "dsc"]).mean


def _reduction(facts: ModelFacts) -> float | None:
    if not facts.total or not facts.trainable or facts.trainable >= facts.total:
        return None
    return facts.total / facts.trainable


def _over(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _terms(cases: pd.DataFrame) -> str:
    """Say which prompts, targets and image sizes stand behind the numbers."""
    boxes = ", ".join(
        f"{box} ({', '.join(dict.fromkeys(part['model']))})"
        for box, part in cases.groupby("box", sort=False)
    )
    if cases["box"].nunique() == 1:
        boxes = str(cases["box"].iloc[0])
    targets = ", ".join(sorted(set(cases["target"])))
    low, high = cases[["height", "width"]].min().min(), cases[["height", "width"]].max().max()
    sizes = f"{low} px" if low == high else f"{low} to {high} px"
    return f"Prompt: {boxes}; target: {targets}; image sides {sizes}."


def _interval(c: Comparison) -> str | None:
    if math.isnan(c.ci_low):
        return None
    column = Column("", 4, signed=True)
    return f"{column.shown(c.ci_low)} to {column.shown(c.ci_high)}"


def _p(value: float) -> str | None:
    if math.isnan(value):
        return None
    return "<0.0001" if value < 1e-4 else f"{value:.4f}"


def _finite(value: Any) -> Any:
    """Replace what JSON cannot hold (NaN, infinity) by null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
