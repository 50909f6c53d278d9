"""The Triton kernel against plain attention: in Triton's interpreter, and on a GPU."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="Triton comes with CUDA builds of torch")

# The reference is written out in full: scores, bias, softmax, window by window.
REFERENCE = """
import torch

def reference(qkv, padding, rel_pos_h, rel_pos_w, heads, G):
    B, E, _, triple = qkv.shape
    D, n = triple // (3 * heads), -(-E // G)
    whole = padding.expand(B, n * G, n * G, triple).clone()
    whole[:, :E, :E] = qkv
    out = torch.zeros(B, n * G, n * G, heads * D, dtype=qkv.dtype, device=qkv.device)
    apart = torch.arange(G)[:, None] - torch.arange(G) + G - 1
    for top in range(0, n * G, G):
        for left in range(0, n * G, G):
            part = whole[:, top : top + G, left : left + G].reshape(B, G * G, 3, heads, D)
            q, k, v = part.permute(2, 0, 3, 1, 4)
            grid = q.reshape(B, heads, G, G, D)
            rows = torch.einsum("bhyxd,ykd->bhyxk", grid, rel_pos_h[apart])
            columns = torch.einsum("bhyxd,xkd->bhyxk", grid, rel_pos_w[apart])
            bias = rows[..., :, None] + columns[..., None, :]
            scores = q @ k.transpose(-1, -2) / D**0.5 + bias.reshape(B, heads, G * G, G * G)
            window = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, G, G, heads * D)
            out[:, top : top + G, left : left + G] = window
    return out[:, :E, :E]

def leaves(B, E, G, heads, D, dtype, device):
    torch.manual_seed(0)
    made = [torch.randn(B, E, E, 3 * heads * D), *(torch.randn(2, 2 * G - 1, D) / D**0.5)]
    padding = torch.randn(3 * heads * D).to(device, dtype)
    return [t.to(device, dtype).requires_grad_() for t in made], padding

def outcome(function, inputs):
    out = function(*inputs)
    torch.manual_seed(1)
    grad = torch.randn(out.shape).to(out)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]

def errors(B, E, G, heads, D, dtype, device):
    from adalora_qat.model.fast_attention import relative_tables
    from adalora_qat.model.triton_attention import relative_attention

    inputs, padding = leaves(B, E, G, heads, D, dtype, device)
    def ours(qkv, row, column):
        tables = relative_tables(row, column, (E, E), 0 if G == E else G, 16)
        return relative_attention(qkv, padding, *tables, heads, G)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    def theirs(qkv, row, column):
        return reference(qkv, padding.double(), row, column, heads, G)
    pairs = zip(outcome(ours, inputs), outcome(theirs, exact), strict=True)
    return [((a.double() - b).norm() / b.norm()).item() for a, b in pairs]
"""

# Grid, window, head width: rows and one-hot, windows that divide the grid, do not, exceed it.
SHAPES = [(16, 16, 16), (8, 8, 16), (8, 4, 16), (9, 4, 32), (5, 7, 16)]


def test_the_interpreted_kernel_computes_plain_attention() -> None:
    code = REFERENCE + (
        f"for E, G, D in {SHAPES}:\n    print(max(errors(2, E, G, 2, D, torch.float32, 'cpu')))\n"
    )
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    worst = [float(line) for line in done.stdout.split()]
    assert len(worst) == len(SHAPES)
    assert max(worst) < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("E", "G"), [(64, 64), (64, 14), (32, 32), (20, 8)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_compiled_kernel_computes_plain_attention(E: int, G: int, dtype: torch.dtype) -> None:
    space: dict[str, object] = {}
    exec(REFERENCE, space)
    worst = max(space["errors"](1, E, G, 2, 64, dtype, "cuda"))  # type: ignore[operator]
    assert worst < (2e-2 if dtype is torch.bfloat16 else 3e-3)
