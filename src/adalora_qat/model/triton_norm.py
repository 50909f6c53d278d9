"""Layer norm of a residual stream that keeps its constant part aside, as one Triton kernel.

Legend: T tokens, C channels.
"""
# Kernels are typed by Triton, not by Python.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


def shifted_layer_norm(
    tokens: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """Return the layer norm of ``tokens + shift`` over the channels.

    Parameters
    ----------
    tokens : (T, C), rows one after another; half precision on a GPU.
    shift, weight, bias : (C,) FP32.
    eps : added to the variance.

    Returns
    -------
    (T, C) in the tokens' dtype; computed in FP32.
    """
    T, C = tokens.shape
    out = tokens.new_empty(T, C)
    rows = 4
    _norm_kernel[(triton.cdiv(T, rows),)](
        *(tokens, shift, weight, bias, out, T),
        C=C,
        BLOCK=triton.next_power_of_2(C),
        ROWS=rows,
        EPS=eps,
        num_warps=4,
    )
    return out


@triton.jit
def _norm_kernel(
    tokens,
    shift,
    weight,
    bias,
    out,
    T,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    EPS: tl.constexpr,
):
    # One program: ROWS tokens, a warp for each.
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)
    known = c < C
    inside = (row < T)[:, None] & known[None, :]
    at = row.to(tl.int64)[:, None] * C + c[None, :]
    value = tl.load(tokens + at, mask=inside, other=0).to(tl.float32)
    value += tl.load(shift + c, mask=known, other=0)[None, :]
    apart = tl.where(inside, value - (tl.sum(value, 1) / C)[:, None], 0)
    spread = tl.rsqrt(tl.sum(apart * apart, 1) / C + EPS)
    gain = tl.load(weight + c, mask=known, other=0)[None, :]
    result = apart * spread[:, None] * gain + tl.load(bias + c, mask=known, other=0)[None, :]
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)
