"""Tables that go beyond the paper: other hospitals, other seeds, films made worse, the search."""

from __future__ import annotations

import pandas as pd
from lookup import Page, difference, four, shown, source, spread, table

from adalora_qat.evaluate.robustness import DEGRADATIONS

CROSSED = (
    "decoder", "full", "adalora", "int8", "decoder-long", "full-long", "adalora-long", "int8-long",
    "unet", "segformer", "deeplabv3plus", "nnunet",
)  # fmt: skip
SHIPPED = "shipped_automatic"
"""The file of the sweep over films made worse that the shipped model's own runtime made."""


def crossed(page: Page) -> str:
    """Return Dice on the hospital that was not trained on, beside the one that was."""
    head = ("Model", "JSRT val", "JSRT → JSRT test", "JSRT → all Shenzhen", "Shenzhen val",
            "Shenzhen → Shenzhen test", "Shenzhen → all JSRT",
            "mean of the two crossings")  # fmt: skip
    lines = []
    for name in CROSSED:
        one, two = page.first(f"jsrt-{name}"), page.first(f"shenzhen-{name}")
        if one is None and two is None:
            continue
        title = page.rows[f"jsrt-{name}"].title
        there, back = source(one, "shenzhen"), source(two, "jsrt")
        both = [v for v in (there, back) if v is not None]
        lines.append(
            (title, four(page.validation(f"jsrt-{name}-s0")), four(source(one, "jsrt")),
             four(there), four(page.validation(f"shenzhen-{name}-s0")),
             four(source(two, "shenzhen")), four(back),
             four(sum(both) / 2) if len(both) == 2 else "–")
        )  # fmt: skip
    return f"{table(head, lines)}\n\n{_chosen_by_validation(page)}"


def _chosen_by_validation(page: Page) -> str:
    """Return the mean of the crossings where validation chooses the schedule, way by way."""
    means = []
    for name in (n for n in CROSSED if f"{n}-long" in CROSSED):
        found = []
        for trained, tested in (("jsrt", "shenzhen"), ("shenzhen", "jsrt")):
            rows = [f"{trained}-{each}" for each in (name, f"{name}-long")]
            known = [(page.validation(f"{row}-s0") or 0.0, row) for row in rows]
            found.append(source(page.first(max(known)[1]), tested))
        if None not in found:
            title = page.rows[f"jsrt-{name}"].title
            means.append(f"{title} {four(sum(v for v in found if v) / 2)}")
    return f"With the schedule that validation prefers, way by way: {'; '.join(means)}."


def crossings(page: Page) -> str:
    """Return INT8 against every other row, paired on the hospital that neither has seen."""
    found = page.summary.get("crossings", [])
    lines = [
        (page.title(c["row"]), page.title(c["against"]), c["question"], c["n"],
         difference(c), shown(c, "noninferior"))
        for c in found
    ]  # fmt: skip
    head = ("INT8", "against", "from, to", "n", "difference [95 % CI]", "not worse by 0.005")
    return table(head, lines)


def external(page: Page) -> str:
    """Return Dice on the other hospitals' images."""
    lines = [
        (f"{e['title']}, {e['stage']}", e["box"], spread(e),
         *(four(source(e, s)) for s in ("covid19_radiography", "covid_qu_ex")))
        for e in page.entries if e["set"] == "external"
    ]  # fmt: skip
    head = ("Model", "Box", "DSC", "COVID-19 Radiography", "COVID-QU-Ex")
    return table(head, lines)


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
        f"{by_organ}\n\nCardiothoracic ratio of {ratio['n']} films (true mean "
        f"{ratio['truth_mean']:.3f}): bias {ratio['bias']:+.4f}, mean absolute error "
        f"{ratio['mean_absolute_error']:.4f}, sd of the error {ratio['sd_of_error']:.4f}."
    )


def worse_films(page: Page) -> str:
    """Return Dice on films made worse, at the strongest setting of each kind and one before."""
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
        return "Shipped INT8 file, in the runtime"
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
    lines = [
        (page.rows[row.like].title, ", ".join(row.adds), row.data,
         four(page.validation(f"{row.like}-s0")), four(page.validation(f"{name}-s0")))
        for name, row in page.rows.items()
        if row.like and page.validation(f"{name}-s0") is not None
    ]  # fmt: skip
    return table(("Row", "with", "trained on", "its own", "with these"), lines)
