"""Tables that go beyond the paper: two COVID-19 sets, other seeds, degraded images, the search."""

from __future__ import annotations

import pandas as pd
from lookup import Page, four, source, spread, table, validations

from adalora_qat.evaluate.robustness import DEGRADATIONS

SHIPPED = "shipped_automatic"
"""The file of the sweep over degraded images that the packaged model's own runtime made."""
RANDOM = ("unet", "nnunet", "deeplabv3plus", "segformer")
"""Rows that start from random weights, so that no pretraining has seen a test image."""


def external(page: Page) -> str:
    """Return Dice on two sets that our training left out, and whether pretraining had them."""
    lines = [
        (f"{e['title']}, {e['stage']}", e["box"], pretraining(e["row"]), spread(e),
         *(four(source(e, s)) for s in ("covid19_radiography", "covid_qu_ex")))
        for e in page.entries if e["set"] == "external"
    ]  # fmt: skip
    head = ("Model", "Box", "In pretraining", "DSC", "COVID-19 Radiography", "COVID-QU-Ex")
    return table(head, lines)


def pretraining(row: str) -> str:
    """Return whether the COVID-19 sets were in the data that a row's first weights come from."""
    return "none had" if row in RANDOM else "probably seen"


def organs(page: Page) -> str:
    """Return Dice by organ."""
    entry = page.find("organs", box="oracle")
    if entry is None:
        return "Not run."
    by_organ = table(("Organ", "DSC"), [(k, four(v)) for k, v in entry["by_target"].items()])
    ratio = entry["cardiothoracic_ratio"]
    if ratio is None:
        return by_organ
    return (
        f"{by_organ}\n\nCardiothoracic ratio of {ratio['n']} images (true mean "
        f"{ratio['truth_mean']:.3f}): bias {ratio['bias']:+.4f}, mean absolute error "
        f"{ratio['mean_absolute_error']:.4f}, sd of the error {ratio['sd_of_error']:.4f}."
    )


def degraded_images(page: Page) -> str:
    """Return Dice on degraded images, at the strongest setting of each kind and one before."""
    kinds = {kind.kind: sorted(kind.strengths, key=lambda s: abs(s - kind.neutral))[-2:]
             for kind in DEGRADATIONS.values()}  # fmt: skip
    names = [f"{kind}={strength:g}" for kind, two in kinds.items() for strength in two]
    lines = []
    for file, cases in page.degraded.items():
        mean = cases.groupby("altered")["dsc"].mean()
        box = str(cases["box"].iloc[0])
        lines.append((degraded_title(page, file), box, four(mean["as-read"]),
                      *(four(mean.get(name)) for name in names)))  # fmt: skip
    return table(("Model", "Box", "as read", *names), lines)


def degraded_title(page: Page, file: str) -> str:
    """Return the title of a file's model."""
    if file == SHIPPED:
        return "Packaged INT8 file, in the runtime"
    run, _, _ = file.rpartition("_")
    return page.rows[run.rpartition("-s")[0]].title


def ranks(page: Page) -> str:
    """Return each layer's rank after the last pruning, by seed, and how alike seeds are."""
    runs = {
        f"seed {seed}": ranks
        for seed in (0, 1, 2)
        if (ranks := page.training.get(f"adalora-s{seed}", {}).get("ranks"))
    }
    if len(runs) < 2:
        return "Fewer than two seeds."
    by_seed = pd.DataFrame(runs)
    between = by_seed.corr(method="spearman").to_numpy()
    pairs = [between[i, j] for i in range(len(runs)) for j in range(i)]
    lines = [(layer, *values) for layer, values in zip(by_seed.index, by_seed.values, strict=True)]
    return (
        f"{table(('Layer', *runs), lines)}\n\nRank correlation (Spearman) between seeds: "
        f"{min(pairs):+.2f} to {max(pairs):+.2f}, mean {sum(pairs) / len(pairs):+.2f}."
    )


def movement(page: Page) -> str:
    """Return how far stage 2 moved Λ."""
    lines = []
    for name, row in page.rows.items():
        for seed in row.seeds:
            layers = page.training.get(f"{name}-s{seed}", {}).get("lambda_movement")
            if layers:
                lines.append(
                    (f"`{name}-s{seed}`", len(layers), f"{max(e['largest'] for e in layers):.1e}",
                     f"{100 * max(e['relative'] for e in layers):.2f} %")
                )  # fmt: skip
    head = ("Run", "Layers", "largest change of λ", "largest ‖ΔΛ‖ ÷ ‖Λ‖ of a layer")
    return table(head, lines)


def search(page: Page) -> str:
    """Return what other settings gave on validation, beside the row's own."""
    lines, gains = [], []
    for name, row in page.rows.items():
        if row.like is None:
            continue
        own, value = page.validation(row.like), page.validation(name)
        if own is None or value is None:
            continue
        adds = ", ".join(f"`{each}`" for each in row.adds)
        lines.append((page.rows[row.like].title, adds, row.data, four(own), four(value)))
        if row.data == "main":
            gains.append((value - own, row.like))
    told = table(("Row", "with", "trained on", "its own", "with these"), lines)
    if not gains:
        return told
    apart = [
        max(v) - min(v)
        for r in {r for _, r in gains}
        if (v := validations(page.training, page.rows[r]))
    ]
    return (
        f"{told}\n\nOn both sources the largest gain is {max(gains)[0]:+.4f}; seeds of one of "
        f"these rows lie up to {max(apart):.4f} apart."
    )


def repeats(page: Page) -> str:
    """Return a run's Dice beside that of the same seed trained again."""
    lines = []
    for name, again in page.repeats.items():
        entry = page.first(name)
        for seed, cases in again.groupby("seed"):
            first = entry["by_seed"][str(seed)]["dsc"] if entry else None
            lines.append((f"`{name}-s{seed}`", four(first), four(float(cases["dsc"].mean()))))
    return table(("Run", "DSC", "again"), lines)
