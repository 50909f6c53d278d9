"""The study's page: its tables in Markdown, made from ``summary.json`` alone.

python benchmarks/study/tables.py results/study      # writes results/study/README.md again
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from plan import Row, read_plan

from adalora_qat.evaluate.paper import ABLATIONS, MODELS
from adalora_qat.files import write_text

Entry = dict[str, Any]
# Rows of the paper's tables by ours: (row, stage).
PUBLISHED = {
    ("nnunet", "stage1"): "nnunet",
    ("deeplabv3plus", "stage1"): "deeplabv3plus",
    ("segformer", "stage1"): "segformer",
    ("decoder-only", "stage1"): "decoder",
    ("adalora", "stage1"): "adalora",
    ("lora-r8-encoder", "stage1"): "lora",
    ("d-qat", "stage2"): "dqat",
    ("full-qat", "stage2"): "fullqat",
}
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
CROSSED = ("decoder", "full", "adalora", "int8", "unet", "segformer", "deeplabv3plus", "nnunet")


class Page:
    """Looks entries of the summary up, and writes them as tables."""

    def __init__(self, summary: Entry, rows: dict[str, Row]) -> None:
        self.summary, self.rows = summary, rows
        self.entries: list[Entry] = summary["rows"]

    def find(self, row: str, stage: str | None = None, **where: str) -> Entry | None:
        """Return the entry of a row: its last stage if none is named, on the test split."""
        wanted = {"set": "test", **where}
        stages = [stage] if stage else ["stage2", "ptq", "stage1"]
        for each in stages:
            for entry in self.entries:
                fits = entry["row"] == row and entry["stage"] == each
                if fits and all(entry[k] == v for k, v in wanted.items()):
                    return entry
        return None

    def first(self, row: str, stage: str | None = None, dataset: str = "test") -> Entry | None:
        """Return the entry with the oracle box, or of a model that takes none."""
        boxes = (self.find(row, stage, set=dataset, box=box) for box in ("oracle", "none"))
        return next((entry for entry in boxes if entry is not None), None)

    def segmentation(self) -> str:
        """Return Table 1: metrics of every model at the original size."""
        head = (
            "Model", "Box", "Seeds", "DSC, mean ± sd over seeds", "JSRT", "Shenzhen", "IoU",
            "NSD (DeepMind 2D, 2 px)", "NSD (MedSAM, 2 px)", "DSC, paper", "NSD, paper",
        )  # fmt: skip
        lines = []
        for name in TABLE_1:
            entry = self.first(name)
            if entry is None:
                lines.append((self.rows[name].title, *["not run"] * 2, *["–"] * 8))
                continue
            paper = MODELS.get(PUBLISHED.get((name, entry["stage"]), ""))
            lines.append(
                (
                    entry["title"], entry["box"], len(entry["seeds"]), _spread(entry),
                    *_sources(entry), _four(entry["iou"]), _four(entry["nsd_deepmind2d_2px"]),
                    _four(entry["nsd_medsam_2px"]),
                    _four(paper.dsc.mean) if paper and paper.dsc else "–",
                    _four(paper.nsd.mean) if paper and paper.nsd else "–",
                )
            )  # fmt: skip
        return _table(head, lines)

    def ablation(self) -> str:
        """Return Table 3 and the text's ablations, with Table 2's columns."""
        head = (
            "Method", "Encoder", "Decoder", "Total (M)", "Trainable (M)", "Train %", "Bytes (MB)",
            "Seeds", "DSC, mean ± sd over seeds", "Train %, paper", "DSC, paper",
        )  # fmt: skip
        lines = []
        for name in TABLE_3:
            entry = self.first(name)
            if entry is None:
                lines.append((self.rows[name].title, *["–"] * 6, "not run", *["–"] * 3))
                continue
            facts = entry["facts"]
            total, trained = facts.get("total"), facts.get("trainable")
            paper = ABLATIONS.get(PUBLISHED.get((name, entry["stage"]), ""))
            lines.append(
                (
                    entry["title"], facts.get("encoder", "–"), facts.get("decoder", "–"),
                    _millions(total), _millions(trained),
                    f"{100 * trained / total:.1f}" if total and trained is not None else "–",
                    f"{facts['bytes'] / 1e6:.1f}" if facts.get("bytes") else "–",
                    len(entry["seeds"]), _spread(entry),
                    paper.train_percent if paper else "–",
                    f"{paper.dice_percent / 100:.4f}" if paper else "–",
                )
            )  # fmt: skip
        return _table(head, lines)

    def quantization(self) -> str:
        """Return PTQ beside QAT for every policy, and the difference with its interval."""
        head = ("Policy", "PTQ", "QAT", "QAT − PTQ [95 % CI]", "QAT − stage 1 [95 % CI]",
                "equivalent to stage 1 at ±0.005", "not worse by 0.005")  # fmt: skip
        lines = []
        for name, row in self.rows.items():
            ptq, qat = self.first(name, "ptq"), self.first(name, "stage2")
            if ptq is None or qat is None:
                continue
            against = self.comparison(qat, row.stage1 or name, "stage1")
            lines.append(
                (
                    row.title, _spread(ptq), _spread(qat),
                    _difference(self.comparison(qat, name, "ptq")), _difference(against),
                    _shown(against, "equivalent"), _shown(against, "noninferior"),
                )
            )  # fmt: skip
        return _table(head, lines)

    def boxes(self) -> str:
        """Return Dice by the kind of box at the test."""
        found = [
            (name, stage)
            for name in self.rows
            for stage in ("stage1", "stage2")
            if sum(self.find(name, stage, box=box) is not None for box in BOXES) > 1
        ]
        lines = [
            (f"{self.rows[name].title}, {stage}",
             *(_mean(self.find(name, stage, box=box)) for box in BOXES))
            for name, stage in found
        ]  # fmt: skip
        return _table(("Model", *BOXES), lines)

    def crossed(self) -> str:
        """Return Dice on the hospital that was not trained on, beside the one that was."""
        head = ("Model", "JSRT → JSRT test", "JSRT → all Shenzhen", "Shenzhen → Shenzhen test",
                "Shenzhen → all JSRT", "mean of the two crossings")  # fmt: skip
        lines = []
        for name in CROSSED:
            one, two = self.first(f"jsrt-{name}"), self.first(f"shenzhen-{name}")
            if one is None and two is None:
                continue
            title = self.rows[f"jsrt-{name}"].title
            there, back = _source(one, "shenzhen"), _source(two, "jsrt")
            both = [v for v in (there, back) if v is not None]
            lines.append(
                (title, _four(_source(one, "jsrt")), _four(there), _four(_source(two, "shenzhen")),
                 _four(back), _four(sum(both) / 2) if len(both) == 2 else "–")
            )  # fmt: skip
        return _table(head, lines)

    def external(self) -> str:
        """Return Dice on the other hospitals' images."""
        lines = [
            (f"{e['title']}, {e['stage']}", e["box"], _spread(e),
             *(_four(_source(e, s)) for s in ("covid19_radiography", "covid_qu_ex")))
            for e in self.entries if e["set"] == "external"
        ]  # fmt: skip
        head = ("Model", "Box", "DSC", "COVID-19 Radiography", "COVID-QU-Ex")
        return _table(head, lines)

    def comparison(self, entry: Entry, row: str, stage: str) -> Entry | None:
        """Return the paired comparison of an entry with another row's stage."""
        name = "/".join((entry["row"], entry["stage"], entry["set"], entry["box"]))
        other = "/".join((row, stage, entry["set"], entry["box"]))
        found = self.summary["comparisons"]
        return next((c for c in found if c["row"] == name and c["against"] == other), None)

    def organs(self) -> str:
        """Return Dice by organ."""
        entry = self.find("organs", box="oracle")
        if entry is None:
            return "Not run."
        table = _table(("Organ", "DSC"), [(k, _four(v)) for k, v in entry["by_target"].items()])
        ratio = entry["cardiothoracic_ratio"]
        if ratio is None:
            return table
        return (
            f"{table}\n\nCardiothoracic ratio of {ratio['n']} films (true mean "
            f"{ratio['truth_mean']:.3f}): bias {ratio['bias']:+.4f}, mean absolute error "
            f"{ratio['mean_absolute_error']:.4f}, sd of the error {ratio['sd_of_error']:.4f}."
        )


def write_page(summary: Entry, rows: dict[str, Row], out: Path) -> None:
    """Write ``README.md`` of the results' folder."""
    page = Page(summary, rows)
    missing = summary["missing"]
    parts: list[tuple[str, str, Callable[[], str]]] = [
        ("Table 1: segmentation", TEXT["table1"], page.segmentation),
        ("Tables 2 and 3: what trains", TEXT["table3"], page.ablation),
        ("Quantization", TEXT["quantization"], page.quantization),
        ("Boxes", TEXT["boxes"], page.boxes),
        ("From one hospital to the other", TEXT["crossed"], page.crossed),
        ("Other hospitals", TEXT["external"], page.external),
        ("Three organs", TEXT["organs"], page.organs),
    ]
    text = ["# The study", "", TEXT["head"], ""]
    for title, words, table in parts:
        text += [f"## {title}", "", words, "", table(), ""]
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
    "names the checkout that the GPU machine's copy came from; the trees were 340e279, and b70f305 "
    "for `adalora` and what starts from it, `auto` and `w4a8`. `attention: sdpa` there did not yet "
    "switch off TinyViT's own window kernel, which the bf16 runs had.",
    "table1": "Boxes: `oracle` is drawn from the true mask; `none` means that the model takes no "
    "box. Baselines are trained from random weights: ImageNet weights could not be had.",
    "table3": "Trainable parameters as counted from the model after pruning, against the whole "
    "model. Bytes are of the real file that ships.",
    "quantization": "Differences are paired by case, seeds averaged, with bootstrap intervals; "
    "equivalence and non-inferiority by one-sided tests corrected for skewness, Holm-adjusted "
    "within each question (against decoder fine-tuning, stage 1, PTQ) and set.",
    "boxes": "The same models, other boxes at the test.",
    "crossed": "Trained and validated on one source; the other is tested whole. One seed, the "
    "same augmentation for all but nnU-Net, which has its own.",
    "external": "Models of the main split on two sets that were never trained on; their masks "
    "were made by models (COVID-19 Radiography) or by humans and models (COVID-QU-Ex).",
    "organs": "One model, three boxes an image, trained on JSRT.",
    "verdicts": "Paired comparisons on the test split, in words. Baseline: decoder fine-tuning; "
    "for quantized rows also their stage 1 and their PTQ.",
}


def _table(head: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
    head = list(head)
    rows = [" | ".join(map(str, line)) for line in lines]
    return "\n".join(
        [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {r} |" for r in rows)]
    )


def _four(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.4f}"


def _millions(value: int | None) -> str:
    return "–" if value is None else f"{value / 1e6:.2f}"


def _mean(entry: Entry | None) -> str:
    return "–" if entry is None else _four(entry["dice_mean"])


def _spread(entry: Entry) -> str:
    sd = entry["dice_sd_over_seeds"]
    return _four(entry["dice_mean"]) + ("" if sd is None else f" ± {sd:.4f}")


def _source(entry: Entry | None, name: str) -> float | None:
    found = None if entry is None else entry["by_source"].get(name)
    return None if found is None else float(found["dice_mean"])


def _sources(entry: Entry) -> tuple[str, str]:
    return _four(_source(entry, "jsrt")), _four(_source(entry, "shenzhen"))


def _shown(found: Entry | None, what: str) -> str:
    return "–" if found is None else ("shown" if found[what] else "not shown")


def _difference(found: Entry | None) -> str:
    if found is None:
        return "–"
    low, high = found["ci"]
    return f"{found['mean_difference']:+.4f} [{low:+.4f}, {high:+.4f}]"


def main() -> None:
    """Write the page again."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    summary = json.loads((given.out / "summary.json").read_text("utf-8"))
    write_page(summary, read_plan(), given.out)


if __name__ == "__main__":
    main()
