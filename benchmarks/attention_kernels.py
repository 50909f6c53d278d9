"""SAM ViT-B's attention kernels alone: are they right, which tiles are best, against the library.

    PYTHONPATH=src python benchmarks/attention_kernels.py [--deadline 240]

on a GPU; writes attention_kernels.json into $OUT (or ./out). Shapes are those of 8 images at
1024²: 12 heads of 64, 4096 tokens, or windows of 14×14 of them. Times are in milliseconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from _gpu_rows import Results, drive, relative_error, reset, table, timed, work
from adalora_qat.model import fast_attention, triton_attention

HEADS, WIDTH, BATCH = 12, 64, 8

# Kernel and way to the bias (rows: global layers; else windows) → (M, N, warps, stages).
TILES: dict[tuple[str, bool], tuple[tuple[int, int, int, int], ...]] = {
    ("forward", True): (
        (64, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 3), (64, 128, 4, 3),
    ),
    ("keys", True): (
        (64, 64, 4, 3), (32, 64, 4, 3),
    ),
    ("queries", True): ((64, 64, 4, 3), (128, 64, 8, 3)),
    ("forward", False): (
        (64, 32, 4, 2), (64, 32, 4, 3), (64, 32, 4, 4), (64, 64, 4, 3), (64, 16, 4, 4),
    ),
    ("keys", False): (
        (64, 64, 4, 2), (64, 64, 4, 3), (32, 64, 4, 3),
    ),
    ("queries", False): ((64, 32, 4, 2), (64, 32, 4, 3), (64, 64, 4, 2)),
}  # fmt: skip

# Name → batch, tokens; then the widths of q and k, and of v: plain (the floor), folded and padded
# for the flash kernel, folded as cuDNN takes it.
LIBRARY = {"global": (BATCH, 4096, 192), "window": (25 * BATCH, 196, 96)}


def correctness() -> Results:
    """Compare the compiled kernel with FP32 attention that has the bias in full."""
    found: Results = {}
    for window in (64, 14):
        qkv, padding, tables, _, _ = inputs(2, window)
        leaves = [t.detach().requires_grad_() for t in (qkv, *tables)]
        ours = triton_attention.relative_attention(
            leaves[0], padding, leaves[1], leaves[2], HEADS, window
        )
        exact = [t.detach().float().requires_grad_() for t in leaves]
        wanted = written_out(exact, padding.float(), window)
        grad = torch.randn_like(ours)
        pairs = zip(
            [ours, *torch.autograd.grad(ours, leaves, grad)],
            [wanted, *torch.autograd.grad(wanted, exact, grad.float())],
            strict=True,
        )
        names = ("out", "grad_qkv", "grad_row_table", "grad_column_table")
        errors = [relative_error(a, b.detach()) for a, b in pairs]
        found[f"window {window}"] = dict(zip(names, errors, strict=True))
    return found


def written_out(exact: list[Tensor], padding: Tensor, window: int) -> Tensor:
    """Attend with the whole bias in memory."""
    qkv, row, column = exact
    rel = fast_attention.relative_terms(qkv, (row, column), HEADS)
    if window != 64:
        qkv, rel = fast_attention._cut(qkv, window, padding), fast_attention._cut(rel, window, None)
    count, tokens = len(qkv), window * window
    q, k, v = qkv.view(count, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    terms = rel.view(count, tokens, HEADS, 2, -1).permute(3, 0, 2, 1, 4)[..., :window]
    bias = (terms[0][..., :, None] + terms[1][..., None, :]).flatten(3)
    weights = (q @ k.transpose(-1, -2) * WIDTH**-0.5 + bias).softmax(-1)
    out = (weights @ v).transpose(1, 2).reshape(count, window, window, -1)
    return out if window == 64 else fast_attention._join(out, window, (2, 64, 64))


def inputs(batch: int, window: int) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """Return what the forward kernel takes, drawn at random."""
    generator = torch.Generator("cuda").manual_seed(4)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=generator).bfloat16()

    qkv, padding = drawn(batch, 64, 64, 3 * HEADS * WIDTH), drawn(3 * HEADS * WIDTH)
    row, column = (0.1 * drawn(2 * window - 1, WIDTH) for _ in range(2))
    tables = fast_attention.relative_tables(row, column, (64, 64), window % 64, 16)
    return qkv, padding, torch.stack(list(tables)), HEADS, window


def tile_times(kernel: str, rows: bool) -> Results:
    """Time one kernel with each of its tiles, the other kernels with their own."""
    taken = inputs(BATCH, 64 if rows else 14)
    out, lse = triton_attention._attention(*taken)
    given = (torch.randn_like(out), *taken[:3], out, lse, *taken[3:])
    usual = triton_attention.TILES[kernel, rows]
    times: Results = {}
    for tile in TILES[kernel, rows]:
        triton_attention.TILES[kernel, rows] = triton_attention.Tile(*tile)
        try:
            if kernel == "forward":
                seconds, _ = timed(lambda: triton_attention._attention(*taken), 10, 3)
            else:
                seconds, _ = timed(lambda: triton_attention._attention_backward(*given), 10, 3)
            times[str(tile)] = round(seconds * 1e3, 3)
        except Exception as problem:  # one tile may not fit the device
            times[str(tile)] = f"{type(problem).__name__}: {str(problem)[:120]}"
    triton_attention.TILES[kernel, rows] = usual
    fine = {tile: time for tile, time in times.items() if isinstance(time, float)}
    return {"ms": times, "best": min(fine, key=fine.__getitem__) if fine else None}


def library_times(name: str) -> Results:
    """Time PyTorch's kernels: [forward, forward and backward]."""
    batch, tokens, folded = LIBRARY[name]
    times: Results = {}
    for width, value in ((WIDTH, WIDTH), (folded, folded), (folded, WIDTH)):
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            key = f"qk {width} v {value} {backend.name.lower()}"
            times[key] = library_time((batch, HEADS, tokens), (width, value), backend, bias=False)
    efficient = SDPBackend.EFFICIENT_ATTENTION
    if name == "window":
        times["bias as mask"] = library_time(
            (batch, HEADS, tokens), (WIDTH, WIDTH), efficient, bias=True
        )
    return times


def library_time(
    shape: tuple[int, int, int], widths: tuple[int, int], backend: SDPBackend, bias: bool
) -> list[Any]:
    """Time one SDPA kernel, forward and forward with backward."""
    sizes = (widths[0], widths[0], widths[1])
    q, k, v = (torch.randn(*shape, w, device="cuda").bfloat16().requires_grad_() for w in sizes)
    # A row of the mask is padded in memory to a multiple of 8, as the kernel asks.
    width = -(-shape[2] // 8) * 8
    mask = torch.randn(*shape, width, device="cuda").bfloat16()[..., : shape[2]] if bias else None

    def forward() -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def both() -> None:
        out = forward()
        torch.autograd.grad(out, (q, k, v), out)

    times: list[Any] = []
    for step in (forward, both):
        try:
            times.append(round(timed(step, 10, 3)[0] * 1e3, 3))
        except Exception as problem:  # not every kernel takes every width
            times.append(f"{type(problem).__name__}: {str(problem)[:80]}")
    return times


def compile_tiles(part: int, parts: int) -> None:
    """Fill Triton's cache on disk with a share of all variants."""
    jobs = [(key, tile) for key, tiles in TILES.items() for tile in tiles]
    for (kernel, rows), tile in jobs[part::parts]:
        triton_attention.TILES[kernel, rows] = triton_attention.Tile(*tile)
        taken = inputs(1, 64 if rows else 14)
        out, lse = triton_attention._attention(*taken)
        if kernel != "forward":
            triton_attention._attention_backward(out, *taken[:3], out, lse, *taken[3:])


def warm() -> None:
    """Compile all variants in several processes at once."""
    parts = max(1, min(10, (os.cpu_count() or 2) - 2))

    def spawn(part: int) -> None:
        command = [sys.executable, *sys.argv, "--compile", str(part), str(parts)]
        subprocess.run(command, timeout=150, check=False, stderr=subprocess.DEVNULL)

    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(spawn, range(parts)))


def run(row: str, results: Results) -> Results:
    """Run one row by name."""
    reset()
    kind, *rest = row.split(" ")
    if kind == "correct":
        return correctness()
    if kind == "library":
        return library_times(rest[0])
    return tile_times(rest[0], rest[1] == "rows")


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deadline", type=float, default=240, help="seconds for everything")
    parser.add_argument("--warm", choices=["first", "only", "never"], default="first")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--compile", nargs=2, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    rows = ["correct", *(f"tile {k} {'rows' if r else 'one-hot'}" for k, r in TILES)]
    rows += [f"library {name}" for name in LIBRARY]
    if given.compile:
        compile_tiles(*given.compile)
    elif given.worker:
        work(rows, Path(given.worker[0]), float(given.worker[1]), run)
    else:
        if given.warm != "never":
            warm()
        if given.warm != "only":
            config = {"heads": HEADS, "width": WIDTH, "batch": BATCH}
            print("\n".join(table(drive(rows, "attention_kernels", given.deadline, config))))


if __name__ == "__main__":
    main()
