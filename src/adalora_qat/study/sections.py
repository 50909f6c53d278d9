"""The sections of a report that need more than per-case tables: images, weights, runs, sweeps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from adalora_qat.checkpoint import RunFolder
from adalora_qat.corpus.records import Record
from adalora_qat.evaluate.mask_files import load_truth, mask_path
from adalora_qat.imaging.geometry import load_image, load_mask, to_grey_uint8
from adalora_qat.report.case_figures import OutlinedCase, agreement, outlines, worst_ids
from adalora_qat.report.page import (
    Block,
    Case,
    Figure,
    Gallery,
    Section,
    anchor,
    case_table,
    drawn,
    reduced,
)
from adalora_qat.report.paper import WEIGHT_ERROR_MEAN, WEIGHT_ERROR_SD
from adalora_qat.report.robustness_figures import degradation_figure, jitter_figure, sweep_table
from adalora_qat.report.ssim import SsimCase, ssim_figure
from adalora_qat.report.tables import Column, Table, Value
from adalora_qat.report.weight_error import (
    WHOLE,
    weight_error_by_layer,
    weight_error_figure,
    weight_error_statistics,
    weight_error_table,
)
from adalora_qat.study.history import (
    STAGE_NAMES,
    curves_figure,
    rank_history,
    ranks_figure,
    training_history,
)
from adalora_qat.study.measure import Bench, Measured, some
from adalora_qat.study.models import Model, stage_name
from adalora_qat.study.study_report import curves_note
from adalora_qat.study.weights import layer_weights, telling_layers

SSIM_SIDE: Final = 1024
OUTLINE_SIDE: Final = 320
WORST: Final = 10
SHOWN_METRICS: Final = ("dsc", "iou", "nsd_deepmind2d_2px", "hd95_px")


@dataclass(frozen=True)
class Roles:
    """Which models the pictures compare.

    Attributes
    ----------
    baseline : what all models are compared with.
    reference : the float model that ``quantized`` was made from, or the baseline.
    quantized : the model that ships.
    """

    baseline: Measured
    reference: Measured
    quantized: Measured

    @property
    def distinct(self) -> list[Measured]:
        """The three, each once, in order."""
        each = (self.baseline, self.reference, self.quantized)
        return list(_by_name(each).values())


def roles_of(found: Sequence[Measured], baseline: str) -> Roles:
    """Choose the roles: the last quantized model ships, its run's stage 1 is its reference."""
    by_name = {m.model.name: m for m in found}
    base = by_name[baseline]
    quantized = next((m for m in reversed(found) if m.model.quantized), found[-1])
    run = quantized.model.run
    reference = next(
        (m for m in found if m.model.kind == "stage1" and run and m.model.run == run), base
    )
    return Roles(base, reference, quantized)


def load_case(
    record: Record,
    target: str,
    shown: Mapping[str, Measured],
    metrics: Sequence[str] = SHOWN_METRICS,
) -> Case | None:
    """Read an image with its truth, brought to the image's size, and what models made of it.

    Parameters
    ----------
    shown : name on the page → a model that was measured with masks kept.
    metrics : columns of the per-case table that the page shows.

    Returns
    -------
    The case, at its original size; None where a model has no mask of it.
    """
    paths = {name: mask_path(m.folder, record.id, target) for name, m in shown.items()}
    if not all(path.is_file() for path in paths.values()):
        return None
    image = to_grey_uint8(load_image(record.image))
    truth, _ = load_truth(record, target, image.shape)
    rows = {name: m.cases[m.cases["id"] == record.id].iloc[0] for name, m in shown.items()}
    values = {
        name: {key: float(row[key]) for key in metrics if pd.notna(row[key])}
        for name, row in rows.items()
    }
    first = next(iter(rows.values()))
    x0, y0, x1, y1 = (float(first[f"box_{edge}"]) for edge in ("x0", "y0", "x1", "y1"))
    facts = {"source": record.source, **({"class": record.label} if record.label else {})}
    masks = {name: load_mask(path) for name, path in paths.items()}
    return Case(record.id, image, truth, masks, values, facts, (x0, y0, x1, y1))


def _by_name(shown: Sequence[Measured]) -> dict[str, Measured]:
    return {m.model.name: m for m in shown}


def similarity_section(bench: Bench, roles: Roles) -> Section:
    """Draw the paper's Fig. 2 for the largest gain, the middle and the largest loss in Dice."""
    base, quantized = roles.baseline, roles.quantized
    names = (base.model.name, quantized.model.name)
    rows = []
    for record in telling_cases(bench.records, base, quantized):
        case = load_case(record, bench.target, _by_name([base, quantized]))
        if case is None or case.truth is None:
            continue
        small = reduced(case, side=SSIM_SIDE)
        if small.truth is not None:
            masks = (small.masks[names[0]], small.masks[names[1]])
            rows.append(SsimCase(record.id.rsplit("/", 1)[-1], small.image, small.truth, *masks))
    if not rows or names[0] == names[1]:
        return Section("ssim", "SSIM maps", ())
    figure = drawn(
        "fig-2-ssim",
        "Local similarity to the truth",
        "blue and vermilion in the last column: tissue that the quantized model gains or loses "
        f"against {names[0]}; pale means that quantization moved nothing there.",
        f"For {len(rows)} cases: the image, its truth, SSIM maps of {names[0]} and {names[1]}, "
        f"and their difference; computed at no more than {SSIM_SIDE} px.",
        ssim_figure(rows, *names),
    )
    said = (
        f"Cases chosen by the difference in DSC between {names[1]} and {names[0]}: the largest "
        "gain, the middle and the largest loss. An SSIM map compares the image cut out by the "
        f"true mask with the image cut out by the predicted one, at no more than {SSIM_SIDE} px."
    )
    return Section("ssim", "SSIM maps", (said, figure))


def telling_cases(records: Sequence[Record], base: Measured, other: Measured) -> list[Record]:
    """Return the cases of the largest gain, the middle and the largest loss in DSC."""
    a, b = other.cases.set_index("id")["dsc"], base.cases.set_index("id")["dsc"]
    order = (a - b).dropna().sort_values(kind="stable", ascending=False).index
    if not len(order):
        return []
    chosen = dict.fromkeys(str(order[i]) for i in (0, len(order) // 2, len(order) - 1))
    by_id = {record.id: record for record in records}
    return [by_id[name] for name in chosen]


def weight_section(model: Model, *, each: bool = False, paper: bool = False) -> Section:
    """Draw the paper's Fig. 3 for one quantized stage: whole model and by layer.

    Parameters
    ----------
    each : also draw the layers of the lowest, the middle and the highest correlation.
    paper : quote the paper's figures.
    """
    layers, stride = layer_weights(model.segmenter())
    statistics = weight_error_statistics(layers)
    whole = statistics[statistics["layer"] == WHOLE].iloc[0]
    told = f"μ = {whole['mean']:.1e}, σ = {whole['sd']:.1e}, r = {whole['correlation']:.5f}"
    part = "" if stride == 1 else f" Every {stride}th weight of each layer."
    theirs, figure = "", ""
    if paper:
        figure = " (the paper’s Fig. 3)"
        theirs = (
            f" The paper gives μ = {WEIGHT_ERROR_MEAN:.1e} and σ = {WEIGHT_ERROR_SD:.1e} for SAM "
            "ViT-B."
        )
    blocks: list[Block] = [
        f"{model.name}: {told} over {int(whole['n']):,} weights.{part}{theirs}",
        drawn(
            "fig-3-weight-error",
            f"Error of the weights, whole model{figure}",
            "where the histogram leaves the dashed normal for the mixture of uniforms, and the "
            "ends of the Q–Q plot: rounding errors are bounded, normal ones are not.",
            f"Histogram, FP32 against INT8, error by magnitude and Q–Q plot of all layers: {told}.",
            weight_error_figure(layers),
        ),
        drawn(
            "fig-3-by-layer",
            "Error of the weights by layer",
            "dots off the dotted line s/√12, whose errors are not rounding alone, and layers "
            "far above the others in 1 − r, which lose most.",
            f"Mean, standard deviation and 1 − correlation of {len(layers)} layers, in order.",
            weight_error_by_layer(statistics, paper=paper),
        ),
    ]
    by_layer = statistics[statistics["layer"] != WHOLE]["correlation"].tolist()
    for number, layer in enumerate(telling_layers(layers, by_layer) if each else ()):
        rank = ("lowest", "middle", "highest")[number]
        blocks.append(
            drawn(
                f"fig-3-layer-{number}",
                f"The layer with the {rank} correlation: {layer.name}",
                "a flat histogram, as rounding gives in a single layer; peaks at its ends are "
                "clipped or few weights.",
                f"The same four panels for the layer {layer.name}.",
                weight_error_figure([layer]),
            )
        )
    return Section(
        "weights", "Quantization error", (*blocks, weight_error_table(statistics, paper=paper))
    )


def training_section(runs: Sequence[RunFolder]) -> Section:
    """Draw loss, Dice and ranks of each run, and say how far Λ moved in stage 2."""
    blocks: list[Block] = []
    for run in runs:
        name = run.path.resolve().name
        history, ranks = training_history(run.path), rank_history(run.path)
        # Stage 1 is not AdaLoRA in every run: a baseline's is decoder fine-tuning.
        first = f"Stage 1: {stage_name(run.config, 'stage1')}"
        history["stage"] = history["stage"].replace(STAGE_NAMES["stage1"], first)
        if not history.empty:
            blocks.append(curves_figure(history, curves_note(history), name))
        if not ranks.empty:
            blocks += [ranks_figure(ranks, name), _rank_table(name, ranks)]
        moved = _movement(run, name)
        blocks += [moved] if moved else []
    return Section("training", "Training", tuple(blocks))


def _rank_table(name: str, ranks: pd.DataFrame) -> Table:
    grid = ranks.pivot_table(index="layer", columns="epoch", values="rank", sort=False)
    heads = [f"epoch {epoch}" if epoch else "start" for epoch in grid.columns]
    rows: list[tuple[Value, ...]] = [
        (str(layer), *(int(rank) for rank in values))
        for layer, values in zip(grid.index, grid.to_numpy(), strict=True)
    ]
    columns = (Column("Layer"), *(Column(head) for head in heads))
    caption = "Rank at the start and after each pruning; one budget serves all layers."
    return Table(f"rank-table-{anchor(name)}", f"Ranks, {name}", caption, columns, tuple(rows))


def _movement(run: RunFolder, name: str) -> str | None:
    file = run.stage("stage2") / "lambda_movement.json"
    if not file.is_file():
        return None
    layers = json.loads(file.read_text("utf-8"))
    if not layers:
        return None
    largest = max(float(layer["largest"]) for layer in layers)
    # Λ that was zero before has no relative movement.
    relative = max(float(layer["relative"] or 0) for layer in layers)
    return (
        f"{name}: stage 2 moved no singular value by more than {largest:.2e}, and no layer’s Λ by "
        f"more than {100 * relative:.2g} % of its length. Where that is next to nothing, stage 2 "
        "is close to quantization without training (PTQ)."
    )


def box_section(cases: pd.DataFrame) -> Section:
    """Draw Dice against the jitter of the box and without a prompt."""
    n = cases["id"].nunique()
    figure = drawn(
        "box-jitter",
        f"Dice and the box, n = {n}",
        f"how soon a line falls as the box gets worse, and how far below it stands without any; "
        f"bands are 95 % intervals of the mean over n = {n} cases.",
        "Dice by the jitter of the box from 0 to 40 px of the original, and with no prompt.",
        jitter_figure(cases),
    )
    table = sweep_table(cases, "box-jitter-table", "Dice and the box")
    return Section("boxes", "Box prompt", (figure, table))


def robustness_section(cases: pd.DataFrame) -> Section:
    """Draw Dice against noise, blur, contrast, rotation, JPEG and lower resolution."""
    n = cases["id"].nunique()
    figure = drawn(
        "degradations",
        f"Dice on degraded images, n = {n}",
        "whether the lines part to the right: there the quantized model bears less than the "
        f"float one; bands are 95 % intervals of the mean over n = {n} cases.",
        "Dice by the strength of noise, blur, contrast, rotation, JPEG and lower resolution.",
        degradation_figure(cases),
    )
    table = sweep_table(cases, "degradations-table", "Dice on degraded images")
    return Section("robustness", "Robustness", (figure, table))


def worst_section(bench: Bench, roles: Roles) -> Section:
    """Draw the ten worst cases of the model that ships, with outlines."""
    model = roles.quantized.model.name
    shown = [roles.quantized]
    if roles.baseline.model.name != model:
        shown.insert(0, roles.baseline)
    by_id = {record.id: record for record in bench.records}
    cases = []
    for name in worst_ids(roles.quantized.cases, model, count=WORST):
        case = load_case(by_id[name], bench.target, _by_name(shown))
        if case is None:
            continue
        small = reduced(case, side=OUTLINE_SIDE)
        if small.truth is not None:
            dice = case.metrics[model].get("dsc", float("nan"))
            cases.append(
                OutlinedCase(name, f"DSC {dice:.4f}", small.image, small.truth, small.masks)
            )
    if not cases:
        return Section("worst", "Worst cases", ())
    figure = drawn(
        "worst-cases",
        f"The {len(cases)} worst cases of {model}",
        "what they have in common: an image that is dark or cut off, disease, or a truth that is "
        "itself in doubt.",
        f"{len(cases)} images with the outlines of the truth and of the models, worst first.",
        outlines(cases),
    )
    return Section("worst", "Worst cases", (figure,))


def agreement_figure(bench: Bench, found: Measured) -> Figure | None:
    """Draw the Bland–Altman plot of the area as a share of the image."""
    cases = found.cases[found.cases["prediction_area_px"].notna()]
    if len(cases) < 3:
        return None
    size = cases["height"].astype(float) * cases["width"].astype(float)
    truth = 100 * cases["truth_area_px"].astype(float) / size
    words = bench.target.replace("_", " ")
    answer = 100 * cases["prediction_area_px"].astype(float) / size
    quantity = f"{words} area (% of the image)"
    return drawn(
        "area-agreement",
        f"Area as measured and as it is, {found.model.name}",
        "a bias off zero, and dots that leave the band as the area grows: systematic over- or "
        "underestimation.",
        f"Bland–Altman plot of the {words} area of {len(cases)} cases.",
        agreement(truth.tolist(), answer.tolist(), quantity),
    )


def gallery_of(bench: Bench, roles: Roles, most: int) -> tuple[Gallery, Table] | None:
    """Return the cases to look through, at most ``most``, the worst among them, and their table."""
    shown = roles.distinct
    names = tuple(m.model.name for m in shown)
    compared = (names[-2], names[-1]) if len(names) > 1 else None
    worst = set(worst_ids(roles.quantized.cases, names[-1], count=min(WORST, most)))
    spread = [r.id for r in some(bench.records, most) if r.id not in worst]
    kept = worst | set(spread[: max(0, most - len(worst))])
    cases = []
    for number, record in enumerate(bench.records, start=1):
        case = load_case(record, bench.target, _by_name(shown)) if record.id in kept else None
        if case is not None:
            cases.append(reduced(case, compared))
        bench.watch.progress(number, len(bench.records), "pictures")
    if not cases:
        return None
    title = "Cases" if len(cases) == len(bench.records) else f"{len(cases)} cases"
    gallery = Gallery("cases", title, tuple(cases), names, compared)
    return gallery, case_table(gallery, SHOWN_METRICS)
