"""The study's findings in plain words; every number is looked up in the results."""

from __future__ import annotations

import math

from crossing import METHODS, WAYS
from lookup import Entry, Page, difference, four, mean, read_json, source
from seeds import by_seed, probability

from adalora_qat.report.paper import ABLATIONS

ADAPTED = (
    "decoder-only", "lora-r8-encoder", "lora-r8", "lora-r16", "lora-r32", "adalora",
    "single-event", "peft-schedule", "full-finetuning", "d-qat", "full-qat", "int8-all", "w4a8",
)  # fmt: skip
FIXED = ("lora-r8", "lora-r16", "lora-r32")
RULES = ("adalora", "single-event", "peft-schedule")
PLAIN = ("unet", "nnunet", "deeplabv3plus", "segformer")
STARTED = ("decoder-only", "adalora", "full-qat", "full-finetuning")


def findings(page: Page) -> str:
    """Return the findings as a list."""
    made = (_plateau, _encoder_only, _ranks, _eight_bits, _equivalence, _four_bits, _boxes,
            _covid_sets, _hospitals, _pretraining, _masks, _degraded)  # fmt: skip
    return "\n".join(f"- {each(page)}" for each in made)


def _entry(page: Page, row: str, stage: str | None = None, **where: str) -> Entry:
    found = page.find(row, stage, **where) if where else page.first(row, stage)
    if found is None:
        raise LookupError(f"{row} {stage or ''} {where} is not among the results")
    return found


def _dice(page: Page, row: str, stage: str | None = None, **where: str) -> float:
    return float(_entry(page, row, stage, **where)["dice_mean"])


def _between(values: list[float]) -> str:
    return f"{four(min(values))} to {four(max(values))}"


def _plateau(page: Page) -> str:
    rows = [_entry(page, row) for row in ADAPTED]
    errors = [row["dice_sd_over_cases"] / math.sqrt(row["n"]) for row in rows]
    return (
        "**Adaptation helps; how makes no difference that shows here.** Zero-shot LiteMedSAM has "
        f"{four(_dice(page, 'zero-shot'))}; all {len(rows)} ways of adapting it, decoder and full "
        f"fine-tuning included, end at {_between([row['dice_mean'] for row in rows])}. Seeds of "
        f"one row differ by up to {max(row['dice_sd_over_seeds'] for row in rows):.4f} (sd), and "
        f"the standard error over the {rows[0]['n']} images is about {mean(errors):.4f}: one split "
        "of this size cannot rank them."
    )


def _encoder_only(page: Page) -> str:
    paper = four(ABLATIONS["lora"].dice_percent / 100)
    return (
        "**A LoRA of the encoder alone does not collapse here**: "
        f"{four(_dice(page, 'lora-r8-encoder'))}, where the paper has {paper}. LiteMedSAM's "
        "decoder was trained on medical images and SAM's was not; that this is the reason "
        "is not tested."
    )


def _ranks(page: Page) -> str:
    fixed = _between([_dice(page, row) for row in FIXED])
    rules = _between([_dice(page, row) for row in RULES])
    return (
        f"**Adaptive ranks gain nothing here.** LoRA of rank 8, 16 or 32 with the decoder: {fixed};"
        f" three prunings, one pruning, or AdaLoRA's own importance and schedule: {rules}."
    )


def _eight_bits(page: Page) -> str:
    told = [
        f"{page.rows[row].title.removeprefix('+ ')} "
        f"{difference(page.comparison(_entry(page, row, 'stage2'), row, 'ptq'))}"
        for row in ("full-qat", "int8-all", "d-qat")
    ]
    return (
        "**At 8 bits, training after quantization changes nothing that matters.** QAT minus PTQ "
        f"[95 % CI]: {'; '.join(told)}. The paper compares with no PTQ."
    )


def _equivalence(page: Page) -> str:
    seeds = by_seed(page.out, "full-qat")
    pooled = page.comparison(_entry(page, "full-qat", "stage2"), "adalora", "stage1") or {}
    each = ", ".join(probability(seed.tost_p) for seed in seeds)
    return (
        "**Full QAT is close to its FP32 stage 1; equivalence hangs on averaging seeds.** Averaged "
        f"over seeds the difference is {difference(pooled)} and equivalence within ±0.005 has p = "
        f"{probability(pooled['tost_p'])}; seed by seed it has p = {each}. The paper's criterion, "
        f"Wilcoxon's p above 0.05, is not met either (p = {pooled['wilcoxon_p']:.3f} on the seed "
        "mean, unadjusted), small as the difference is."
    )


def _four_bits(page: Page) -> str:
    gain = difference(page.comparison(_entry(page, "w4a8", "stage2"), "w4a8", "ptq"))
    alone = _entry(page, "w4a8-lambda", "stage2")
    lost = difference(page.comparison(alone, "adalora", "stage1"))
    return (
        "**With 4-bit storage, training is needed.** QAT of all weights with low-rank branches and "
        f"stage 1 as teacher gains {gain} over PTQ; Λ alone, on one seed, stays {lost} from stage "
        "1. The weights are multiplied in FP32: the file is smaller and not faster."
    )


def _boxes(page: Page) -> str:
    packaged, usual = (_dice(page, row, box="automatic") for row in ("auto", "adalora"))
    return (
        f"**Without a box, a model has to be trained for it.** Finding its own box, the packaged "
        f"model has {four(packaged)}, a model trained on good boxes alone {four(usual)}; with the "
        f"box drawn from the truth {four(_dice(page, 'auto'))} and {four(_dice(page, 'adalora'))}."
    )


def _covid_sets(page: Page) -> str:
    started = _between(
        [float(e["dice_mean"]) for r in STARTED if (e := page.first(r, None, "external"))]
    )
    plain = _between(
        [float(e["dice_mean"]) for r in PLAIN if (e := page.first(r, None, "external"))]
    )
    return (
        f"**On two COVID-19 sets** rows that start from LiteMedSAM have {started}, baselines "
        f"without a box {plain}. This separates neither box nor method from pretraining: "
        "LiteMedSAM had probably seen both sets, the baselines had not. It is no test "
        "on unseen hospitals."
    )


def _hospitals(page: Page) -> str:
    told = []
    for method in ("int8", "decoder", "full", "unet"):
        first, chosen = (
            mean([mean(page.by_source(row, way[1])) for row, way in zip(rows, WAYS, strict=True)])
            for rows in (
                [f"{trained}-{method}" for trained, _ in WAYS],
                [page.summary["preferred"][trained][method] for trained, _ in WAYS],
            )
        )
        count = len(METHODS[method])
        title = page.rows[f"jsrt-{method}"].title.removeprefix("+ ")
        told.append(f"{title} {four(first)} → {four(chosen)} ({count} recipe{'s' * (count > 1)})")
    return (
        "**From one hospital to the other no SAM row stands out.** Mean of both ways, first recipe "
        f"→ the one that validation prefers: {'; '.join(told)}. Recipes and seeds were unequal and "
        "the comparison was chosen after looking; differences of a thousandth say nothing."
    )


def _pretraining(page: Page) -> str:
    gaps = [
        mean(page.by_source(f"{trained}-adalora", tested))
        - mean(page.by_source(f"{trained}-unet", tested))
        for trained, tested in WAYS
    ]
    own = (page.first(row, None, "external") for row in ("adalora", "unet"))
    mine, theirs = own
    covid, qu = (
        (source(mine, name) or 0.0) - (source(theirs, name) or 0.0)
        for name in ("covid19_radiography", "covid_qu_ex")
    )
    return (
        "**The advantage over U-Net follows the pretraining list.** AdaLoRA minus U-Net is "
        f"{gaps[1]:+.4f} on JSRT, which is not on it (trained on Shenzhen), and {gaps[0]:+.4f} on "
        f"Shenzhen (trained on JSRT), {covid:+.4f} on COVID-19 Radiography and {qu:+.4f} on "
        "COVID-QU-Ex, which are. That fits, and proves no cause."
    )


def _masks(page: Page) -> str:
    told = read_json(page.out / "doubtful_truth.json")
    rows = [row for row in told["rows"] if row["name"] in ADAPTED]
    gains = [row["dice_without"] - row["dice_all"] for row in rows]
    level = [1 - row["dice_all"] for row in rows]
    return (
        f"**{len(told['left_out'])} of the test masks are wrong to the eye** (heart or stomach "
        f"inside). Leaving them out raises an adapted row by {_between(gains)}, of a distance to "
        f"1 of {_between(level)}. They stay in every table."
    )


def _degraded(page: Page) -> str:
    worst = {}
    for file, cases in page.degraded.items():
        dice = cases.groupby("altered")["dsc"].mean()
        worst[file] = float(dice["as-read"] - dice.min())
    packaged = worst["shipped_automatic"]
    others = [lost for file, lost in worst.items() if not file.startswith(("shipped", "unet"))]
    return (
        f"**Robustness comes from augmentation.** At its worst setting of degraded images the "
        f"packaged model, trained with augmentation, loses {four(packaged)} of Dice; rows trained "
        f"without lose {_between(others)}. Augmentation is not the only difference between them."
    )
