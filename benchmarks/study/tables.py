"""The study's tables that repeat the paper's, in Markdown."""

from __future__ import annotations

from lookup import Entry, Page, difference, four, shown, source, spread, table

from adalora_qat.config import RunConfig
from adalora_qat.recipe import load_config
from adalora_qat.report.paper import ABLATIONS, MODELS, published_row

TABLE_1 = (
    "nnunet", "deeplabv3plus", "segformer", "unet", "deeplabv3plus-crop", "segformer-crop",
    "unet-crop", "zero-shot", "decoder-only", "d-qat", "full-qat", "int8-all", "w4a8", "auto",
    "full-finetuning",
)  # fmt: skip
TABLE_3 = (
    "zero-shot", "decoder-only", "lora-r8-encoder", "lora-r8", "lora-r16", "lora-r32", "adalora",
    "single-event", "peft-schedule", "full-finetuning", "d-qat", "full-qat", "int8-all", "w4a8",
)  # fmt: skip
BOXES = ("oracle", "oracle+jitter10", "whole-image", "automatic")


def segmentation(page: Page) -> str:
    """Return Table 1: metrics of every model at the original size."""
    head = (
        "Model", "Box", "Seeds", "DSC, mean ± sd over seeds", "JSRT", "Shenzhen", "IoU",
        "NSD (DeepMind 2D, 2 px)", "NSD (MedSAM, 2 px)", "DSC, paper", "NSD, paper",
    )  # fmt: skip
    lines = []
    for name in TABLE_1:
        entry = page.first(name)
        if entry is None:
            lines.append((page.rows[name].title, *["not run"] * 2, *["–"] * 8))
            continue
        paper = MODELS.get(_published(page, entry) or "")
        lines.append(
            (
                entry["title"], entry["box"], len(entry["seeds"]), spread(entry),
                *_sources(entry), four(entry["iou"]), four(entry["nsd_deepmind2d_2px"]),
                four(entry["nsd_medsam_2px"]),
                four(paper.dsc.mean) if paper and paper.dsc else "–",
                four(paper.nsd.mean) if paper and paper.nsd else "–",
            )
        )  # fmt: skip
    return table(head, lines)


def ablation(page: Page) -> str:
    """Return Table 3 and the text's ablations, with Table 2's columns."""
    head = (
        "Method", "Encoder", "Decoder", "Total (M)", "Trainable (M)", "Train %", "Bytes (MB)",
        "Seeds", "DSC, mean ± sd over seeds", "Train %, paper", "DSC, paper",
    )  # fmt: skip
    lines = []
    for name in TABLE_3:
        entry = page.first(name)
        if entry is None:
            lines.append((page.rows[name].title, *["–"] * 6, "not run", *["–"] * 3))
            continue
        facts = _facts(page, entry)
        total, trained = facts.get("total"), facts.get("trainable")
        paper = ABLATIONS.get(_published(page, entry) or "")
        lines.append(
            (
                entry["title"], facts.get("encoder", "–"), facts.get("decoder", "–"),
                _millions(total), _millions(trained),
                f"{100 * trained / total:.1f}" if total and trained is not None else "–",
                f"{facts['bytes'] / 1e6:.1f}" if facts.get("bytes") else "–",
                len(entry["seeds"]), spread(entry),
                paper.train_percent if paper else "–",
                f"{paper.dice_percent / 100:.4f}" if paper else "–",
            )
        )  # fmt: skip
    return table(head, lines)


def quantization(page: Page) -> str:
    """Return PTQ beside QAT for every policy, and the difference with its interval."""
    head = ("Policy", "PTQ", "QAT", "QAT − PTQ [95 % CI]", "QAT − stage 1 [95 % CI]",
            "equivalent to stage 1 at ±0.005", "not worse by 0.005")  # fmt: skip
    lines = []
    for name, row in page.rows.items():
        ptq, qat = page.first(name, "ptq"), page.first(name, "stage2")
        if ptq is None or qat is None:
            continue
        against = page.comparison(qat, row.stage1 or name, "stage1")
        lines.append(
            (
                row.title, spread(ptq), spread(qat),
                difference(page.comparison(qat, name, "ptq")), difference(against),
                shown(against, "equivalent"), shown(against, "noninferior"),
            )
        )  # fmt: skip
    return table(head, lines)


def boxes(page: Page) -> str:
    """Return Dice by the kind of box at the test."""
    found = [
        (name, stage)
        for name in page.rows
        for stage in ("stage1", "stage2")
        if sum(page.find(name, stage, box=box) is not None for box in BOXES) > 1
    ]
    lines = [
        (f"{page.rows[name].title}, {stage}",
         *(_mean_of(page.find(name, stage, box=box)) for box in BOXES))
        for name, stage in found
    ]  # fmt: skip
    return table(("Model", *BOXES), lines)


def _config(page: Page, entry: Entry) -> RunConfig:
    row = page.rows[entry["row"]]
    return load_config(row.recipe, row.overrides)


def _published(page: Page, entry: Entry) -> str | None:
    """Return the paper's row that a row's recipe and stage correspond to."""
    return published_row(_config(page, entry), entry["stage"])


def _facts(page: Page, entry: Entry) -> Entry:
    """Return the facts of an entry; a stage of no epochs trained nothing, whatever it froze."""
    if _config(page, entry).stage1.epochs:
        return dict(entry["facts"])
    return {**entry["facts"], "trainable": 0, "encoder": "frozen", "decoder": "frozen"}


def _millions(value: int | None) -> str:
    return "–" if value is None else f"{value / 1e6:.2f}"


def _mean_of(entry: Entry | None) -> str:
    return "–" if entry is None else four(entry["dice_mean"])


def _sources(entry: Entry) -> tuple[str, str]:
    return four(source(entry, "jsrt")), four(source(entry, "shenzhen"))
