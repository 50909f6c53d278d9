"""From a study to the content of its report page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from adalora_qat.evaluate.summaries import POOLED
from adalora_qat.report.case_figures import dice_by_area, dice_by_group, reliability
from adalora_qat.report.figures import size_latency_dice
from adalora_qat.report.page import (
    Block,
    Fact,
    Figure,
    Gallery,
    ReportContent,
    Section,
    drawn,
)
from adalora_qat.report.tables import Column, Table
from adalora_qat.study.study import Study, shown


def study_content(
    title: str,
    lede: str,
    study: Study,
    figures: Sequence[Figure] = (),
    galleries: Sequence[Gallery] = (),
    tables: Sequence[Table] = (),
    provenance: Mapping[str, str] | None = None,
    sections: Sequence[Section] = (),
) -> ReportContent:
    """Assemble the page of a comparison: the paper's tables, verdicts, figures and cases.

    Parameters
    ----------
    figures : further figures (SSIM maps, weight error, robustness), in order.
    galleries : cases to look through.
    tables : further tables, such as the weight error's.
    sections : further sections, placed before the galleries.
    """
    segmentation, differences, efficiency, ablation = study.tables
    dice = [
        said
        for said, c in zip(study.verdicts, study.comparisons, strict=True)
        if c.by == POOLED and c.metric == "dsc"
    ]
    body = [
        Section("segmentation", "Segmentation", (segmentation,)),
        # A single model has nothing to differ from.
        Section(
            "differences", "Differences", (*dice, *([differences] if differences.rows else []))
        ),
        Section("efficiency", "Efficiency", (efficiency, *_front(study))),
        Section("ablation", "Ablation", (ablation,)),
        Section("by-case", "Across cases", tuple(case_figures(study.cases))),
        Section("further", "Further figures", (*figures, *tables)),
        *sections,
        *(Section(f"{g.slug}-section", g.title, (g,)) for g in galleries),
    ]
    return ReportContent(
        title,
        lede,
        tuple(section for section in body if section.blocks),
        headline(study),
        dict(provenance or {}),
        {"Every comparison in words": "\n\n".join(study.verdicts)} if study.verdicts else {},
    )


def headline(study: Study) -> tuple[Fact, ...]:
    """Return one figure a model: its difference in DSC to the baseline, and what is shown."""
    signed = Column("", 4, signed=True)
    return tuple(
        Fact(
            f"Δ DSC, {c.model_a}",
            signed.shown(c.mean_difference),
            f"{shown(c)} against {c.model_b}, n = {c.n}",
        )
        for c in study.comparisons
        if c.metric == "dsc" and c.by == POOLED
    )


def case_figures(cases: pd.DataFrame) -> list[Figure]:
    """Return the figures that every per-case table allows: by class, by set, by area, belief."""
    found = []
    for column, name in (("label", "class"), ("source", "data set")):
        if cases[column].nunique(dropna=False) > 1:
            found.append(
                drawn(
                    f"dice-by-{column}",
                    f"Dice by {name}",
                    f"a {name} whose box sits lower or spreads wider for every model: there the "
                    "cases are hard, not the model weak.",
                    f"Box plots of Dice by {name} and model, every case a point.",
                    dice_by_group(cases, column),
                )
            )
    found.append(
        drawn(
            "dice-by-area",
            "Dice by area",
            "whether small structures pull the line down: Dice punishes the same contour error "
            "more where the area is small.",
            "Dice against the area of the truth, a line of group means for each model.",
            dice_by_area(cases),
        )
    )
    if cases["score"].notna().any():
        found.append(
            drawn(
                "reliability",
                "Predicted against true IoU",
                "lines below the diagonal, where a model trusts its masks more than it should.",
                "IoU as predicted by each model against the IoU that was measured.",
                reliability(cases),
            )
        )
    return found


def _front(study: Study) -> list[Block]:
    dice = study.cases.groupby("model", sort=False)["dsc"].mean()
    table = pd.DataFrame(
        {
            "name": study.models,
            "bytes": [study.facts[m].bytes for m in study.models],
            "latency_ms": [study.facts[m].latency_ms for m in study.models],
            "dsc": [float(dice[m]) for m in study.models],
        }
    )
    table[["bytes", "latency_ms"]] = table[["bytes", "latency_ms"]].astype(float)
    table = table[table["bytes"].notna()]
    if table.empty:
        return []
    return [
        drawn(
            "front",
            "Size, latency and Dice",
            "the upper left corner: small or fast, and as exact. Dark rims mark models that no "
            "other beats in both.",
            "Dice against bytes on disk and against CPU latency, a mark for each model.",
            size_latency_dice(table),
        )
    ]
