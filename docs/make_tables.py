"""Fill the result tables of README.md from the summaries under results/.

``python docs/make_tables.py`` rewrites what stands between the markers
``<!-- results:begin -->`` and ``<!-- results:end -->``. A summary that is not there leaves the
sentence "not yet run"; no figure is ever typed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

STUDY, RUNTIME = "results/study/summary.json", "results/runtime/summary.json"
ONE_THREAD = "results/speed/one_thread/litemedsam.json"
OLDER = "results/speed/without_vnni/litemedsam.json"
OLDER_SPEED = "results/shipped/speed_without_vnni.json"
TRAINING = "results/speed/summary.json"
SPEED, WARNINGS = "results/shipped/speed.json", "results/shipped/warnings.json"
STUDIES = (("Phantoms (`make demo`)", "results/demo/summary.json"),)
# Rows of the study that the README shows, in order; the last of a row's stages counts.
SHOWN = (
    "zero-shot", "decoder-only", "lora-r8-encoder", "lora-r32", "adalora", "full-qat", "int8-all",
    "w4a8", "auto", "full-finetuning", "nnunet", "unet", "deeplabv3plus", "segformer",
)  # fmt: skip
SOURCES = ("jsrt", "shenzhen")
CROSSED = {
    "INT8 everywhere": "int8",
    "decoder fine-tuning": "decoder",
    "full fine-tuning": "full",
    "U-Net": "unet",
    "DeepLabV3+": "deeplabv3plus",
    "SegFormer": "segformer",
    "nnU-Net": "nnunet",
}
ROWS = {
    "zero_shot": "Zero-shot, pretrained weights",
    "decoder_only": "Decoder fine-tuning, FP32",
    "stage1": "Stage 1: AdaLoRA and decoder, FP32",
    "ptq": "INT8 after training only (PTQ)",
    "qat": "Stage 2: INT8, fine-tuned (QAT)",
    "int8_runtime": "INT8 in ONNX Runtime, as shipped",
}
SIZES = {
    "fp32": "FP32 ONNX",
    "fp32_onnx": "FP32 ONNX",
    "int8_packed": "packed INT8 weights",
    "int8_onnx": "INT8 ONNX, as shipped",
}
VERSIONS = ("python", "torch", "onnxruntime")


def results_text(root: Path) -> tuple[str, list[str]]:
    """Return the Markdown between the markers, and a note for each summary that is absent."""
    parts, notes = [], []
    made = (("Real radiographs (JSRT and Shenzhen)", STUDY, radiographs_text),
            ("The INT8 runtime on the same films", RUNTIME, runtime_text),
            ("LiteMedSAM end to end, one thread", ONE_THREAD, latency_text),
            ("The same on a processor without VNNI", OLDER, latency_text),
            ("Training and encoding on a GPU", TRAINING, training_text),
            ("The model that ships: time", SPEED, speed_text),
            ("The model that ships: time without VNNI", OLDER_SPEED, speed_text),
            ("The model that ships: warnings", WARNINGS, warnings_text))  # fmt: skip
    for title, name, text in made:
        file = root / name
        if file.is_file():
            parts.append(f"**{title}**\n\n{text(json.loads(file.read_text('utf-8')))}")
        else:
            parts.append(f"**{title}**: not yet run.")
            notes.append(f"{name} is absent: its table says 'not yet run'")
    for title, name in STUDIES:
        file = root / name
        if file.is_file():
            parts.append(study_text(title, json.loads(file.read_text("utf-8"))))
        else:
            parts.append(f"**{title}**: not yet run.")
            notes.append(f"{name} is absent: its table says 'not yet run'")
    return "\n\n".join(parts), notes


def study_text(title: str, summary: Mapping[str, Any]) -> str:
    """Return one study: its data, its rows, then sizes, agreement, ranks, speed and origin."""
    lines = [_rows(summary["rows"])]
    facts = [_sizes(summary), _parity(summary), _ranks(summary), _seconds(summary)]
    lines += ["\n".join(f"- {fact}" for fact in facts if fact)]
    speed = _speed(summary.get("speed"))
    lines += [speed] if speed else []
    lines += [_origin(summary)]
    return "\n\n".join([f"**{title}**{_cases(summary)}", *(line for line in lines if line)])


def radiographs_text(summary: Mapping[str, Any]) -> str:
    """Return the study's rows: the test split with its box, and the other hospitals' films."""
    lines = [
        "| model | box | seeds | Dice | JSRT | Shenzhen | other hospitals | MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in SHOWN:
        own, other = _entry(summary, name, "test"), _entry(summary, name, "external")
        if own is None:
            continue
        sources = [f"{own['by_source'][s]['dice_mean']:.4f}" for s in SOURCES]
        size = own["facts"].get("bytes")
        cells = [
            own["title"], own["box"], str(len(own["seeds"])), f"{own['dice_mean']:.4f}", *sources,
            f"{other['dice_mean']:.4f}" if other else "–", f"{size / 1e6:.1f}" if size else "–",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    crossed = (_crossing(summary, title, method) for title, method in CROSSED.items())
    told = "; ".join(each for each in crossed if each)
    return "\n".join(
        [
            *lines,
            "",
            "Mean Dice of 80 test films (24 JSRT, 56 Shenzhen) and of 72 films of two sets that "
            "were never trained on. Quantized rows are PyTorch simulations of the integers.",
            "",
            "Trained in one hospital, tested in the other, mean of both ways, with the recipe that "
            f"validation prefers: {told}.",
            "",
            "Every row, statistics, boxes and commands: [results/study](results/study/README.md).",
        ]
    )


def _entry(summary: Mapping[str, Any], row: str, dataset: str) -> Mapping[str, Any] | None:
    for stage in ("stage2", "ptq", "stage1"):
        for box in ("oracle", "none"):
            for entry in summary["rows"]:
                found = tuple(entry[key] for key in ("row", "stage", "set", "box"))
                if found == (row, stage, dataset, box):
                    return entry  # type: ignore[no-any-return]
    return None


def _crossing(summary: Mapping[str, Any], title: str, method: str) -> str | None:
    rows = [summary.get("preferred", {}).get(source, {}).get(method) for source in SOURCES]
    there, back = (_entry(summary, row, "test") for row in rows)
    if there is None or back is None:
        return None
    dice = [
        entry["by_source"][other]["dice_mean"]
        for entry, other in ((there, SOURCES[1]), (back, SOURCES[0]))
    ]
    seeds = len(there["seeds"])
    return f"{title} {sum(dice) / 2:.4f} ({seeds} seed{'s' if seeds > 1 else ''})"


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
    """Return images a second on a GPU, each beside its peer of the same run."""
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
            "Commands, commits, every technique: [results/speed](results/speed/README.md).",
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
    """Return what one film takes, from its file to the mask, and the first mask of a command."""
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
        f"- {machine['processor']}, {machine['cores']} cores, {summary['images']} films, "
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
    return f"Warned of: {told}. Chests are of hospitals that were not trained on."


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


def _cases(summary: Mapping[str, Any]) -> str:
    data = summary.get("data") or {}
    counts = [f"{data[split]} {split}" for split in ("train", "val", "test") if split in data]
    known = f", {', '.join(counts)} images" if counts else ""
    return f"{known}, seed {summary['seed']}" if "seed" in summary else known


def _rows(rows: Any) -> str:
    lines = ["| model | Dice, mean ± sd | IoU | cases |", "|---|---|---|---|"]
    for row in rows:
        name = ROWS.get(row["name"], row["name"])
        dice = f"{row['dice_mean']:.4f} ± {row['dice_std']:.4f}"
        lines.append(f"| {name} | {dice} | {row['iou_mean']:.4f} | {row['n']} |")
    dropped = [f"{row['name']} {row['dropped']}" for row in rows if row.get("dropped")]
    if dropped:
        lines.append(f"\nCases without a figure, left out of the means: {', '.join(dropped)}.")
    return "\n".join(lines)


def _sizes(summary: Mapping[str, Any]) -> str | None:
    sizes = summary.get("sizes_bytes") or {}
    known = [f"{SIZES.get(key, key)} {value / 1e6:.2f} MB" for key, value in sizes.items()]
    if not known:
        return None
    full, small = sizes.get("fp32", sizes.get("fp32_onnx")), sizes.get("int8_onnx")
    ratio = f" ({full / small:.2f}× smaller)" if full and small else ""
    return f"Bytes on disk, whole model: {', '.join(known)}{ratio}."


def _parity(summary: Mapping[str, Any]) -> str | None:
    parity = summary.get("parity") or {}
    if not {"dice_min", "pixel_agreement"} <= set(parity):
        return None
    return (
        "ONNX Runtime against the quantized PyTorch model, validation images: lowest Dice "
        f"{parity['dice_min']:.4f}, equal pixels {parity['pixel_agreement']:.4%}."
    )


def _ranks(summary: Mapping[str, Any]) -> str | None:
    ranks = summary.get("ranks") or {}
    before, after = ranks.get("before"), ranks.get("after")
    if not before or not after:
        return None
    values = list(after.values())
    return (
        f"Ranks: {sum(before.values()) / len(before):.0f} a layer before pruning, "
        f"{sum(values) / len(values):.1f} on average after it "
        f"({min(values)} to {max(values)} over {len(values)} layers)."
    )


def _seconds(summary: Mapping[str, Any]) -> str | None:
    seconds = summary.get("seconds") or {}
    if not seconds:
        return None
    known = ", ".join(f"{phase.replace('_', ' ')} {value:.0f}" for phase, value in seconds.items())
    return f"Seconds: {sum(seconds.values()):.0f} in all ({known})."


def _speed(speed: Any) -> str | None:
    """Return the latencies of one run as a table, with the ratio of each to the last."""
    if not isinstance(speed, Mapping) or not speed.get("models"):
        return None
    models, ratios = speed["models"], speed["speedup"]
    lines = ["| one image on this machine, one run | median | ratio to the last |", "|---|---|---|"]
    lines += [
        f"| {name.replace('_', ' ')} | {row['median_s']:.2f} s | "
        f"{f'{ratios[name]:.2f}×' if name in ratios else '1'} |"
        for name, row in models.items()
    ]
    return "\n".join(lines)


def _origin(summary: Mapping[str, Any]) -> str | None:
    versions, machine = summary.get("versions") or {}, summary.get("machine") or {}
    parts = [f"{name} {versions[name]}" for name in VERSIONS if name in versions]
    place = machine.get("gpu") or machine.get("processor")
    parts += [f"{place}, {machine['cores']} CPU cores"] if place and "cores" in machine else []
    commit = summary.get("commit")
    parts += [f"commit `{commit[:12]}{'-dirty' if commit.endswith('-dirty') else ''}`"] * bool(
        commit
    )
    return f"Made with {', '.join(parts)}." if parts else None


def main() -> None:
    """Rewrite the README's tables and say what is missing."""
    inside, notes = results_text(ROOT)
    README.write_text(between_markers(README.read_text("utf-8"), inside), encoding="utf-8")
    for note in notes:
        print(f"note: {note}")
    print(f"wrote the tables of {README.name}")


if __name__ == "__main__":
    main()
