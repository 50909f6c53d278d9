"""The study's pages in Markdown, made from the results alone: findings and tables, provenance.

python benchmarks/study/page.py results/study    # writes README.md and PROVENANCE.md again
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import beyond
import crossing
from findings import findings
from lookup import Page
from seeds import seed_by_seed
from tables import ablation, boxes, quantization, segmentation

from adalora_qat.files import write_text

Part = tuple[str, str, Callable[[Page], str]]
TABLES: tuple[Part, ...] = (
    ("Segmentation (the paper's Table 1)", "table1", segmentation),
    ("What trains (the paper's Tables 2 and 3)", "table3", ablation),
    ("Quantization", "quantization", quantization),
    ("Quantization, seed by seed", "seeds", seed_by_seed),
    ("Boxes", "boxes", boxes),
    ("From one hospital to the other", "crossed", crossing.crossed),
    ("Two COVID-19 sets", "external", beyond.external),
    ("Three organs", "organs", beyond.organs),
    ("Degraded images", "degraded", beyond.degraded_images),
)
DETAILS: tuple[Part, ...] = (
    ("The search on validation", "search", beyond.search),
    ("INT8 on the other hospital, pair by pair", "crossings", crossing.crossings),
    ("Ranks over seeds", "ranks", beyond.ranks),
    ("What stage 2 moves", "movement", beyond.movement),
    ("The same seed again", "repeats", beyond.repeats),
)


def write_page(out: Path) -> None:
    """Write ``README.md`` and ``PROVENANCE.md`` of the results' folder."""
    page = Page(out)
    head = ["# The study", "", TEXT["head"], "", "## Findings", "", findings(page), ""]
    write_text(out / "README.md", "\n".join([*head, *_sections(page, TABLES)]))
    summary, missing = page.summary, page.summary["missing"]
    verdicts = [
        f"- `{c['row']}`: {c['verdict']}" for c in summary["comparisons"] if "/test/" in c["row"]
    ]
    text = ["# Provenance and detail", "", TEXT["provenance"], "", *_sections(page, DETAILS)]
    text += ["## Not run", "", ", ".join(missing) if missing else "Nothing is missing.", ""]
    text += ["## Verdicts", "", TEXT["verdicts"], "", *verdicts, ""]
    write_text(out / "PROVENANCE.md", "\n".join(text))


def _sections(page: Page, parts: tuple[Part, ...]) -> list[str]:
    lines: list[str] = []
    for title, words, made in parts:
        lines += [f"## {title}", "", TEXT[words], "", made(page), ""]
    return lines


TEXT = {
    "head": "The rows of the paper's tables, on radiographs that anyone can get, in one harness. "
    "LiteMedSAM at 256 px; JSRT and Shenzhen, 645 training, 81 validation and 80 test images; "
    "every metric at the original size. Columns headed “paper” are quoted: other images, another "
    "backbone. This page is written by `benchmarks/study/page.py` from `summary.json` and the "
    "per-image tables in `cases/`. Search, machines, commits and every verdict: "
    "[provenance and detail](PROVENANCE.md).",
    "table1": "Box `oracle`: drawn from the true mask. `none`: the model takes no box. “±” is over "
    "training seeds on one split; other test images would move a mean by more (Findings). "
    "Baselines start from random weights: ImageNet weights could not be had. Shenzhen is on the "
    "training list of the challenge that LiteMedSAM is the baseline of, JSRT is not. Quantized "
    "rows are PyTorch simulations of the integers; the runtime's own figures are in "
    "`results/runtime` and in the model card.",
    "table3": "Trainable parameters as counted from the model after pruning, against the whole "
    "model. Bytes are of the real file. 4-bit weights are 4-bit storage, multiplied in FP32.",
    "quantization": "Differences are paired by image, seeds averaged, with bootstrap intervals; "
    "equivalence and non-inferiority by one-sided tests corrected for skewness, Holm-adjusted "
    "within each question (against decoder fine-tuning, stage 1, PTQ) and set. Averaging seeds "
    "removes variation: read the last two columns with the next table.",
    "seeds": "Stage 2 minus the FP32 stage 1 of the same seed, 80 images; p-values are not "
    "adjusted.",
    "boxes": "The same models, other boxes at the test: exact, each edge moved by up to 10 px, the "
    "whole image, or found by the model itself.",
    "crossed": "Trained and validated on one source; the other is tested whole (566 images of "
    "Shenzhen, 240 of JSRT). The same augmentation for all but nnU-Net, which has its own. "
    "*Longer* is 45 epochs instead of 15 and an average of the weights; *exact boxes* are exact in "
    "training too, where the recipe moves each edge by up to 5 px. Methods had unequal numbers of "
    "recipes and seeds, and the comparison was chosen after results were known: it ranks nothing. "
    "Shenzhen was probably in LiteMedSAM's pretraining.",
    "external": "Models of the main split on 60 images of COVID-19 Radiography, whose masks were "
    "drawn by a model, and 12 of COVID-QU-Ex, drawn by humans and models. Neither was in our "
    "training. Both are on the training list of the MedSAM on Laptop challenge (CVPR 2024, "
    "<https://www.codabench.org/competitions/1847>) whose baseline LiteMedSAM is; whether this "
    "checkpoint used all of the list is not proven.",
    "organs": "One model, three boxes an image, trained on JSRT.",
    "degraded": "Mean Dice of 24 test images, seed 1, at the two strongest settings of each kind; "
    "all settings are in `degraded/`. The oracle's box is drawn from the true mask, after the "
    "image has moved; the packaged model finds its own, U-Net takes none. Only these two were "
    "trained with augmentation.",
    "provenance": "`summary.json` was made by `benchmarks/study/collect.py`; commands, seconds and "
    "machines are in `jobs.json` and `training.json`, every case in `cases/`. The provenance names "
    "the checkout that the GPU machine's copy came from. The trees were 340e279 for most of seed "
    "0; b70f305 for seed 0 of `adalora` and of what starts from it, `auto` and `w4a8`; f824f1e for "
    "seeds 1 and 2 of what trains in the table of quantization, of decoder and full fine-tuning, "
    "encoder-only LoRA and one pruning, the longer schedules, `organs` and nnU-Net across "
    "hospitals; 0ac876a for everything else, on a host with four H200s. TinyViT's own window "
    "kernel ran in all bf16 runs, also where `attention: sdpa` is written. The packaged model's "
    "sweep of degraded images: `python benchmarks/study/robustness.py "
    "src/adalora_qat/weights/lungs-int8.onnx DATA results/study/degraded/shipped_automatic.csv "
    "--box automatic`.",
    "search": "Settings that were tried, looked at on validation alone: mean over a row's seeds. "
    "Numbers of configurations are unequal between methods. On both sources together the tables "
    "keep the recipes' own settings.",
    "crossings": "Paired by image, on all images of the other hospital; Holm-adjusted within each "
    "direction. INT8 by its first recipe and by that which validation prefers.",
    "ranks": "The same budget, other seeds: the ranks of `adalora` after the last pruning.",
    "movement": "Λ after stage 2 against Λ before, where Λ trains.",
    "repeats": "Models are not kept: `w4a8` with seeds 1 and 2 starts from `adalora` trained again "
    "with these seeds. A GPU adds in no fixed order, so the same seed is not the same run.",
    "verdicts": "Paired comparisons on the test split, in words, seeds averaged. Baseline: decoder "
    "fine-tuning; for quantized rows also their stage 1 and their PTQ.",
}


def main() -> None:
    """Write the pages again."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    write_page(parser.parse_args().out)


if __name__ == "__main__":
    main()
