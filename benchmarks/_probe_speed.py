"""Temporary: answers to what is slow, on one GPU; each answer saved as it comes.

python benchmarks/_probe_speed.py encoder|vit|lite
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.nn.functional as F

from _gpu_rows import peak_gb, relative_error, reset, timed
from adalora_qat.adapt.inject import inject
from adalora_qat.config import RunConfig
from adalora_qat.model import fast_attention, triton_attention
from adalora_qat.model.fast_inference import fast_encoder
from adalora_qat.model.sam import random_segmenter
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.quantize.policy import load_policy
from adalora_qat.quantize.prepare import freeze, observe, prepare
from adalora_qat.train.objective import LossWeights, Objective
from adalora_qat.train.selection import (
    choose_trainable_stage1,
    choose_trainable_stage2,
    parameter_groups,
    parameter_groups_stage2,
    trainable,
)

part = sys.argv[1]
FILE = Path(os.environ.get("OUT", "out")) / f"probe_{part}.json"
FILE.parent.mkdir(parents=True, exist_ok=True)
answers: dict[str, object] = {"device": torch.cuda.get_device_name()}
started = time.time()


def answer(name, function):
    begun = time.time()
    try:
        got = function()
    except Exception:
        got = {"error": traceback.format_exc()[-1500:]}
    answers[name] = {"got": got, "took": round(time.time() - begun, 1)}
    FILE.write_text(json.dumps(answers, indent=1))
    print(name, json.dumps(got)[:300], round(time.time() - started), flush=True)


def ms(step, repeats=20, warm=3):
    median, worst = timed(step, repeats, warm)
    return [round(median * 1e3, 4), round(worst * 1e3, 4)]


def profile(step, count=3):
    step()
    torch.cuda.synchronize()
    kinds = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as run:
        for _ in range(count):
            step()
        torch.cuda.synchronize()
    rows = [
        (e.key[:110], e.count / count, round(e.self_device_time_total / 1e3 / count, 3))
        for e in run.key_averages()
        if e.self_device_time_total and e.device_type == torch.autograd.DeviceType.CUDA
    ]
    rows.sort(key=lambda row: -row[2])
    return {"total_ms": sum(row[2] for row in rows), "kernels": rows[:40]}


# -- encoder ----------------------------------------------------------------------------------


def tiles(window, candidates):
    torch.manual_seed(0)
    qkv = torch.randn(8, 64, 64, 2304, device="cuda", dtype=torch.bfloat16)
    padding = torch.randn(2304, device="cuda", dtype=torch.bfloat16)
    rel = (torch.randn(2 * window - 1, 64, device="cuda") * 0.1 for _ in range(2))
    rel = fast_attention.relative_tables(*rel, (64, 64), window % 64, 16)
    tables = torch.stack(rel).bfloat16()
    with torch.no_grad():
        wanted = fast_attention.attend_folded(
            qkv[:1].float(), padding.float(), tuple(tables.float()), 12, window % 64, "folded"
        )
    key, found = ("forward", window == 64), {}
    before = triton_attention.TILES[key]
    found["terms"] = ms(lambda: triton_attention._relative_terms(qkv, tables, 12))
    for tile in candidates:
        triton_attention.TILES[key] = triton_attention.Tile(*tile)
        try:
            out = triton_attention.attend(qkv, padding, tables, 12, window)
            error = relative_error(out[:1], wanted)
            took = ms(lambda: triton_attention.attend(qkv, padding, tables, 12, window))
            found[str(tile)] = [*took, error]
        except Exception as problem:
            found[str(tile)] = repr(problem)[:200]
    triton_attention.TILES[key] = before
    return found


def products():
    T, kind = 8 * 4096, torch.bfloat16
    made = lambda *s: torch.randn(*s, device="cuda", dtype=kind) * 0.05
    x, hidden, stream = made(T, 768), made(T, 3072), made(T, 768)
    wq, bq, wo, w1, b1, w2, b = (
        made(2304, 768), made(2304), made(768, 768), made(3072, 768), made(3072),
        made(768, 3072), made(768),
    )  # fmt: skip
    steps = {
        "qkv bias": lambda: torch.addmm(bq, x, wq.t()),
        "proj bias": lambda: torch.addmm(b, x, wo.t()),
        "proj onto": lambda: stream.addmm_(x, wo.t()),
        "lin1 bias": lambda: torch.addmm(b1, x, w1.t()),
        "lin1 gelu": lambda: torch._addmm_activation(b1, x, w1.t(), use_gelu=True),
        "lin2 bias": lambda: torch.addmm(b, hidden, w2.t()),
        "lin2 onto": lambda: stream.addmm_(hidden, w2.t()),
    }
    return {name: ms(step, 30) for name, step in steps.items()}


def encoder_error(model, images, wanted):
    fast = fast_encoder(model)
    error = relative_error(fast(images), wanted)
    exact = [F.cosine_similarity(fast(images).float().flatten(), wanted.flatten(), 0).item()]
    half = images.bfloat16()
    return {
        "error": error,
        "cosine": exact,
        "graph": ms(lambda: fast(images), 40, 10),
        "graph, bf16 images": ms(lambda: fast(half), 40, 10),
        "peak": peak_gb(),
    }


def encoder():
    wide = [(64, 64, 4, 3), (128, 64, 8, 3), (128, 128, 8, 2), (128, 128, 8, 3), (64, 128, 4, 2),
            (64, 128, 4, 3), (128, 64, 4, 3), (128, 128, 4, 2), (128, 128, 4, 3)]  # fmt: skip
    small = [(64, 32, 4, 2), (64, 32, 4, 3), (64, 32, 4, 1), (64, 64, 4, 2), (64, 64, 4, 1),
             (64, 16, 4, 3), (128, 32, 8, 2), (128, 64, 8, 2), (128, 32, 4, 2), (64, 32, 2, 2),
             (32, 32, 2, 2), (32, 32, 4, 2), (64, 128, 4, 1), (64, 32, 8, 2)]  # fmt: skip
    torch.manual_seed(0)
    model = random_segmenter("sam-vit-base", 0, attention="eager").cuda()
    images = torch.randn(8, 3, 1024, 1024, device="cuda")
    with torch.no_grad():
        wanted = torch.cat([model.encode(images[i : i + 2]) for i in range(0, 8, 2)])
    answer("fast encoder", lambda: encoder_error(model, images, wanted))
    eager = fast_encoder(model, graph=False)
    answer("fast encoder, profile", lambda: profile(lambda: eager(images)))
    answer("tiles 64", lambda: tiles(64, wide))
    answer("tiles 14", lambda: tiles(14, small))
    answer("products", products)
    for key, window in ((("forward", True), 64), (("forward", False), 14)):
        got = answers[f"tiles {window}"]["got"]
        good = {k: v for k, v in got.items() if k.startswith("(") and isinstance(v, list)}
        best = min(good, key=lambda k: good[k][0])
        triton_attention.TILES[key] = triton_attention.Tile(*json.loads("[" + best[1:-1] + "]"))
    answer("fast encoder, best tiles", lambda: encoder_error(model, images, wanted))
    eager = fast_encoder(model, graph=False)
    answer("fast encoder, best tiles, profile", lambda: profile(lambda: eager(images)))


# -- training ---------------------------------------------------------------------------------


def stage(name, number, batch, *, entry, fast, half, mode=None, plain=False, want_profile=True):
    reset()
    config = RunConfig()
    model = random_segmenter(name, 0)
    if number in (1, 2):
        inject(model.image_encoder, config.adapt, 0)
        for key, parameter in model.named_parameters():
            if key.endswith("lam"):
                parameter.data.normal_(std=0.1)
    model.cuda()
    side = model.variant.frame.side
    given = {
        "inputs": torch.randn(batch, 3, side, side, device="cuda"),
        "boxes": torch.tensor([[[0.1, 0.1, 0.8, 0.7]]], device="cuda").repeat(batch, 1, 1) * side,
        "masks": (torch.rand(batch, 1, side, side, device="cuda") > 0.5).float(),
        "valid": torch.ones((), device="cuda").expand(batch, 1, side, side),
        "weights": torch.full((batch,), 1 / batch, device="cuda"),
    }
    if not plain:
        model.to(memory_format=torch.channels_last)
    if fast:
        fast_attention.install(model, "triton")
    if number == 2:
        fold_batch_norms(model)
        prepare(model, load_policy("full"), config.quantize)
        observe(model)
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            model(given["inputs"], given["boxes"])
        freeze(model)
        choose_trainable_stage2(model, config)
        groups = parameter_groups_stage2(model, config)
    else:
        if number == 0:
            config = RunConfig.model_validate({"stage1": {"encoder": "frozen"}})
        choose_trainable_stage1(model, config)
        groups = parameter_groups(model, config)
    if entry != "image":
        prefix = model.image_encoder.stem if entry == "stem" else model.encode
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=half):
            given["inputs"] = prefix(given["inputs"])
    objective = Objective(model, LossWeights(0.003 if number == 1 else 0), entry)
    run = objective if plain else torch.compile(objective, mode=mode)
    optimizer = torch.optim.AdamW(groups, fused=True if not plain else None)

    def losses():
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            found = run(given)
        found.total.backward()
        return torch.stack([term.detach() for term in found])

    def step():
        losses()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    begun = time.time()
    first = losses().tolist()
    gradient = torch.cat([p.grad.flatten() for p in trainable(model).values()]).norm().item()
    optimizer.zero_grad(set_to_none=True)
    for _ in range(2):
        losses()
        optimizer.zero_grad(set_to_none=True)
    took = time.time() - begun
    found = {"first_s": took, "losses": first, "gradient": gradient}
    torch.cuda.reset_peak_memory_stats()
    found["ms"] = ms(step, 10, 3)
    found["wall_ms"] = wall(step)
    found["images_per_s"] = batch / found["ms"][0] * 1e3
    found["peak"] = peak_gb()
    if want_profile:
        found["profile"] = profile(step)
    return found


def wall(step, count=10):
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(count):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / count * 1e3


def vit():
    both = {"entry": "image", "fast": True, "half": True}
    answer("stage 2", lambda: stage("sam-vit-base", 2, 16, **both))
    answer("stage 1", lambda: stage("sam-vit-base", 1, 16, **both))


def lite():
    peer = {"entry": "image", "fast": False, "half": False, "plain": True}
    answer("peer decoder", lambda: stage("litemedsam", 0, 16, **peer))
    answer("peer stage 1", lambda: stage("litemedsam", 1, 16, **peer))
    ours = {"fast": False, "half": True}
    for mode in ("reduce-overhead", None):
        name = mode or "default"
        answer(
            f"ours decoder {name}",
            lambda mode=mode: stage("litemedsam", 0, 16, entry="embedding", mode=mode, **ours),
        )
        answer(
            f"ours stage 1 {name}",
            lambda mode=mode: stage("litemedsam", 1, 16, entry="stem", mode=mode, **ours),
        )
    answer(
        "ours stage 2",
        lambda: stage("litemedsam", 2, 16, entry="stem", mode="reduce-overhead", **ours),
    )


{"encoder": encoder, "vit": vit, "lite": lite}[part]()
