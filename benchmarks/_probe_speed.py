"""Temporary, second: do the new kernels compile, agree, and how fast are they? One GPU, ~40 s."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path

import torch

from _gpu_rows import relative_error, timed
from adalora_qat.model import fast_attention, triton_attention
from adalora_qat.model.fast_inference import fast_encoder
from adalora_qat.model.sam import random_segmenter

FILE = Path(os.environ.get("OUT", "out")) / "probe2.json"
FILE.parent.mkdir(parents=True, exist_ok=True)
answers: dict[str, object] = {"device": torch.cuda.get_device_name()}


def answer(name, function):
    begun = time.time()
    try:
        got = function()
    except Exception:
        got = {"error": traceback.format_exc()[-3000:]}
    answers[name] = {"got": got, "took": round(time.time() - begun, 1)}
    FILE.write_text(json.dumps(answers, indent=1))
    print(name, json.dumps(got)[:1500], flush=True)


def ms(step, repeats=20, warm=3):
    median, worst = timed(step, repeats, warm)
    return [round(median * 1e3, 4), round(worst * 1e3, 4)]


def attention(window, check=False):
    torch.manual_seed(0)
    qkv = torch.randn(8, 64, 64, 2304, device="cuda", dtype=torch.bfloat16)
    padding = torch.randn(2304, device="cuda", dtype=torch.bfloat16)
    rel = [torch.randn(2 * window - 1, 64, device="cuda") * 0.1 for _ in range(2)]
    tables = fast_attention.relative_tables(*rel, (64, 64), window % 64, 16)

    def gradients(kind):
        given = qkv.to(kind).requires_grad_()
        both = tuple(t.to(kind) for t in tables)
        if kind == torch.float32:
            out = fast_attention.attend_folded(
                given, padding.float(), both, 12, window % 64, "folded"
            )
        else:
            out = triton_attention.relative_attention(given, padding, *both, 12, window)
        torch.manual_seed(1)
        grad = torch.randn(out.shape, device="cuda").to(out)
        return out.detach(), torch.autograd.grad(out, given, grad)[0]

    ours, wanted = gradients(torch.bfloat16), gradients(torch.float32)
    stacked = torch.stack(tables).bfloat16()
    out, lse = triton_attention._attention(qkv, padding, stacked, 12, window)
    found = {"errors": [relative_error(a, b) for a, b in zip(ours, wanted, strict=True)]}
    if check:
        return found
    key = ("forward", window == 64)
    usual = triton_attention.TILES[key]
    for tile in [(64, 64, 4, 3)] if window == 64 else [
        (64, 32, 4, 2), (64, 32, 4, 3), (64, 32, 4, 4), (64, 64, 4, 2), (64, 64, 4, 3),
        (64, 16, 4, 4), (128, 32, 4, 3),
    ]:  # fmt: skip
        triton_attention.TILES[key] = triton_attention.Tile(*tile)
        found[str(tile)] = ms(lambda: triton_attention.attend(qkv, padding, stacked, 12, window))
    triton_attention.TILES[key] = usual
    given = (torch.randn_like(out), qkv, padding, stacked, out, lse, 12, window)
    found["backward"] = ms(lambda: triton_attention._attention_backward(*given), 10)
    return found


def small_windows(count, tokens, heads, check=False):
    from adalora_qat.model import triton_windows

    torch.manual_seed(0)
    qkv = torch.randn(count, tokens, heads * 96, device="cuda", dtype=torch.bfloat16)
    bias = torch.randn(heads, tokens, tokens, device="cuda", dtype=torch.bfloat16)
    grad = torch.randn(count, tokens, heads * 32, device="cuda", dtype=torch.bfloat16)

    def plain(given, added):
        q, k, v = given.view(len(given), tokens, heads, 3, 32).permute(3, 0, 2, 1, 4).unbind(0)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=added)
        return out.transpose(1, 2).reshape(len(given), tokens, -1)

    part = qkv[:100].float().requires_grad_()
    wanted = plain(part, bias.float())
    wanted_grad = torch.autograd.grad(wanted, part, grad[:100].float())[0]
    leaf = qkv.requires_grad_()
    ours = triton_windows.window_attention(leaf, bias, heads)
    ours_grad = torch.autograd.grad(ours, leaf, grad, retain_graph=True)[0]
    theirs = plain(leaf, bias)
    errors = [
        relative_error(ours[:100].detach(), wanted.detach()),
        relative_error(ours_grad[:100], wanted_grad),
    ]
    if check:
        return {"errors": errors}
    return {
        "errors": errors,
        "forward": ms(lambda: triton_windows.window_attention(leaf.detach(), bias, heads)),
        "backward": ms(lambda: torch.autograd.grad(ours, leaf, grad, retain_graph=True)),
        "sdpa forward": ms(lambda: plain(leaf.detach(), bias)),
        "sdpa backward": ms(lambda: torch.autograd.grad(theirs, leaf, grad, retain_graph=True)),
    }


def encoder():
    model = random_segmenter("sam-vit-base", 0, attention="eager").cuda()
    images = torch.randn(8, 3, 1024, 1024, device="cuda")
    with torch.no_grad():
        wanted = torch.cat([model.encode(images[i : i + 2]) for i in range(0, 8, 2)])
    fast = fast_encoder(model)
    return {
        "norms": [fast(images).float().norm().item(), wanted.norm().item()],
        "error": relative_error(fast(images), wanted),
        "graph": ms(lambda: fast(images), 60, 20),
    }


if len(sys.argv) > 1:  # a check alone: fails where a kernel does not compile or is wrong
    if sys.argv[1] == "attention":
        worst = max(e for w in (14, 64) for e in attention(w, check=True)["errors"])
    else:
        worst = max(
            e for s in ((40, 49, 4), (20, 196, 5)) for e in small_windows(*s, check=True)["errors"]
        )
    print(sys.argv[1], worst)
    sys.exit(not worst < 2e-2)

answer("attention 14", lambda: attention(14))
answer("attention 64", lambda: attention(64))
answer("encoder", encoder)
answer("TinyViT stage 2", lambda: small_windows(5776, 49, 4))
answer("TinyViT stage 3", lambda: small_windows(400, 196, 5))
answer("TinyViT stage 4", lambda: small_windows(1600, 49, 10))
