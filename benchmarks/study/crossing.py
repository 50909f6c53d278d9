"""From one hospital to the other: which rows, which of them validation prefers, the tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lookup import Page, difference, four, mean, shown, spread_of, table, validation
from plan import Row

WAYS = (("jsrt", "shenzhen"), ("shenzhen", "jsrt"))
"""Trained and validated on one source, tested on the other."""
METHODS = {
    "decoder": ("decoder", "decoder-long", "decoder-exact"),
    "full": ("full", "full-long", "full-exact"),
    "adalora": ("adalora", "adalora-long", "adalora-exact"),
    "int8": ("int8", "int8-long", "int8-exact", "int8-exact-trained"),
    "unet": ("unet",),
    "segformer": ("segformer",),
    "deeplabv3plus": ("deeplabv3plus",),
    "nnunet": ("nnunet",),
}
"""Recipes of each method; their rows are SOURCE-RECIPE."""


def preferred(training: Mapping[str, Any], rows: Mapping[str, Row]) -> dict[str, dict[str, str]]:
    """Return by source and method the row that does best on the source's own validation images."""
    return {
        trained: {
            method: max(
                (f"{trained}-{recipe}" for recipe in recipes),
                key=lambda row: validation(training, rows[row]) or 0.0,
            )
            for method, recipes in METHODS.items()
        }
        for trained, _ in WAYS
    }


def crossed(page: Page) -> str:
    """Return Dice on the hospital that was not trained on, beside the one that was."""
    head = ("Model", "Seeds", "JSRT val", "JSRT → JSRT test", "JSRT → all Shenzhen",
            "Shenzhen val", "Shenzhen → Shenzhen test", "Shenzhen → all JSRT",
            "mean of the two crossings")  # fmt: skip
    lines = []
    for recipe in (recipe for recipes in METHODS.values() for recipe in recipes):
        rows = [f"{trained}-{recipe}" for trained, _ in WAYS]
        away = [page.by_source(row, way[1]) for row, way in zip(rows, WAYS, strict=True)]
        cells = [
            (four(page.validation(row)), spread_of(page.by_source(row, way[0])), spread_of(there))
            for row, way, there in zip(rows, WAYS, away, strict=True)
        ]
        both = four(mean([mean(there) for there in away]))
        lines.append((page.rows[rows[0]].title, len(away[0]), *cells[0], *cells[1], both))
    return f"{table(head, lines)}\n\n{_preferred_means(page)}"


def _preferred_means(page: Page) -> str:
    """Return the mean of the crossings where validation chooses the recipe, way by way."""
    lines = []
    for method, recipes in METHODS.items():
        if len(recipes) == 1:
            continue
        rows = [page.summary["preferred"][trained][method] for trained, _ in WAYS]
        away = [mean(page.by_source(row, way[1])) for row, way in zip(rows, WAYS, strict=True)]
        names = ", ".join(f"`{row}` {four(dice)}" for row, dice in zip(rows, away, strict=True))
        title = page.rows[f"jsrt-{method}"].title
        lines.append(f"- {title}: **{four(mean(away))}** ({names})")
    head = "With the recipe that validation prefers, way by way, mean over seeds:"
    return "\n".join([head, "", *lines])


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
