"""A flash attention kernel that adds decomposed relative positions as it goes.

S[i, j] = s·q_i·k_j + rel_h[i, y_j] + rel_w[i, x_j], softmax over j, times v; neither S nor the
bias is ever in memory (FlashAttention-2, Dao 2023, with the bias of MViTv2, Li et al. 2022,
Eq. 4). The grid may be one window (global attention) or be cut into windows in place: tokens of
a window are addressed where they stand, and those that fall off the grid are padding.

Two ways to the bias of a block of keys, chosen when a kernel is compiled:
- rows: a block is whole rows of keys, so rel_w is one tile for all blocks and rel_h a column for
  each row. The forward pass always goes this way, and fills rows of odd windows up;
- one-hot: the backward pass of such windows; the bias is [rel_h, rel_w]·onehot(y_j, x_j).

Legend: B images, E grid side, G window side, H heads, D head width, K slots of a relative table
(G rounded up to 16); M queries and N keys of a block; z counts windows of all images. Scores are
held in base 2: LOG2E is folded into every factor, and exp2 is one instruction.
"""
# Kernels are typed by Triton, not by Python.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True)
class Tile:
    """How a kernel is cut: queries and keys of a block, warps, pipeline stages."""

    M: int
    N: int
    warps: int
    stages: int


# By kernel and by way to the bias: the best on an H200 by benchmarks/attention_kernels.py.
TILES: dict[tuple[str, bool], Tile] = {
    ("forward", True): Tile(64, 64, 4, 3),
    ("keys", True): Tile(64, 64, 4, 3),
    ("queries", True): Tile(64, 64, 4, 3),
    ("forward", False): Tile(64, 32, 4, 3),
    ("keys", False): Tile(64, 64, 4, 2),
    ("queries", False): Tile(64, 32, 4, 2),
}


def relative_attention(
    qkv: Tensor, padding: Tensor, row_table: Tensor, column_table: Tensor, heads: int, window: int
) -> Tensor:
    """Attend within windows, differentiably.

    Parameters
    ----------
    qkv : (B, E, E, 3·H·D), the projection's output; half precision on a GPU.
    padding : (3·H·D,), q, k and v of a token off the grid. Gets no gradient.
    row_table, column_table : (E, K, D), as ``fast_attention.relative_tables`` gives them.
    window : G; E for global attention.

    Returns
    -------
    (B, E, E, H·D).
    """
    tables = torch.stack([row_table, column_table]).to(qkv.dtype)
    out: Tensor = _attention(qkv.contiguous(), padding.contiguous(), tables, heads, window)[0]
    return out


def attend(qkv: Tensor, padding: Tensor, tables: Tensor, heads: int, window: int) -> Tensor:
    """Attend within windows, without gradients: tables (2, E, K, D), the rest as above."""
    return _attend(qkv, padding, tables, heads, window)[0]


@torch.library.custom_op("adalora_qat::relative_attention", mutates_args=())
def _attention(
    qkv: Tensor, padding: Tensor, tables: Tensor, heads: int, window: int
) -> tuple[Tensor, Tensor]:
    """Return the attended (B, E, E, H·D) and the base-2 log-sum-exp (B, H, E·E) FP32."""
    return _attend(qkv, padding, tables, heads, window)


def _attend(
    qkv: Tensor, padding: Tensor, tables: Tensor, heads: int, window: int
) -> tuple[Tensor, Tensor]:
    B, E, _, triple = qkv.shape
    qkv, padding = _aligned(qkv), _aligned(padding)
    out = qkv.new_empty(B, E, E, triple // 3)
    lse = qkv.new_empty(B, heads, E * E, dtype=torch.float32)
    rel = _relative_terms(qkv, tables, heads)
    shape = _Shape.of(qkv, tables, heads, window)
    tile, grid = shape.launch("forward")
    _forward_kernel[grid](
        qkv, padding, rel, out, lse, E, shape.windows, heads, **shape.constants("forward", tile)
    )
    return out, lse


@_attention.register_fake
def _(
    qkv: Tensor, padding: Tensor, tables: Tensor, heads: int, window: int
) -> tuple[Tensor, Tensor]:
    B, E, _, triple = qkv.shape
    out = qkv.new_empty(B, E, E, triple // 3)
    return out, qkv.new_empty(B, heads, E * E, dtype=torch.float32)


@torch.library.custom_op("adalora_qat::relative_attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor,
    qkv: Tensor,
    padding: Tensor,
    tables: Tensor,
    out: Tensor,
    lse: Tensor,
    heads: int,
    window: int,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of qkv and of the relative terms (B, H, E·E, 2K)."""
    E = qkv.shape[1]
    qkv, padding = _aligned(qkv), _aligned(padding)
    shape = _Shape.of(qkv, tables, heads, window)
    # Cheaper to make again than to keep: 2K numbers a token and head.
    rel = _relative_terms(qkv, tables, heads)
    grad_qkv, grad_rel = torch.empty_like(qkv), torch.empty_like(rel)
    delta = torch.empty_like(lse)
    rows = triton.cdiv(E * E, 128)
    _delta_kernel[(rows, heads, len(qkv))](grad, out, delta, E * E, heads, D=shape.D, M=128)
    for name, kernel, target in (
        ("keys", _keys_kernel, None),
        ("queries", _queries_kernel, grad_rel),
    ):
        tile, grid = shape.launch(name)
        extra = [] if target is None else [target]
        kernel[grid](
            *(qkv, padding, rel, grad, lse, delta, grad_qkv, *extra),
            *(E, shape.windows, heads),
            **shape.constants(name, tile),
        )
    for axis in (0, 1):
        _terms_backward_kernel[(E, heads, len(qkv))](
            grad_rel, tables, grad_qkv, E, heads, AXIS=axis, LINE=_line(E), D=shape.D, K=shape.K
        )
    return grad_qkv, grad_rel


@_attention_backward.register_fake
def _(
    grad: Tensor,
    qkv: Tensor,
    padding: Tensor,
    tables: Tensor,
    out: Tensor,
    lse: Tensor,
    heads: int,
    window: int,
) -> tuple[Tensor, Tensor]:
    B, E = qkv.shape[:2]
    return torch.empty_like(qkv), qkv.new_empty(B, heads, E * E, 2 * tables.shape[2])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, padding, tables, ctx.heads, ctx.window = inputs
    ctx.save_for_backward(qkv, padding, tables, *output)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    qkv, padding, tables, out, lse = ctx.saved_tensors
    grad_qkv, grad_rel = _attention_backward(
        grad.contiguous(), qkv, padding, tables, out, lse, ctx.heads, ctx.window
    )
    grad_tables = None
    if ctx.needs_input_grad[2]:
        # Only where the positions themselves are trained: a plain product will do.
        B, E = qkv.shape[:2]
        query = qkv.view(B, E, E, 3, ctx.heads, -1)[:, :, :, 0]
        terms = grad_rel.view(B, ctx.heads, E, E, 2, -1)
        rows = torch.einsum("bhyxk,byxhd->ykd", terms[..., 0, :], query)
        columns = torch.einsum("bhyxk,byxhd->xkd", terms[..., 1, :], query)
        grad_tables = torch.stack([rows, columns])
    return grad_qkv, None, grad_tables, None, None


_attention.register_autograd(_backward, setup_context=_setup)


@dataclass(frozen=True)
class _Shape:
    """The sizes that a launch needs."""

    B: int
    E: int
    heads: int
    D: int
    G: int
    K: int

    @classmethod
    def of(cls, qkv: Tensor, tables: Tensor, heads: int, window: int) -> _Shape:
        B, E, _, triple = qkv.shape
        return cls(B, E, heads, triple // (3 * heads), window, tables.shape[2])

    @property
    def windows(self) -> int:
        """Windows along one side."""
        return -(-self.E // self.G)

    @property
    def by_rows(self) -> bool:
        """Whether a block of keys can be a whole row of the only window."""
        return self.G == self.E and self.G in {16, 32, 64, 128}

    def launch(self, kernel: str) -> tuple[Tile, tuple[int, int, int]]:
        tile = TILES[kernel, self.by_rows]
        if self.by_rows:
            # Blocks then divide the window, and no access needs a guard.
            rows = max(1, tile.N // self.G) if kernel == "forward" else 1
            tile = Tile(min(tile.M, self.G * self.G), rows * self.G, tile.warps, tile.stages)
        elif kernel == "forward":
            tile = Tile(tile.M, max(tile.N, self.row_width), tile.warps, tile.stages)
        step = tile.N if kernel == "keys" else tile.M
        blocks = triton.cdiv(self.G * self.G, step)
        return tile, (blocks, self.heads, self.B * self.windows**2)

    @property
    def row_width(self) -> int:
        """A row of the window, filled up to what a tile takes."""
        return max(16, int(triton.next_power_of_2(self.G)))

    def constants(self, kernel: str, tile: Tile) -> dict[str, Any]:
        sizes = {"G": self.G, "D": self.D, "K": self.K, "M": tile.M, "N": tile.N}
        if kernel == "forward":
            sizes |= {"P": self.row_width}
        factors = {"SCALE": 1 / math.sqrt(self.D), "ROWS": self.by_rows}
        return sizes | factors | {"num_warps": tile.warps, "num_stages": tile.stages}


def _aligned(tensor: Tensor) -> Tensor:
    # Kernels take it as given that rows begin at multiples of 16 bytes.
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _line(E: int) -> int:
    # A tile of tokens along one line of the grid; tensor cores want 16.
    return max(16, int(triton.next_power_of_2(E)))


def _relative_terms(qkv: Tensor, tables: Tensor, heads: int) -> Tensor:
    """Return [rel_h, rel_w] of every token, (B, H, E·E, 2K)."""
    B, E = qkv.shape[:2]
    K, D = tables.shape[2:]
    rel = qkv.new_empty(B, heads, E * E, 2 * K)
    _terms_kernel[(2 * E, heads, B)](qkv, tables, rel, E, heads, LINE=_line(E), D=D, K=K)
    return rel


@triton.jit
def _terms_kernel(qkv, tables, rel, E, heads, LINE: tl.constexpr, D: tl.constexpr, K: tl.constexpr):
    # One program: the queries along one row (axis 0) or column (axis 1), times its table.
    axis, line = tl.program_id(0) // E, tl.program_id(0) % E
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    along = tl.arange(0, LINE)
    inside = along < E
    place = tl.where(axis == 0, line * E + along, along * E + line)
    d, k = tl.arange(0, D), tl.arange(0, K)
    rows = (image * E * E + place) * (3 * heads * D) + head * D
    query = tl.load(qkv + rows[:, None] + d[None, :], mask=inside[:, None], other=0)
    table = tl.load(tables + ((axis * E + line) * K + k[:, None]) * D + d[None, :])
    terms = tl.dot(query, tl.trans(table), input_precision="ieee")
    to = ((image * heads + head) * E * E + place) * (2 * K) + axis * K
    tl.store(rel + to[:, None] + k[None, :], terms.to(rel.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _terms_backward_kernel(
    grad_rel,
    tables,
    grad_qkv,
    E,
    heads,
    AXIS: tl.constexpr,
    LINE: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
):
    # Adds the terms' share to the gradient of q; the two axes are two launches, one after another.
    line, head, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    along = tl.arange(0, LINE)
    inside = (along < E)[:, None]
    place = line * E + along if AXIS == 0 else along * E + line
    d, k = tl.arange(0, D), tl.arange(0, K)
    start = ((image * heads + head) * E * E + place) * (2 * K) + AXIS * K
    terms = tl.load(grad_rel + start[:, None] + k[None, :], mask=inside, other=0)
    table = tl.load(tables + ((AXIS * E + line) * K + k[:, None]) * D + d[None, :])
    rows = (image * E * E + place) * (3 * heads * D) + head * D
    to = grad_qkv + rows[:, None] + d[None, :]
    total = tl.load(to, mask=inside, other=0).to(tl.float32)
    total = tl.dot(terms, table, total, input_precision="ieee")
    tl.store(to, total.to(grad_qkv.dtype.element_ty), mask=inside)


@triton.jit
def _delta_kernel(grad, out, delta, tokens, heads, D: tl.constexpr, M: tl.constexpr):
    # Δ_i = Σ_d dO[i, d]·O[i, d], which is Σ_j P[i, j]·dP[i, j].
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    i = tl.program_id(0) * M + tl.arange(0, M)
    inside = i < tokens
    d = tl.arange(0, D)
    at = ((image * tokens + i) * heads + head)[:, None] * D + d[None, :]
    left = tl.load(grad + at, mask=inside[:, None], other=0).to(tl.float32)
    right = tl.load(out + at, mask=inside[:, None], other=0).to(tl.float32)
    tl.store(delta + (image * heads + head) * tokens + i, tl.sum(left * right, 1), mask=inside)


@triton.jit
def _corner(E, windows, G: tl.constexpr):
    # The image and the upper left token of this program's window.
    z = tl.program_id(2)
    window = z % (windows * windows)
    image = (z // (windows * windows)).to(tl.int64)
    return image, window // windows * G, window % windows * G


@triton.jit
def _place(t, top, left, E, G: tl.constexpr):
    # Where token t of a window stands on the grid, and whether it does.
    y, x = top + t // G, left + t % G
    return y * E + x, (t < G * G) & (y < E) & (x < E)


@triton.jit
def _load(base, place, inside, pad, stride, D: tl.constexpr, GUARD: tl.constexpr):
    # A (tokens, D) tile of q, k or v; off the grid it is the padding's. Addresses are chosen,
    # not values: a load without a mask is pipelined straight into shared memory.
    d = tl.arange(0, D)
    row = place * stride
    if GUARD:
        size: tl.constexpr = base.dtype.element_ty.primitive_bitwidth // 8
        apart = (pad.to(tl.int64) - base.to(tl.int64)) // size
        row = tl.multiple_of(tl.where(inside, row.to(tl.int64), apart), 8)
    return tl.load(base + row[:, None] + d[None, :])


@triton.jit
def _one_hot(t, G: tl.constexpr, K: tl.constexpr, like):
    # (2K, tokens): slot y_j, and slot K + x_j, of each token.
    slot = tl.arange(0, 2 * K)[:, None]
    hot = (slot == (t // G)[None, :]) | (slot == K + (t % G)[None, :])
    return hot.to(like)


@triton.jit
def _forward_kernel(
    qkv,
    padding,
    rel,
    out,
    lse,
    E,
    windows,
    heads,
    G: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    P: tl.constexpr,
):
    # One program: M queries of one head and window, against all of the window's keys. A block
    # of keys is N/P whole rows of the window, each filled up to P: rel_w is then one tile for
    # all blocks, and rel_h a column for each row.
    head = tl.program_id(1)
    image, top, left = _corner(E, windows, G)
    C = heads * D
    base = qkv + image * E * E * 3 * C + head * D
    pad = padding + head * D
    kind = qkv.dtype.element_ty
    R: tl.constexpr = N // P

    first = tl.program_id(0) * M
    if top + first // G >= E:
        return  # all of these queries are off the grid
    i = first + tl.arange(0, M)
    place, inside = _place(i, top, left, E, G)
    query = _load(base, place, inside, pad, 3 * C, D, not ROWS)
    terms = rel + ((image * heads + head) * E * E + place) * (2 * K)
    slot = tl.arange(0, N)
    down, x = slot // P, slot % P
    if ROWS:
        columns = tl.load(terms[:, None] + K + x[None, :]).to(tl.float32) * LOG2E
    else:
        seen = inside[:, None] & (x < G)[None, :]
        columns = tl.load(terms[:, None] + K + x[None, :], mask=seen, other=0)
        columns = tl.where((x < G)[None, :], columns.to(tl.float32) * LOG2E, float("-inf"))

    top_score = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    result = tl.zeros([M, D], tl.float32)
    if R == 1:
        row = tl.load(terms, mask=inside, other=0).to(tl.float32) * LOG2E
    for y in range(0, G, R):
        spot = (top + y + down) * E + left + x
        # Off the window a slot is masked, off the grid it is padding: both load padding.
        real = (y + down < G) & (x < G) & (top + y + down < E) & (left + x < E)
        key = _load(base + C, spot, real, pad + C, 3 * C, D, not ROWS)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * (SCALE * LOG2E)
        score += columns
        if R == 1:
            # rel_h is one number for the whole block: it moves the maximum, not the scores.
            peak = tl.maximum(top_score, tl.max(score, 1) + row)
            weight = tl.math.exp2(score - (peak - row)[:, None])
            # The next block's, asked for early: nothing else hides its latency.
            following = tl.minimum(y + 1, G - 1)
            row = tl.load(terms + following, mask=inside, other=0).to(tl.float32) * LOG2E
        else:
            rows = tl.zeros([M, N], tl.float32)
            for r in tl.static_range(R):
                one = tl.load(terms + tl.minimum(y + r, G - 1), mask=inside, other=0)
                one = one.to(tl.float32) * LOG2E
                rows = tl.where((down == r)[None, :], one[:, None], rows)
            score += rows
            if G % R != 0:
                score = tl.where((y + down < G)[None, :], score, float("-inf"))
            peak = tl.maximum(top_score, tl.max(score, 1))
            weight = tl.math.exp2(score - peak[:, None])
        shrink = tl.math.exp2(top_score - peak)
        top_score = peak
        total = total * shrink + tl.sum(weight, 1)
        value = _load(base + 2 * C, spot, real, pad + 2 * C, 3 * C, D, not ROWS)
        result = tl.dot(weight.to(kind), value, result * shrink[:, None], input_precision="ieee")

    d = tl.arange(0, D)
    at = out + (image * E * E + place)[:, None] * C + head * D + d[None, :]
    result = result / total[:, None]
    tl.store(at, result.to(kind), mask=inside[:, None])
    to = lse + (image * heads + head) * E * E + place
    tl.store(to, top_score + tl.math.log2(total), mask=inside)


@triton.jit
def _keys_kernel(
    qkv,
    padding,
    rel,
    grad,
    lse,
    delta,
    grad_qkv,
    E,
    windows,
    heads,
    G: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
):
    # One program: the gradients of N keys and values, over all queries. Everything is held
    # transposed, (N, M), so that P and dS stay in registers as the left factor of a product.
    head = tl.program_id(1)
    image, top, left = _corner(E, windows, G)
    C = heads * D
    base = qkv + image * E * E * 3 * C + head * D
    pad = padding + head * D
    kind = qkv.dtype.element_ty
    plane = (image * heads + head) * E * E

    j = tl.program_id(0) * N + tl.arange(0, N)
    spot, real = _place(j, top, left, E, G)
    key = _load(base + C, spot, real, pad + C, 3 * C, D, not ROWS)
    value = _load(base + 2 * C, spot, real, pad + 2 * C, 3 * C, D, not ROWS)
    if not ROWS:
        hot = tl.trans(_one_hot(j, G, K, kind))
    grad_key = tl.zeros([N, D], tl.float32)
    grad_value = tl.zeros([N, D], tl.float32)
    d = tl.arange(0, D)
    for start in range(0, G * G, M):
        i = start + tl.arange(0, M)
        place, inside = _place(i, top, left, E, G)
        query = _load(base, place, inside, pad, 3 * C, D, not ROWS)
        at = grad + (image * E * E + place)[:, None] * C + head * D + d[None, :]
        terms = rel + (plane + place) * (2 * K)
        score = tl.dot(key, tl.trans(query), input_precision="ieee") * (SCALE * LOG2E)
        if ROWS:
            grad_out = tl.load(at)
            columns = tl.load(terms[None, :] + K + tl.arange(0, N)[:, None])
            score += columns.to(tl.float32) * LOG2E
            row = tl.load(terms + tl.program_id(0)).to(tl.float32) * LOG2E
            shift = tl.load(lse + plane + place) - row
            drop = tl.load(delta + plane + place)
        else:
            grad_out = tl.load(at, mask=inside[:, None], other=0)
            slots = terms[:, None] + tl.arange(0, 2 * K)[None, :]
            both = tl.load(slots, mask=inside[:, None], other=0)
            score += tl.dot(hot, tl.trans(both), input_precision="ieee") * LOG2E
            # A query off the grid has no output: infinity takes its weights to zero.
            shift = tl.load(lse + plane + place, mask=inside, other=float("inf"))
            drop = tl.load(delta + plane + place, mask=inside, other=0)
        weight = tl.math.exp2(score - shift[None, :])
        grad_value = tl.dot(weight.to(kind), grad_out, grad_value, input_precision="ieee")
        grad_weight = tl.dot(value, tl.trans(grad_out), input_precision="ieee")
        grad_score = weight * (grad_weight - drop[None, :])
        grad_key = tl.dot(grad_score.to(kind), query, grad_key, input_precision="ieee")

    to = grad_qkv + (image * E * E + spot)[:, None] * (3 * C) + head * D + d[None, :]
    tl.store(to + C, (grad_key * SCALE).to(kind), mask=real[:, None])
    tl.store(to + 2 * C, grad_value.to(kind), mask=real[:, None])


@triton.jit
def _queries_kernel(
    qkv,
    padding,
    rel,
    grad,
    lse,
    delta,
    grad_qkv,
    grad_rel,
    E,
    windows,
    heads,
    G: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
):
    # One program: the gradients of M queries and of their relative terms, over all keys.
    head = tl.program_id(1)
    image, top, left = _corner(E, windows, G)
    C = heads * D
    base = qkv + image * E * E * 3 * C + head * D
    pad = padding + head * D
    kind = qkv.dtype.element_ty
    plane = (image * heads + head) * E * E

    i = tl.program_id(0) * M + tl.arange(0, M)
    place, inside = _place(i, top, left, E, G)
    query = _load(base, place, inside, pad, 3 * C, D, not ROWS)
    d = tl.arange(0, D)
    at = grad + (image * E * E + place)[:, None] * C + head * D + d[None, :]
    grad_out = tl.load(at, mask=inside[:, None], other=0)
    shift = tl.load(lse + plane + place, mask=inside, other=float("inf"))
    drop = tl.load(delta + plane + place, mask=inside, other=0)
    terms, to_terms = rel + (plane + place) * (2 * K), grad_rel + (plane + place) * (2 * K)
    if ROWS:
        slot = tl.arange(0, N)
        columns = tl.load(terms[:, None] + K + slot[None, :]).to(tl.float32) * LOG2E
        grad_columns = tl.zeros([M, N], tl.float32)
    else:
        slot = tl.arange(0, 2 * K)
        both = tl.load(terms[:, None] + slot[None, :], mask=inside[:, None], other=0)
        grad_both = tl.zeros([M, 2 * K], tl.float32)

    grad_query = tl.zeros([M, D], tl.float32)
    for start in range(0, G * G, N):
        j = start + tl.arange(0, N)
        spot, real = _place(j, top, left, E, G)
        key = _load(base + C, spot, real, pad + C, 3 * C, D, not ROWS)
        value = _load(base + 2 * C, spot, real, pad + 2 * C, 3 * C, D, not ROWS)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * (SCALE * LOG2E)
        if ROWS:
            row = tl.load(terms + start // N).to(tl.float32) * LOG2E
            weight = tl.math.exp2(score + columns - (shift - row)[:, None])
        else:
            hot = _one_hot(j, G, K, kind)
            score += tl.dot(both, hot, input_precision="ieee") * LOG2E
            weight = tl.math.exp2(score - shift[:, None])
            weight = tl.where((j < G * G)[None, :], weight, 0.0)
        grad_weight = tl.dot(grad_out, tl.trans(value), input_precision="ieee")
        grad_score = weight * (grad_weight - drop[:, None])
        if ROWS:
            grad_columns += grad_score
            tl.store(to_terms + start // N, tl.sum(grad_score, 1).to(kind))
        else:
            grad_both = tl.dot(
                grad_score.to(kind), tl.trans(hot), grad_both, input_precision="ieee"
            )
        grad_query = tl.dot(grad_score.to(kind), key, grad_query, input_precision="ieee")

    if ROWS:
        tl.store(to_terms[:, None] + K + slot[None, :], grad_columns.to(kind))
    else:
        tl.store(to_terms[:, None] + slot[None, :], grad_both.to(kind), mask=inside[:, None])
    to = grad_qkv + (image * E * E + place)[:, None] * (3 * C) + head * D + d[None, :]
    tl.store(to, (grad_query * SCALE).to(kind), mask=inside[:, None])
