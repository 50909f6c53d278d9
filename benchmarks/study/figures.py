"""The study's figures, from the results alone: no radiograph is in them.

    python benchmarks/study/figures.py results/study --images docs/images

``accuracy.png`` (and .svg): every model on the test images, and on two COVID-19 sets, beside its
size. ``ranks.png``: the ranks that one budget left in each layer. ``degraded_images.png``: models
on degraded images. ``crossed.png``: models on the hospital that they were not trained on.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from beyond import degraded_title
from crossing import METHODS, WAYS
from lookup import Page
from matplotlib.lines import Line2D

from adalora_qat.report.figures import ranks_by_layer
from adalora_qat.report.robustness_figures import degradation_figure
from adalora_qat.report.style import BLUE, FAINT, INK, VERMILION, canvas, house_style, save_figure

NAMES = {"jsrt": "JSRT", "shenzhen": "Shenzhen"}
METHOD_NAMES = {
    "nnunet": "nnU-Net (no box)",
    "segformer": "SegFormer (no box)",
    "deeplabv3plus": "DeepLabV3+ (no box)",
    "unet": "U-Net (no box)",
    "full": "Full fine-tuning",
    "decoder": "Decoder fine-tuning",
    "adalora": "AdaLoRA + decoder",
    "int8": "+ QAT, INT8 everywhere",
}
DOT: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 5}
PREFERRED = {**DOT, "mfc": VERMILION, "mec": VERMILION}
OTHER = {**DOT, "mfc": "none", "mec": INK}
ROWS = (
    "segformer", "deeplabv3plus", "nnunet", "unet", "zero-shot", "full-finetuning", "decoder-only",
    "adalora", "full-qat", "auto",
)  # fmt: skip


def accuracy(page: Page, out: Path) -> None:
    """Draw Dice on the test images and on two COVID-19 sets, a line a model."""
    found = [(page.first(row), page.first(row, dataset="external")) for row in ROWS]
    # The shipped model finds its own box, where the baselines take none.
    own, other = (page.find("auto", set=name, box="automatic") for name in ("test", "external"))
    found.append((own, other))
    pairs = [(own, other) for own, other in found if own is not None and other is not None]
    with house_style():
        figure = canvas(6.6, 0.6 + 0.32 * len(pairs))
        axes = figure.subplots()
        for place, (own, other) in enumerate(pairs):
            ends = [own["dice_mean"], other["dice_mean"]]
            axes.plot(ends, [place] * 2, color=FAINT, linewidth=1)
            axes.plot(ends[0], place, "o", color=BLUE, label="" if place else "JSRT + Shenzhen")
            axes.plot(
                ends[1], place, "s", color=VERMILION, label="" if place else "two COVID-19 sets"
            )
            size = own["facts"].get("bytes")
            words = f"{size / 1e6:.0f} MB" if size else ""
            words += "" if own["box"] == "oracle" else ", no box given"
            axes.annotate(
                words, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=7.5,
                color=INK,
            )  # fmt: skip
        axes.set_yticks(range(len(pairs)), [_short(own["title"]) for own, _ in pairs])
        axes.set_xlabel("mean Dice at the original size")
        axes.legend(loc="upper left")
        save_figure(figure, out / "accuracy")


def _short(title: str) -> str:
    names = {"+ full QAT": "AdaLoRA + full QAT (INT8)"}
    return names.get(title, title.partition(":")[0] + (" (INT8)" if "Shipped" in title else ""))


def ranks(training: dict[str, Any], out: Path, run: str = "adalora-s0") -> None:
    """Draw the ranks of a run's layers, before training and after the last pruning."""
    after = training[run]["ranks"]
    rows = [
        {"epoch": epoch, "layer": layer, "rank": rank}
        for epoch, table in ((0, dict.fromkeys(after, 48)), (12, after))
        for layer, rank in table.items()
    ]
    save_figure(ranks_by_layer(pd.DataFrame(rows)), out / "ranks")


def crossed(page: Page, out: Path, low: float = 0.943) -> None:
    """Draw Dice on the hospital that was not trained on, a dot a seed; below ``low`` a number."""
    with house_style():
        figure = canvas(6.9, 3.4)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (trained, tested) in zip(panels, WAYS, strict=True):
            axes.set_xlim(low, 0.9725)
            axes.set_title(f"{NAMES[trained]} → {NAMES[tested]}")
            axes.set_xlabel("mean Dice at the original size")
            for place, method in enumerate(METHOD_NAMES):
                best = page.summary["preferred"][trained][method]
                rows = [f"{trained}-{recipe}" for recipe in METHODS[method]]
                # The preferred recipe last, so that nothing lies over it.
                for row in [*(each for each in rows if each != best), best]:
                    found = page.by_source(row, tested)
                    inside = [value for value in found if value >= low]
                    axes.plot(
                        inside, [place] * len(inside), **(PREFERRED if row == best else OTHER)
                    )
                    if len(inside) < len(found):
                        axes.annotate(f" ← {min(found):.4f}", (low, place), va="center", fontsize=8)
        panels[0].set_yticks(range(len(METHOD_NAMES)), list(METHOD_NAMES.values()))
        figure.legend(
            [Line2D([], [], **PREFERRED), Line2D([], [], **OTHER)],
            ["recipe that validation prefers", "other recipes"],
            loc="outside upper center",
            ncols=2,
        )
        save_figure(figure, out / "crossed")


def degraded_images(page: Page, out: Path) -> None:
    """Draw Dice on degraded images, a panel a kind."""
    parts = [
        cases.assign(model=degraded_title(page, file)) for file, cases in page.degraded.items()
    ]
    if parts:
        save_figure(
            degradation_figure(pd.concat(parts, ignore_index=True)), out / "degraded_images"
        )


def main() -> None:
    """Draw all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=Path, help="also put those of the pages here, as PNG")
    given = parser.parse_args()
    page = Page(given.out)
    accuracy(page, given.out)
    ranks(page.training, given.out)
    degraded_images(page, given.out)
    crossed(page, given.out)
    for pdf in given.out.glob("*.pdf"):
        pdf.unlink()
    if given.images:
        shutil.copy(given.out / "accuracy.png", given.images / "study.png")
        for name in ("degraded_images.png", "crossed.png"):
            shutil.copy(given.out / name, given.images / name)


if __name__ == "__main__":
    main()
