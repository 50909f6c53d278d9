"""Attention inside small windows with a learned bias, forward and backward in a kernel each.

O = softmax(s·QKᵀ + bias) V for every window and head. A window is so small (at most 256 tokens)
that all its keys fit into registers: no running softmax, nothing but q, k, v is kept for the
backward pass, and their gradients are written where the projection wants them. PyTorch's kernels
pad TinyViT's 49 tokens, want the bias expanded and aligned, and take three times as long.

Legend: W windows, N tokens of one, H heads, D head width; M queries of a block.
"""
# Kernels are typed by Triton, not by Python.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@torch.library.custom_op("adalora_qat::window_attention", mutates_args=())
def window_attention(qkv: Tensor, bias: Tensor, heads: int) -> Tensor:
    """Attend inside each window, differentiably in ``qkv``.

    Parameters
    ----------
    qkv : (W, N, H·3·D), by head first, then q, k, v; half precision on a GPU; N ≤ 256.
    bias : (H, N, N), added to the scores; gets no gradient.

    Returns
    -------
    (W, N, H·D).
    """
    W, N, triple = qkv.shape
    qkv, bias = qkv.contiguous(), bias.contiguous()
    out = qkv.new_empty(W, N, triple // 3)
    sizes = _sizes(qkv, heads)
    grid = (W * heads, triton.cdiv(N, sizes["M"]))
    _forward_kernel[grid](qkv, bias, out, heads, **sizes)
    return out


@window_attention.register_fake
def _(qkv: Tensor, bias: Tensor, heads: int) -> Tensor:
    return qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)


@torch.library.custom_op("adalora_qat::window_attention_backward", mutates_args=())
def _window_attention_backward(grad: Tensor, qkv: Tensor, bias: Tensor, heads: int) -> Tensor:
    """Return the gradient of qkv, (W, N, H·3·D).

    Parameters
    ----------
    grad : (W, N, H·D), of the output.
    qkv, bias, heads : as in ``window_attention``.
    """
    qkv, bias, grad = qkv.contiguous(), bias.contiguous(), grad.contiguous()
    grad_qkv = torch.empty_like(qkv)
    grid = (len(qkv) * heads,)
    _backward_kernel[grid](qkv, bias, grad, grad_qkv, heads, **_sizes(qkv, heads))
    return grad_qkv


@_window_attention_backward.register_fake
def _(grad: Tensor, qkv: Tensor, bias: Tensor, heads: int) -> Tensor:
    return torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    qkv, bias, ctx.heads = inputs
    ctx.save_for_backward(qkv, bias)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    qkv, bias = ctx.saved_tensors
    return _window_attention_backward(grad, qkv, bias, ctx.heads), None, None


window_attention.register_autograd(_backward, setup_context=_setup)


def _sizes(qkv: Tensor, heads: int) -> dict[str, Any]:
    _, N, triple = qkv.shape
    D = triple // (3 * heads)
    held = max(16, int(triton.next_power_of_2(N)))
    M = min(64, held)
    small = held <= 64
    return {"N": N, "D": D, "HELD": held, "M": M, "SCALE": D**-0.5, "num_warps": 4 if small else 8}


@triton.jit
def _weights(query, key, bias, head, i, j, N: tl.constexpr, SCALE: tl.constexpr):
    # softmax(s·qkᵀ + bias) of M queries over all keys, FP32.
    score = tl.dot(query, tl.trans(key), input_precision="ieee") * SCALE
    known = (i < N)[:, None] & (j < N)[None, :]
    at = bias + (head * N + i[:, None]) * N + j[None, :]
    score += tl.load(at, mask=known, other=0).to(tl.float32)
    score = tl.where((j < N)[None, :], score, float("-inf"))
    weight = tl.math.exp2((score - tl.max(score, 1)[:, None]) * 1.4426950408889634)
    return weight / tl.sum(weight, 1)[:, None]


@triton.jit
def _forward_kernel(
    qkv,
    bias,
    out,
    heads,
    N: tl.constexpr,
    D: tl.constexpr,
    HELD: tl.constexpr,
    M: tl.constexpr,
    SCALE: tl.constexpr,
):
    # One program: M queries of one window and head.
    window, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    i, j, d = tl.program_id(1) * M + tl.arange(0, M), tl.arange(0, HELD), tl.arange(0, D)
    base = qkv + window * N * heads * 3 * D + head * 3 * D
    keys = base + j[:, None] * (heads * 3 * D) + d[None, :]
    rows, real = base + i[:, None] * (heads * 3 * D) + d[None, :], (j < N)[:, None]
    query = tl.load(rows, mask=(i < N)[:, None], other=0)
    key = tl.load(keys + D, mask=real, other=0)
    weight = _weights(query, key, bias, head, i, j, N, SCALE)
    value = tl.load(keys + 2 * D, mask=real, other=0)
    result = tl.dot(weight.to(value.dtype), value, input_precision="ieee")
    to = out + ((window * N + i[:, None]) * heads + head) * D + d[None, :]
    tl.store(to, result.to(out.dtype.element_ty), mask=(i < N)[:, None])


@triton.jit
def _backward_kernel(
    qkv,
    bias,
    grad,
    grad_qkv,
    heads,
    N: tl.constexpr,
    D: tl.constexpr,
    HELD: tl.constexpr,
    M: tl.constexpr,
    SCALE: tl.constexpr,
):
    # One program: a window and head, M queries at a time. With P the weights and dP = dO·Vᵀ:
    # dS = P∘(dP − Σ P∘dP), dV = Pᵀ·dO, dK = s·dSᵀ·Q, dQ = s·dS·K.
    window, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    j, d = tl.arange(0, HELD), tl.arange(0, D)
    start = window * N * heads * 3 * D + head * 3 * D
    keys, real = j[:, None] * (heads * 3 * D) + d[None, :], (j < N)[:, None]
    key = tl.load(qkv + start + keys + D, mask=real, other=0)
    value = tl.load(qkv + start + keys + 2 * D, mask=real, other=0)
    grad_key = tl.zeros([HELD, D], tl.float32)
    grad_value = tl.zeros([HELD, D], tl.float32)
    for first in range(0, N, M):
        i = first + tl.arange(0, M)
        inside = (i < N)[:, None]
        rows = i[:, None] * (heads * 3 * D) + d[None, :]
        query = tl.load(qkv + start + rows, mask=inside, other=0)
        at = grad + ((window * N + i[:, None]) * heads + head) * D + d[None, :]
        above = tl.load(at, mask=inside, other=0)
        weight = _weights(query, key, bias, head, i, j, N, SCALE)
        through = tl.dot(above, tl.trans(value), input_precision="ieee")
        score = weight * (through - tl.sum(weight * through, 1)[:, None]) * SCALE
        half = score.to(query.dtype)
        grad_value += tl.dot(tl.trans(weight.to(above.dtype)), above, input_precision="ieee")
        grad_key += tl.dot(tl.trans(half), query, input_precision="ieee")
        grad_query = tl.dot(half, key, input_precision="ieee")
        tl.store(grad_qkv + start + rows, grad_query.to(grad_qkv.dtype.element_ty), mask=inside)
    to = grad_qkv + start + keys
    tl.store(to + D, grad_key.to(grad_qkv.dtype.element_ty), mask=real)
    tl.store(to + 2 * D, grad_value.to(grad_qkv.dtype.element_ty), mask=real)
