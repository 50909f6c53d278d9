"""Write results/speed/README.md from the JSON beside it: waterfall, bars, kernels.

    python benchmarks/speed_table.py [results/speed]

No figure in the README is typed by hand. ``summary.json`` has the few that the package's README
shows: what, how fast, beside what of the same run.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Rows = Mapping[str, Mapping[str, Any]]

# Rows in the order of the waterfall: what others do, then one technique after another.
WATERFALL: Mapping[str, tuple[str, ...]] = {
    "inference": (
        "eager, fp32",
        "sdpa, fp32",
        "sdpa, tf32",
        "sdpa, bf16",
        "sdpa, bf16, compile",
        "folded, bf16, compile",
        "cudnn, bf16, compile",
        "triton, bf16, compile",
        "triton, bf16 weights, compile",
        "triton, bf16 weights, compile, graph",
        "triton, bf16 weights, compile, graph, gelu epilogue",
        "the package's fast encoder",
    ),
    "training": (
        "PEFT eager, fp32, batch 8",
        "PEFT sdpa, fp32",
        "PEFT sdpa, tf32",
        "PEFT sdpa, bf16",
        "PEFT sdpa, bf16, compile",
        "sdpa, bf16, compile",
        "folded, bf16, compile",
        "cudnn, bf16, compile",
        "triton, bf16",
        "triton, bf16, compile",
        "triton, bf16, frozen weights bf16, compile",
    ),
}
GLOBAL, WINDOWED, INFERENCE_BATCH = 4, 8, 8
GIB = 2**30 / 1e9
INFERENCE_BAR, TRAINING_BAR, TRAINING_MEMORY_BAR = 450.0, 100.0, 40.0

REMARKS = """
- Images/s are medians, the worst step stands beside.
- "The process died": the time given to the call was over while the row was still compiling.
- Results marked "-dirty" were measured on a copy of this tree laid over another checkout; several
  of them shared one host's processors, which slows down what waits for Python.
- The GELU of the rows with an epilogue, and of the package's fast encoder, is GELU's tanh form,
  the epilogue that cuBLASLt has.
- A former kernel for windows, SDPA with the bias as a mask, gave NaN under bf16 and torch.compile
  on this device and is gone: folded and triton are faster everywhere. The likely cause: a mask
  of 196 columns is padded to an aligned row and sliced again; the compiler leaves the padding
  unwritten, and the kernel adds what lies there to scores that it masks afterwards.
"""


def ours(part: str, name: str) -> bool:
    """Return whether a row is this package's and not another's."""
    return not name.startswith(("eager, ", "sdpa, ", "PEFT "))


def measured(rows: Rows, part: str) -> dict[str, Mapping[str, Any]]:
    """Return the rows of a part that have figures, by name, in the waterfall's order."""
    named = {name: rows.get(f"{part}: {name}", {}) for name in WATERFALL[part]}
    return {name: row for name, row in named.items() if "images_per_s" in row}


def right(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the rows whose results are numbers: speed without them counts for nothing."""
    return {n: r for n, r in rows.items() if math.isfinite(r.get("relative_error") or 0.0)}


def waterfall(rows: Rows, part: str) -> Iterator[str]:
    """Yield a Markdown table, one row a technique."""
    found = measured(rows, part)
    others = [row["images_per_s"] for name, row in found.items() if not ours(part, name)]
    fastest = max(others, default=None)
    gradients = part == "training"
    yield "| technique | images/s | × best other | median / worst ms | peak GiB | error |" + (
        " error of ∂Λ |" if gradients else ""
    )
    yield "|---|---:|---:|---:|---:|---:|" + ("---:|" if gradients else "")
    for name in WATERFALL[part]:
        if name not in found:
            if f"{part}: {name}" not in rows:
                continue
            why = rows[f"{part}: {name}"].get("error", "not run")
            yield f"| {name} | {why.splitlines()[0][:80]} | | | | |" + (" |" if gradients else "")
            continue
        row = found[name]
        ratio = f"{row['images_per_s'] / fastest:.2f}" if fastest else ""
        cells = [
            f"**{name}**" if ours(part, name) else name,
            f"{row['images_per_s']:.1f}",
            ratio,
            f"{row['median_ms']:.1f} / {row['worst_ms']:.1f}",
            f"{row['peak_gb']:.1f}",
            _scientific(row.get("relative_error")),
        ]
        cells += [_scientific(row.get("gradient_error"))] if gradients else []
        yield f"| {' | '.join(cells)} |"


def _scientific(value: float | None) -> str:
    if value is not None and not math.isfinite(value):
        return "**NaN: wrong**"
    return "" if value is None else f"{value:.1e}"


def bars(rows: Rows) -> Iterator[str]:
    """Yield one line a bar: met or not, by which row, with the fastest other of the same run."""
    inference, training = (right(measured(rows, part)) for part in ("inference", "training"))
    yield _verdict(
        f"Encoder inference, bf16, batch 8: ≥ {INFERENCE_BAR:g} images/s",
        inference,
        "inference",
        lambda row: row["images_per_s"] >= INFERENCE_BAR,
    )
    yield _verdict(
        f"Stage 1, batch 16: ≥ {TRAINING_BAR:g} images/s at ≤ {TRAINING_MEMORY_BAR:g} GB",
        training,
        "training",
        lambda row: (
            row["images_per_s"] >= TRAINING_BAR and row["peak_gb"] * GIB <= TRAINING_MEMORY_BAR
        ),
    )


def _verdict(title: str, found: Mapping[str, Mapping[str, Any]], part: str, met: Any) -> str:
    mine = {name: row for name, row in found.items() if ours(part, name)}
    others = {name: row for name, row in found.items() if not ours(part, name)}
    if not mine:
        return f"- {title}: **not measured**."

    def described(of: Mapping[str, Mapping[str, Any]]) -> str:
        name = max(of, key=lambda n: of[n]["images_per_s"])
        return f"{of[name]['images_per_s']:.1f} images/s at {of[name]['peak_gb']:.1f} GiB ({name})"

    passed = {name: row for name, row in mine.items() if met(row)}
    outcome = f"**met**: {described(passed)}" if passed else f"**not met**: {described(mine)}"
    beside = f"; fastest other of the same run {described(others)}" if others else ""
    return f"- {title}: {outcome}{beside}."


def where_time_goes(speed: Rows, alone: Rows) -> Iterator[str]:
    """Yield what attention takes of the fastest encoder, and what must go to reach the bar."""
    found = right(measured(speed, "inference"))
    mine = [row["median_ms"] for name, row in found.items() if ours("inference", name)]
    best = [
        alone[f"tile forward {way}"]["ms"][alone[f"tile forward {way}"]["best"]]
        for way in ("rows", "one-hot")
    ]
    floor = [
        alone[f"library {kind}"]["qk 64 v 64 cudnn_attention"][0] for kind in ("global", "window")
    ]
    attention, least = (GLOBAL * pair[0] + WINDOWED * pair[1] for pair in (best, floor))
    wanted = INFERENCE_BATCH / INFERENCE_BAR * 1e3
    yield (
        f"- Of the fastest encoder's {min(mine):.1f} ms a batch, {attention:.1f} ms are attention "
        f"with relative positions ({GLOBAL} global and {WINDOWED} windowed layers, kernels timed "
        f"alone); cuDNN's attention without any bias would take {least:.1f} ms. The other "
        f"{min(mine) - attention:.1f} ms are products, norms and the neck. "
        f"{INFERENCE_BAR:g} images/s is {wanted:.1f} ms."
    )


def kernels(rows: Rows) -> Iterator[str]:
    """Yield the attention kernels alone: errors, tiles, library."""
    correct = rows.get("correct", {})
    for window, errors in correct.items():
        if isinstance(errors, Mapping):
            listed = ", ".join(f"{key} {value:.1e}" for key, value in errors.items())
            yield f"- Error against FP32 with the whole bias, {window}: {listed}."
    yield ""
    yield "| kernel | best tile (M, N, warps, stages) | ms | all tiles, ms |"
    yield "|---|---|---:|---|"
    for row, found in rows.items():
        if row.startswith("tile ") and "ms" in found:
            times = {k: v for k, v in found["ms"].items() if isinstance(v, float)}
            listed = ", ".join(f"{k} {v:.2f}" for k, v in times.items())
            best = f"{times[found['best']]:.2f}" if found["best"] else ""
            yield f"| {row[5:]} | {found['best']} | {best} | {listed} |"
    yield ""
    yield "| library kernel | forward ms | forward and backward ms |"
    yield "|---|---:|---:|"
    for row, found in rows.items():
        if row.startswith("library "):
            for kind, pair in found.items():
                if isinstance(pair, list):
                    cells = " | ".join(_time(time) for time in pair)
                    yield f"| {row[8:]}, {kind} | {cells} |"


def _time(time: float | str) -> str:
    return f"{time:.2f}" if isinstance(time, float) else "refused"


def stages(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield stage 2 beside stage 1."""
    yield "## Stage 2 beside stage 1"
    yield ""
    yield "| stage | images/s | × stage 1 | median / worst ms | peak GiB | error | error of ∂Λ |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    base = found["rows"].get("stage 1", {}).get("images_per_s")
    for name, row in found["rows"].items():
        if "images_per_s" not in row:
            yield f"| {name} | {row['error'].splitlines()[0][:80]} | | | | | |"
            continue
        ratio = f"{row['images_per_s'] / base:.2f}" if base else ""
        yield (
            f"| {name} | {row['images_per_s']:.1f} | {ratio} | "
            f"{row['median_ms']:.1f} / {row['worst_ms']:.1f} | {row['peak_gb']:.1f} | "
            f"{_scientific(row['relative_error'])} | {_scientific(row['gradient_error'])} |"
        )


def two_gpus(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield one GPU against two."""
    rows = found["rows"]
    base = rows.get("one GPU, 16 a step", {}).get("images_per_s")
    yield "## Two GPUs: whole training runs, feed included"
    yield ""
    yield "| run | images/s | × one GPU | median / worst ms | peak GiB | feed alone, a process |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name, row in rows.items():
        if "images_per_s" not in row:
            yield f"| {name} | {row['error'].splitlines()[0][:80]} | | | | |"
            continue
        feed = "" if row["feed_images_per_s"] is None else f"{row['feed_images_per_s']:.0f}"
        ratio = f"{row['images_per_s'] / base:.2f}" if base else ""
        yield (
            f"| {name} | {row['images_per_s']:.1f} | {ratio} | "
            f"{row['median_ms']:.1f} / {row['worst_ms']:.1f} | {row['peak_gb']:.1f} | "
            f"{feed} |"
        )
    if found["compared"]:
        yield ""
        yield from equality(found)


def equality(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield how far the same steps on one GPU and on two lie apart."""
    yield "The same steps on one GPU and on two:"
    yield ""
    for pair, apart in found["compared"].items():
        ranks = "identical" if apart["ranks_identical"] else f"{apart['triplets_apart']:g} apart"
        yield (
            f"- {pair}: {apart['steps']} steps, losses at most "
            f"{apart['loss_relative_difference']:.1e} apart (relative); ranks {ranks}."
        )


def litemedsam(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield LiteMedSAM's training beside the plain loop, and where our time goes."""
    rows = found["rows"]
    yield "## LiteMedSAM at 256 px"
    yield ""
    yield "| what | images/s | × plain loop | median / worst ms | peak GiB |"
    yield "|---|---:|---:|---:|---:|"
    for name, row in rows.items():
        if "images_per_s" not in row:
            yield f"| {name} | {row['error'].splitlines()[0][:80]} | | | |"
            continue
        ratio = row["images_per_s"] / _plain(rows, name) if _plain(rows, name) else None
        yield (
            f"| {name} | {row['images_per_s']:.0f} | {'' if ratio is None else f'{ratio:.1f}'} | "
            f"{row['median_ms']:.1f} / {row['worst_ms']:.1f} | {row['peak_gb']:.1f} |"
        )
    for name, row in rows.items():
        if row.get("profile"):
            spent = ", ".join(f"{kind} {ms:.1f}" for kind, ms in row["profile"].items())
            yield ""
            yield f"Where a step of *{name}* goes (profiled, ms): {spent}."


def _plain(rows: Rows, name: str) -> float | None:
    what = name.partition(",")[0]
    found: float | None = rows.get(f"{what}, plain eager FP32", {}).get("images_per_s")
    return found


def verdicts(section: Any, found: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each bar that a section decides."""
    rows = found["rows"]
    asked: dict[Any, list[tuple[str, str, str, float]]] = {
        stages: [("Stage 2 ≥ 0.8 × stage 1", "stage 2, Λ trains", "stage 1", 0.8)],
        two_gpus: [
            ("Two GPUs ≥ 1.9 × one", "two GPUs, 32 a step", "one GPU, 16 a step", 1.9)
        ],
        litemedsam: [
            (f"LiteMedSAM, {what} ≥ 4 × a plain eager FP32 loop", f"{what}, ours",
             f"{what}, plain eager FP32", 4.0)
            for what in ("decoder", "stage 1")
        ],
    }  # fmt: skip
    for title, mine, other, wanted in asked.get(section, []):
        speeds = [rows.get(name, {}).get("images_per_s") for name in (mine, other)]
        if None in speeds:
            yield f"- {title}: **not measured**."
            continue
        ratio = speeds[0] / speeds[1]
        met = "met" if ratio >= wanted else "not met"
        yield f"- {title}: **{met}**: {ratio:.2f} ({speeds[0]:.0f} and {speeds[1]:.0f} images/s)."


def origin(results: Mapping[str, Any]) -> str:
    """Return one line on what a result file was measured with."""
    machine = results["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["packages"].items() if v)
    command = shlex.join(results["command"])
    note = f" {results['note']}" if "note" in results else ""
    return (
        f"`{command}` at {machine['commit']} on {machine['accelerator']} "
        f"({machine['device_memory_gb']} GiB; {versions}).{note}"
    )


def headlines(folder: Path) -> list[dict[str, Any]]:
    """Return the package's figures, each beside another of the same run."""
    wanted = (
        ("SAM ViT-B, encoder alone, 8 images", "vit_speed", "inference: the package's fast encoder",
         "transformers, SDPA, bf16, torch.compile", "inference: sdpa, bf16, compile"),
        ("SAM ViT-B, stage 1, 16 images a step", "vit_speed", "training: triton, bf16, compile",
         "transformers and PEFT, SDPA, bf16, torch.compile", "training: PEFT sdpa, bf16, compile"),
        ("SAM ViT-B, stage 2 (quantization simulated)", "stage_speed", "stage 2, Λ trains",
         "stage 1", "stage 1"),
        ("SAM ViT-B, stage 1 on two GPUs, a whole run", "two_gpus", "two GPUs, 32 a step",
         "one GPU", "one GPU, 16 a step"),
        ("LiteMedSAM, decoder fine-tuning, a whole run", "litemedsam_training", "decoder, ours",
         "a plain eager FP32 loop", "decoder, plain eager FP32"),
        ("LiteMedSAM, stage 1, a whole run", "litemedsam_training", "stage 1, ours",
         "a plain eager FP32 loop", "stage 1, plain eager FP32"),
    )  # fmt: skip
    found = []
    for what, name, row, against, other in wanted:
        file = folder / f"{name}.json"
        results = json.loads(file.read_text()) if file.is_file() else {"rows": {}}
        pair = [results["rows"].get(each, {}) for each in (row, other)]
        if all("images_per_s" in each for each in pair):
            speeds = [each["images_per_s"] for each in pair]
            found.append(
                {"what": what, "images_per_s": speeds[0], "peak_gib": pair[0]["peak_gb"],
                 "against": against, "their_images_per_s": speeds[1],
                 "their_peak_gib": pair[1]["peak_gb"], "ratio": speeds[0] / speeds[1],
                 "device": results["machine"]["accelerator"], "file": f"{name}.json"}
            )  # fmt: skip
    return found


def readme(folder: Path) -> str:
    """Return the README of the results in ``folder``."""
    speed = json.loads((folder / "vit_speed.json").read_text())
    techniques = json.loads((folder / "vit_speed_techniques.json").read_text())
    config = ", ".join(f"{key} {value}" for key, value in speed["config"].items())
    lines = [
        "# Speed of SAM ViT-B at 1024²",
        "",
        "Written by `benchmarks/speed_table.py` from the JSON here. Bold rows are this package's,",
        "the others transformers and PEFT in the same run. Errors are ‖ours − FP32‖/‖FP32‖.",
        "",
        f"vit_speed.json: {origin(speed)} {config}.",
        "",
        "## Bars",
        "",
        *bars(speed["rows"]),
    ]
    sections: list[str] = []
    for name, section in (
        ("stage_speed.json", stages),
        ("two_gpus.json", two_gpus),
        ("two_gpus_equality.json", equality),
        ("litemedsam_training.json", litemedsam),
    ):
        if (folder / name).is_file():
            found = json.loads((folder / name).read_text())
            sections += ["", *section(found), "", f"{name}: {origin(found)}"]
            lines += verdicts(section, found)
    file = folder / "attention_kernels.json"
    alone = json.loads(file.read_text())
    lines += where_time_goes(speed["rows"], alone["rows"])
    for part in WATERFALL:
        lines += ["", f"## {part.capitalize()}", "", *waterfall(speed["rows"], part)]
    lines += sections
    lines += ["", "## Technique by technique", ""]
    lines += ["An earlier run with every row, before the package's fast encoder and its kernels of"]
    lines += [f"today. vit_speed_techniques.json: {origin(techniques)}"]
    for part in WATERFALL:
        lines += ["", f"{part.capitalize()}:", "", *waterfall(techniques["rows"], part)]
    lines += ["", "## Attention kernels alone", "", f"attention_kernels.json: {origin(alone)}"]
    lines += ["Backward tiles are timed as the whole backward, one kernel's tile changed.", ""]
    lines += [*kernels(alone["rows"]), "", "## Remarks", "", REMARKS.strip()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    chosen = Path(sys.argv[1] if len(sys.argv) > 1 else "results/speed")
    (chosen / "README.md").write_text(readme(chosen), encoding="utf-8")
    rows = {"command": "python benchmarks/speed_table.py", "rows": headlines(chosen)}
    (chosen / "summary.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
