"""The study's page: its tables in Markdown, made from the results alone.

python benchmarks/study/tables.py results/study      # writes results/study/README.md again
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import beyond
import crossing
from lookup import Entry, Page, difference, four, shown, source, spread, table

from adalora_qat.config import RunConfig
from adalora_qat.files import write_text
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


def write_page(out: Path) -> None:
    """Write ``README.md`` of the results' folder."""
    page = Page(out)
    summary, missing = page.summary, page.summary["missing"]
    parts: list[tuple[str, str, Callable[[Page], str]]] = [
        ("Table 1: segmentation", "table1", segmentation),
        ("Tables 2 and 3: what trains", "table3", ablation),
        ("Quantization", "quantization", quantization),
        ("Boxes", "boxes", boxes),
        ("From one hospital to the other", "crossed", crossing.crossed),
        ("INT8 on the hospital that it has not seen", "crossings", crossing.crossings),
        ("Other hospitals", "external", beyond.external),
        ("Three organs", "organs", beyond.organs),
        ("Films made worse", "worse", beyond.worse_films),
        ("Ranks over seeds", "ranks", beyond.ranks),
        ("What stage 2 moves", "movement", beyond.movement),
        ("The search on validation", "search", beyond.search),
        ("The same seed again", "repeats", beyond.repeats),
    ]
    text = ["# The study", "", TEXT["head"], ""]
    for title, words, made in parts:
        text += [f"## {title}", "", TEXT[words], "", made(page), ""]
    text += ["## Not run", "", ", ".join(missing) if missing else "Nothing is missing.", ""]
    verdicts = [
        f"- `{c['row']}`: {c['verdict']}" for c in summary["comparisons"] if "/test/" in c["row"]
    ]
    text += ["## Verdicts", "", TEXT["verdicts"], "", *verdicts, ""]
    write_text(out / "README.md", "\n".join(text))


TEXT = {
    "head": "Written by `python benchmarks/study/tables.py results/study` from `summary.json`, "
    "which `benchmarks/study/collect.py` made. LiteMedSAM at 256 px, JSRT + Shenzhen, 645 / 81 / "
    "80 images, every metric at the original size. Commands, seconds and machines stand in "
    "`jobs.json` and `training.json`, every case in `cases/`. Columns headed “paper” are quoted: "
    "other images, another backbone. Quantized rows are simulations of the integers in PyTorch; "
    "the runtime's own figures stand in `results/runtime` and in the model card. The provenance "
    "names the checkout that the GPU machine's copy came from. The trees were 340e279 for most of "
    "seed 0; b70f305 for seed 0 of `adalora` and of what starts from it, `auto` and `w4a8`; "
    "f824f1e for seeds 1 and 2 of what trains in the table of quantization, of decoder and full "
    "fine-tuning, encoder-only LoRA and one pruning, the longer schedules, `organs` and nnU-Net "
    "across hospitals; 0ac876a for everything else, on a host with four H200s. "
    "TinyViT's own window kernel ran in all bf16 runs, also where `attention: sdpa` is written.",
    "table1": "Boxes: `oracle` is drawn from the true mask; `none` means that the model takes no "
    "box. Baselines are trained from random weights: ImageNet weights could not be had.",
    "table3": "Trainable parameters as counted from the model after pruning, against the whole "
    "model. Bytes are of the real file that ships.",
    "quantization": "Differences are paired by case, seeds averaged, with bootstrap intervals; "
    "equivalence and non-inferiority by one-sided tests corrected for skewness, Holm-adjusted "
    "within each question (against decoder fine-tuning, stage 1, PTQ) and set.",
    "boxes": "The same models, other boxes at the test.",
    "crossed": "Trained and validated on one source; the other is tested whole. The same "
    "augmentation for all but nnU-Net, which has its own. *Longer* is 45 epochs instead of 15 and "
    "an average of the weights; *exact boxes* are exact in training too, where the recipe moves "
    "each edge by up to 5 px.",
    "crossings": "Paired by film, on all films of the other hospital; Holm-adjusted within each "
    "direction.",
    "worse": "Mean Dice of 24 test films, seed 1, at the two strongest settings of each kind; all "
    "settings stand in `degraded/`. The oracle's box is drawn from the true mask, after the "
    "film has moved; the shipped model finds its own, U-Net takes none. These two alone were "
    "trained with augmentation. The shipped model's sweep: `python "
    "benchmarks/study/robustness.py src/adalora_qat/weights/lungs-int8.onnx DATA "
    "results/study/degraded/shipped_automatic.csv --box automatic`.",
    "ranks": "The same budget, other seeds: the ranks of `adalora` after the last pruning.",
    "movement": "Λ after stage 2 against Λ before, where Λ trains.",
    "search": "Settings that were tried, looked at on validation alone: mean over a row's seeds. "
    "Between hospitals validation decides, above. On both sources together the tables keep the "
    "recipes' own settings.",
    "repeats": "Models are not kept: `w4a8` with seeds 1 and 2 starts from `adalora` trained again "
    "with these seeds. A GPU adds in no fixed order, so that the same seed is not the same run.",
    "external": "Models of the main split on two sets that were never trained on; their masks "
    "were made by models (COVID-19 Radiography) or by humans and models (COVID-QU-Ex).",
    "organs": "One model, three boxes an image, trained on JSRT.",
    "verdicts": "Paired comparisons on the test split, in words. Baseline: decoder fine-tuning; "
    "for quantized rows also their stage 1 and their PTQ.",
}


def _config(page: Page, entry: Entry) -> RunConfig:
    row = page.rows[entry["row"]]
    return load_config(row.recipe, row.overrides)


def _published(page: Page, entry: Entry) -> str | None:
    """Return the paper's row that a row's recipe and stage answer to."""
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


def main() -> None:
    """Write the page again."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    write_page(parser.parse_args().out)


if __name__ == "__main__":
    main()
