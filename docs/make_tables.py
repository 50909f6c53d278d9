"""Fill the result tables of README.md and docs/results.md from the summaries under results/.

``python docs/make_tables.py`` rewrites what stands between the markers
``<!-- results:begin -->`` and ``<!-- results:end -->``: one table of accuracy and one of speed in
the README, everything on the page of results. A summary that is not there leaves the sentence "not
yet run"; no figure is ever typed by hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from demo_tables import demo_text

ROOT = Path(__file__).resolve().parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "docs" / "results.md"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

STUDY, RUNTIME = "results/study/summary.json", "results/runtime/summary.json"
ONE_THREAD = "results/speed/one_thread/litemedsam.json"
OLDER = "results/speed/without_vnni/litemedsam.json"
OLDER_SPEED = "results/shipped/speed_without_vnni.json"
TRAINING = "results/speed/summary.json"
SPEED, WARNINGS = "results/shipped/speed.json", "results/shipped/warnings.json"
DEMO = "results/demo/summary.json"
RUNS = {
    "PyTorch FP32": "PyTorch FP32",
    "ONNX FP32 by torch.onnx": "`torch.onnx` FP32",
    "ONNX none": "this package, FP32",
    "ONNX full": "INT8, policy of the paper",
    "ONNX int8-all": "INT8 everywhere",
}
# Rows of the study in the README, (row, box), and on the page of results; the last of a row's
# stages counts.
FEW = (
    ("zero-shot", "oracle"), ("decoder-only", "oracle"), ("full-finetuning", "oracle"),
    ("adalora", "oracle"), ("full-qat", "oracle"), ("auto", "oracle"), ("auto", "automatic"),
    ("unet", "none"),
)  # fmt: skip
SHOWN = (
    "zero-shot", "decoder-only", "lora-r8-encoder", "lora-r32", "adalora", "full-qat", "int8-all",
    "w4a8", "auto", "full-finetuning", "nnunet", "unet", "deeplabv3plus", "segformer",
)  # fmt: skip
SOURCES = ("jsrt", "shenzhen")
# Names for rows whose title in the study is long.
TITLES = {"auto": "Packaged model (AdaLoRA, INT8 everywhere)"}
CROSSED = {
    "INT8 everywhere": "int8",
    "decoder fine-tuning": "decoder",
    "full fine-tuning": "full",
    "U-Net": "unet",
    "DeepLabV3+": "deeplabv3plus",
    "SegFormer": "segformer",
    "nnU-Net": "nnunet",
}


def readme_text(root: Path) -> tuple[str, list[str]]:
    """Return the README's two tables, and a note for each summary that is absent."""
    return _parts(
        root,
        ("Accuracy: JSRT and Shenzhen, 80 test images", (STUDY,), accuracy_text),
        ("Speed: milliseconds an image", (ONE_THREAD, OLDER, SPEED, OLDER_SPEED), times_text),
    )


def results_text(root: Path) -> tuple[str, list[str]]:
    """Return the tables of the page of results, and a note for each summary that is absent."""
    return _parts(
        root,
        ("Real radiographs (JSRT and Shenzhen)", (STUDY,), radiographs_text),
        ("Trained in one hospital, tested in the other", (STUDY,), crossings_text),
        ("The INT8 runtime on the same images", (RUNTIME,), runtime_text),
        ("LiteMedSAM end to end, one thread", (ONE_THREAD,), latency_text),
        ("The same on a processor without VNNI", (OLDER,), latency_text),
        ("Training and encoding on a GPU", (TRAINING,), training_text),
        ("The packaged model: time", (SPEED,), speed_text),
        ("The packaged model: time without VNNI", (OLDER_SPEED,), speed_text),
        ("The packaged model: warnings", (WARNINGS,), warnings_text),
        ("Phantoms (`make demo`)", (DEMO,), demo_text),
    )


def _parts(
    root: Path, *made: tuple[str, tuple[str, ...], Callable[..., str]]
) -> tuple[str, list[str]]:
    parts, notes = [], []
    for title, names, text in made:
        absent = [name for name in names if not (root / name).is_file()]
        if absent:
            parts.append(f"**{title}**: not yet run.")
            notes += [f"{name} is absent: its table says 'not yet run'" for name in absent]
        else:
            summaries = (json.loads((root / name).read_text("utf-8")) for name in names)
            parts.append(f"**{title}**\n\n{text(*summaries)}")
    return "\n\n".join(parts), notes


def accuracy_text(summary: Mapping[str, Any]) -> str:
    """Return the README's rows of the study: the test split, by source."""
    lines = [
        "| model | box | seeds | Dice, mean ± sd over seeds | JSRT | Shenzhen | MB |",
        "|---|---|---|---|---|---|---|",
    ]
    errors = []
    for name, box in FEW:
        entry = _entry(summary, name, "test", (box,))
        if entry is None:
            continue
        sources = [f"{entry['by_source'][s]['dice_mean']:.4f}" for s in SOURCES]
        cells = [_title(entry), box, str(len(entry["seeds"])), _over_seeds(entry), *sources,
                 _megabytes(entry)]  # fmt: skip
        errors.append(_standard_error(entry))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _uncertainty(errors)])


def _title(entry: Mapping[str, Any]) -> str:
    return str(TITLES.get(entry["row"], entry["title"]))


def _over_seeds(entry: Mapping[str, Any]) -> str:
    spread = entry.get("dice_sd_over_seeds")
    return f"{entry['dice_mean']:.4f}" + ("" if spread is None else f" ± {spread:.4f}")


def _megabytes(entry: Mapping[str, Any]) -> str:
    size = entry["facts"].get("bytes")
    return f"{size / 1e6:.1f}" if size else "–"


def _standard_error(entry: Mapping[str, Any]) -> float:
    return float(entry["dice_sd_over_cases"]) / math.sqrt(entry["n"])


def _uncertainty(errors: Sequence[float]) -> str:
    return (
        "“±” is over training seeds on one split. Other test images would move a mean by more: its "
        f"standard error over images is {min(errors):.4f} to {max(errors):.4f}."
    )


def times_text(
    vnni: Mapping[str, Any],
    older: Mapping[str, Any],
    packaged: Mapping[str, Any],
    packaged_older: Mapping[str, Any],
) -> str:
    """Return the README's times, with VNNI and without, and the size of each file."""
    lines = ["| what | MB | with VNNI | without |", "|---|---|---|---|"]
    before = {row["name"]: row for row in older["rows"]}
    lines += [
        f"| LiteMedSAM, {RUNS.get(row['name'], row['name'])} | {row['size_bytes'] / 1e6:.1f} | "
        f"{row['median_s'] * 1e3:.0f} | {before[row['name']]['median_s'] * 1e3:.0f} |"
        for row in vnni["rows"]
    ]
    for key, name in (("pytorch_fp32", "in PyTorch FP32"), ("int8", "INT8 as it ships")):
        now, then = (each["median_s"][key] * 1e3 for each in (packaged, packaged_older))
        lines.append(f"| Packaged model, file to mask, {name} | – | {now:.0f} | {then:.0f} |")
    machine = packaged["measured_on"]
    made = (
        f"Medians on {machine['processor']}, two machines. LiteMedSAM: one thread, one pass with "
        f"a given box. Packaged model: {machine['cores']} cores, no box, two decoder passes."
    )
    return "\n".join([*lines, "", made])


def radiographs_text(summary: Mapping[str, Any]) -> str:
    """Return the study's rows: the test split with its box, and the sets kept out of training."""
    lines = [
        "| model | box | seeds | Dice, mean ± sd over seeds | JSRT | Shenzhen | COVID-19 sets "
        "| MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    errors = []
    for name in SHOWN:
        own, other = _entry(summary, name, "test"), _entry(summary, name, "external")
        if own is None:
            continue
        sources = [f"{own['by_source'][s]['dice_mean']:.4f}" for s in SOURCES]
        cells = [
            _title(own), own["box"], str(len(own["seeds"])), _over_seeds(own), *sources,
            f"{other['dice_mean']:.4f}" if other else "–", _megabytes(own),
        ]  # fmt: skip
        errors.append(_standard_error(own))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [
            *lines,
            "",
            f"80 test images (24 JSRT, 56 Shenzhen). {_uncertainty(errors)} Quantized rows are "
            "PyTorch simulations of the integers; “4-bit weights” is 4-bit storage, multiplied in "
            "FP32. “COVID-19 sets”: 72 images of COVID-19 Radiography and COVID-QU-Ex, none of "
            "which was in our training. Both sets, and Shenzhen, are on the training list of the "
            "challenge that LiteMedSAM is the baseline of; JSRT is not. So the column is no test "
            "on unseen hospitals for rows that start from LiteMedSAM, and gives them an advantage "
            "over baselines that start from random weights. The masks of COVID-19 Radiography were "
            "drawn by a model.",
            "",
            "Every row, statistics, boxes and commands: "
            "[results/study](../results/study/README.md).",
        ]
    )


def _entry(
    summary: Mapping[str, Any], row: str, dataset: str, boxes: Sequence[str] = ("oracle", "none")
) -> Mapping[str, Any] | None:
    for stage in ("stage2", "ptq", "stage1"):
        for box in boxes:
            for entry in summary["rows"]:
                found = tuple(entry[key] for key in ("row", "stage", "set", "box"))
                if found == (row, stage, dataset, box):
                    return entry  # type: ignore[no-any-return]
    return None


def crossings_text(summary: Mapping[str, Any]) -> str:
    """Return Dice on the other hospital, mean of both ways: first recipe, and the chosen one."""
    lines = [
        "| method | recipes tried | first recipe | recipe that validation prefers | seeds |",
        "|---|---|---|---|---|",
    ]
    rows = {entry["row"] for entry in summary["rows"]}
    for title, method in CROSSED.items():
        first = f"{SOURCES[0]}-{method}"
        tried = sum(row == first or row.startswith(f"{first}-") for row in rows)
        default = _crossing(summary, [f"{source}-{method}" for source in SOURCES])
        preferred = summary.get("preferred", {})
        best = _crossing(summary, [preferred.get(source, {}).get(method) for source in SOURCES])
        if default is None or best is None:
            continue
        lines.append(f"| {title} | {tried} | {default[0]:.4f} | {best[0]:.4f} | {best[1]} |")
    return "\n".join(
        [
            *lines,
            "",
            "All 566 images of Shenzhen by models trained on JSRT, all 240 of JSRT by models "
            "trained on Shenzhen. Methods had unequal numbers of recipes and seeds, and this table "
            "was drawn up after the results were known: it ranks nothing. Differences of a "
            "thousandth are within what seeds differ by. Shenzhen was probably in LiteMedSAM's "
            "pretraining, so that JSRT → Shenzhen is not unseen for rows that start from it.",
        ]
    )


def _crossing(summary: Mapping[str, Any], rows: Sequence[str]) -> tuple[float, int] | None:
    """Return the mean of both ways and the seeds of (from the first source, from the second)."""
    there, back = (_entry(summary, row, "test") for row in rows)
    if there is None or back is None:
        return None
    dice = [
        entry["by_source"][other]["dice_mean"]
        for entry, other in ((there, SOURCES[1]), (back, SOURCES[0]))
    ]
    return sum(dice) / 2, len(there["seeds"])


def runtime_text(summary: Mapping[str, Any]) -> str:
    """Return the ONNX files' accuracy beside the stage 1 they came from."""
    lines = [
        "| file | seed | MB | Dice ± sd | JSRT | Shenzhen | minus FP32 stage 1 [95 % CI] | gate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in summary["rows"]:
        against = row["against"]["stage 1"]
        low, high = against["ci"]
        lines.append(
            f"| {row['row']} | {row['seed']} | {row['onnx_bytes'] / 1e6:.1f} | "
            f"{row['dice_mean']:.4f} ± {row['dice_sd']:.4f} | {row['by_source']['jsrt']:.4f} | "
            f"{row['by_source']['shenzhen']:.4f} | {against['mean_difference']:+.4f} "
            f"[{low:+.4f}, {high:+.4f}] | {'passed' if row['gate'] == 'passed' else 'refused'} |"
        )
    machines = [row["measured_on"] for row in summary["rows"]]
    plain = [f"{r['row']} {r['seed']}" for r in summary["rows"] if not r["measured_on"]["vnni"]]
    without = f" Without VNNI: {', '.join(plain)}." if plain else ""
    commits = ", ".join(dict.fromkeys(f"`{machine['commit']}`" for machine in machines))
    made = (
        f"ONNX Runtime on {machines[0]['processor']}, {machines[0]['cores']} cores, oracle boxes, "
        f"commits {commits}.{without}"
    )
    return "\n".join([*lines, "", made])


def training_text(summary: Mapping[str, Any]) -> str:
    """Return images a second on a GPU, each beside what it is compared with in the same run."""
    lines = [
        f"| {row['what']} | {row['images_per_s']:.0f} | {row['peak_gib']:.1f} | {row['against']} | "
        f"{row['their_images_per_s']:.0f} | {row['their_peak_gib']:.1f} | {row['ratio']:.2f} |"
        for row in summary["rows"]
    ]
    devices = ", ".join(dict.fromkeys(row["device"] for row in summary["rows"]))
    return "\n".join(
        [
            "| what | images/s | GiB | beside, in the same run | images/s | GiB | ratio |",
            "|---|---|---|---|---|---|---|",
            *lines,
            "",
            f"{devices}; SAM at 1024², LiteMedSAM at 256², random weights; memory is of one GPU. "
            "Commands, commits, every technique: [results/speed](../results/speed/README.md).",
        ]
    )


def latency_text(summary: Mapping[str, Any]) -> str:
    """Return the time, memory and size of each file, with its ratios to PyTorch and FP32 files."""
    rows = summary["rows"]
    against = [row["name"] for row in rows[:3]]
    heads = "".join(f" × {name} |" for name in against)
    lines = [f"| file | MB | median ms | peak MB |{heads}", f"|{'---|' * (4 + len(against))}"]
    for row in rows:
        ratios = "".join(
            f" {rows[place]['median_s'] / row['median_s']:.2f} |" for place in range(len(against))
        )
        lines.append(
            f"| {row['name']} | {row['size_bytes'] / 1e6:.1f} | {row['median_s'] * 1e3:.0f} | "
            f"{row['peak_mb']:.0f} |{ratios}"
        )
    made = (
        f"{summary['processor']}, {summary['threads']} thread, {summary['data']}, weights "
        f"{summary['weights']}, commit `{summary['commit']}`. “ONNX none” is our own FP32 file, "
        "rearranged like the INT8 ones."
    )
    return "\n".join([*lines, "", made])


def speed_text(summary: Mapping[str, Any]) -> str:
    """Return what one image takes, from its file to the mask, and the first mask of a command."""
    medians, every = summary["median_s"], summary["all_s"]
    lines = [
        f"- {name}: median {medians[key]:.2f} s, fastest {min(every[key]):.2f}, slowest "
        f"{max(every[key]):.2f}"
        for key, name in (("int8", "INT8"), ("pytorch_fp32", "PyTorch FP32, the same model"))
    ]
    first = sorted(summary["first_mask_s"])
    machine = summary["measured_on"]
    lines += [
        f"- ratio of the medians {summary['ratio']:.2f}; first mask {first[len(first) // 2]:.2f} s "
        "after the command was given",
        f"- {machine['processor']}, {machine['cores']} cores, {summary['images']} images, "
        f"{summary['rounds']} rounds in turn, no box",
    ]
    return "\n".join(lines)


def warnings_text(summary: Mapping[str, Any]) -> str:
    """Return how many images were warned of, by what was done to them."""
    counts: dict[str, list[int]] = {}
    for row in summary["rows"]:
        chest = row["images"] not in ("photographs and text", "noise and ramps")
        name = f"chests, {row['change']}" if chest else row["images"]
        total = counts.setdefault(name, [0, 0])
        total[0] += row["warned"]
        total[1] += row["n"]
    told = ", ".join(f"{name} {warned}/{n}" for name, (warned, n) in counts.items())
    return (
        f"Warned of: {told}. Chests are images of "
        "sets that were not trained on; the limits of the check were set while looking at some of "
        "these images, so the counts are optimistic."
    )


def between_markers(text: str, inside: str) -> str:
    """Return ``text`` with what stands between the markers replaced.

    Raises
    ------
    ValueError
        If the markers are not there once each, in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"the text must hold {BEGIN} and {END} once each, in this order")
    return f"{before}{BEGIN}\n{inside}\n{END}{after}"


def main() -> None:
    """Rewrite the tables of both pages and say what is missing."""
    for page, made in ((README, readme_text), (RESULTS, results_text)):
        inside, notes = made(ROOT)
        page.write_text(between_markers(page.read_text("utf-8"), inside), encoding="utf-8")
        for note in notes:
            print(f"note: {note}")
        print(f"wrote the tables of {page.name}")


if __name__ == "__main__":
    main()
