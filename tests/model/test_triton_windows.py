"""The window kernels against plain attention: in Triton's interpreter, and on a GPU."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="Triton comes with CUDA builds of torch")

REFERENCE = """
import torch

def reference(qkv, bias, heads):
    W, N, triple = qkv.shape
    q, k, v = qkv.view(W, N, heads, 3, -1).permute(3, 0, 2, 1, 4)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(W, N, -1)

def errors(W, N, heads, D, dtype, device):
    from adalora_qat.model.triton_windows import window_attention

    torch.manual_seed(0)
    qkv = torch.randn(W, N, heads * 3 * D).to(device, dtype).requires_grad_()
    bias = torch.randn(heads, N, N).to(device, dtype)
    grad = torch.randn(W, N, heads * D).to(device, dtype)
    exact = qkv.detach().double().requires_grad_()
    ours, theirs = window_attention(qkv, bias, heads), reference(exact, bias.double(), heads)
    pairs = [(ours, theirs)]
    pairs += zip(
        torch.autograd.grad(ours, qkv, grad), torch.autograd.grad(theirs, exact, grad.double())
    )
    return [((a.double() - b).norm() / b.norm()).item() for a, b in pairs]
"""

# Windows of one block, of several, and that fill theirs exactly.
SHAPES = [(3, 49, 2, 16), (2, 100, 1, 16), (2, 16, 2, 32)]


def test_the_interpreted_kernels_compute_plain_attention() -> None:
    code = REFERENCE + (
        f"for W, N, H, D in {SHAPES}:\n    print(max(errors(W, N, H, D, torch.float32, 'cpu')))\n"
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
@pytest.mark.parametrize(("N", "heads"), [(49, 4), (196, 5)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_compiled_kernels_compute_plain_attention(
    N: int, heads: int, dtype: torch.dtype
) -> None:
    space: dict[str, object] = {}
    exec(REFERENCE, space)
    worst = max(space["errors"](40, N, heads, 32, dtype, "cuda"))  # type: ignore[operator]
    assert worst < (2e-2 if dtype is torch.bfloat16 else 3e-3)
