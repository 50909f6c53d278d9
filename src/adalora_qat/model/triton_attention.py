"""A flash attention kernel that adds decomposed relative positions as it goes.

S[i, j] = s·q_i·k_j + rel_h[i, y_j] + rel_w[i, x_j], softmax over j, times v; neither S nor the
bias is ever in memory (FlashAttention-2, Dao 2023, with the bias of MViTv2, Li et al. 2022,
Eq. 4). The grid may be one window (global attention) or be cut into windows in place: tokens of
a window are addressed where they stand, and those that fall off the grid are padding.

Two ways to the bias of a block of keys, chosen when a kernel is compiled:
- rows: a block is whole rows of keys, so rel_w is one tile for all blocks and rel_h a column for
  each row. The forward pass always goes this way, and fills rows of odd windows up;
- one-hot: the backward pass of such windows; the bias is [rel_h, rel_w]·onehot(y_j, x_j).

The kernels themselves and the legend of their letters: ``triton_attention_kernels``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from adalora_qat.model.triton_attention_kernels import (
    delta_kernel,
    forward_kernel,
    keys_kernel,
    queries_kernel,
    terms_backward_kernel,
    terms_kernel,
)


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
    heads : H.
    window : G; E for global attention.

    Returns
    -------
    (B, E, E, H·D).
    """
    tables = torch.stack([row_table, column_table]).to(qkv.dtype)
    out: Tensor = _attention(qkv.contiguous(), padding.contiguous(), tables, heads, window)[0]
    return out


def attend(qkv: Tensor, padding: Tensor, tables: Tensor, heads: int, window: int) -> Tensor:
    """Attend within windows, without gradients.

    Parameters
    ----------
    qkv, padding, heads, window : as in ``relative_attention``.
    tables : (2, E, K, D), those of rows and of columns, in the dtype of ``qkv``.

    Returns
    -------
    (B, E, E, H·D).
    """
    return _attend(qkv, padding, tables, heads, window)[0]


@torch.library.custom_op("adalora_qat::relative_attention", mutates_args=())
def _attention(
    qkv: Tensor, padding: Tensor, tables: Tensor, heads: int, window: int
) -> tuple[Tensor, Tensor]:
    """Return the attended (B, E, E, H·D) and the base-2 log-sum-exp (B, H, E·E) FP32.

    Parameters
    ----------
    qkv, padding, tables, heads, window : as in ``attend``.
    """
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
    forward_kernel[grid](
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
    """Return the gradients of qkv, and of the relative terms, (B, H, E·E, 2K).

    Parameters
    ----------
    grad : (B, E, E, H·D), of the output.
    qkv, padding, tables, heads, window : as in ``attend``.
    out, lse : what ``_attention`` returned.
    """
    E = qkv.shape[1]
    qkv, padding = _aligned(qkv), _aligned(padding)
    shape = _Shape.of(qkv, tables, heads, window)
    # Cheaper to make again than to keep: 2K numbers a token and head.
    rel = _relative_terms(qkv, tables, heads)
    grad_qkv, grad_rel = torch.empty_like(qkv), torch.empty_like(rel)
    delta = torch.empty_like(lse)
    rows = triton.cdiv(E * E, 128)
    delta_kernel[(rows, heads, len(qkv))](grad, out, delta, E * E, heads, D=shape.D, M=128)
    for name, kernel, target in (
        ("keys", keys_kernel, None),
        ("queries", queries_kernel, grad_rel),
    ):
        tile, grid = shape.launch(name)
        extra = [] if target is None else [target]
        kernel[grid](
            *(qkv, padding, rel, grad, lse, delta, grad_qkv, *extra),
            *(E, shape.windows, heads),
            **shape.constants(name, tile),
        )
    for axis in (0, 1):
        terms_backward_kernel[(E, heads, len(qkv))](
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
        """Read the sizes from the tensors; arguments as in ``attend``."""
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
    terms_kernel[(2 * E, heads, B)](qkv, tables, rel, E, heads, LINE=_line(E), D=D, K=K)
    return rel
