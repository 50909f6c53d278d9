"""SAM ViT-B at 1024²: speed, memory and error, one row a technique.

Encoder inference (batch 8) and a stage-1 training step (batch 16, rank 48 on qkv and the whole
decoder) on one GPU, beside transformers and PEFT in the same run. Weights are random, relative
positions included. Errors are ‖ours − ref‖/‖ref‖: embeddings against eager FP32; logits and the
gradients of all Λ against SDPA FP32 (eager FP32 at batch 16 does not fit).

    PYTHONPATH=src python benchmarks/vit_speed.py [--part inference|training] [--deadline 470]

writes vit_speed.json into $OUT (or ./out). If attention_kernels.json lies there, its best tiles
are used. Compiled code is made beforehand, several rows at once, so first_s is no cold start.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SamConfig, SamModel

from _gpu_rows import Results, drive, peak_gb, relative_error, reset, table, timed, work
from adalora_qat.adapt.svd_linear import SVDLinear, orthogonality_penalty
from adalora_qat.model import fast_attention
from adalora_qat.model.fast_inference import fast_encoder
from adalora_qat.model.sam import Segmenter, variant

SIDE, RANK, INFERENCE_BATCH, TRAINING_BATCH = 1024, 48, 8, 16
LAMBDA_ORTHO = 0.003
CONFIG: Mapping[str, Any] = {
    "model": "SAM ViT-B, random weights",
    "side": SIDE,
    "rank": RANK,
    "inference_batch": INFERENCE_BATCH,
    "training_batch": TRAINING_BATCH,
    "lambda_ortho": LAMBDA_ORTHO,
}

# "attention" is transformers' own; "fast" names our kernels for global and windowed layers;
# "bf16" is autocast, "weights" casts what is frozen; "graph" replays a CUDA graph; "package" is
# ``model.fast_inference.fast_encoder``, and takes FP32 images.
_PEER: Mapping[str, Any] = {"attention": "sdpa"}
_FAST: Mapping[str, Any] = {"fast": ("triton", "triton"), "compile": True}
INFERENCE: Mapping[str, Mapping[str, Any]] = {
    "the package's fast encoder": {"package": True},
    "triton, bf16 weights, compile, graph": {**_FAST, "weights": True, "graph": True},
    "triton, bf16, compile": {**_FAST, "bf16": True},
    "triton, bf16 weights, compile": {**_FAST, "weights": True},
    "sdpa, bf16, compile": {**_PEER, "bf16": True, "compile": True},
    "eager, fp32": {"attention": "eager"},
    "sdpa, fp32": _PEER,
    "sdpa, tf32": {**_PEER, "tf32": True},
    "sdpa, bf16": {**_PEER, "bf16": True},
    "triton, bf16 weights, compile, graph, gelu epilogue": {
        **_FAST, "weights": True, "graph": True, "gelu": True,
    },
    "folded, bf16, compile": {**_FAST, "fast": ("folded", "folded"), "bf16": True},
    "cudnn, bf16, compile": {**_FAST, "fast": ("cudnn", "cudnn"), "bf16": True},
}  # fmt: skip
_PEFT: Mapping[str, Any] = {"attention": "sdpa", "peft": True}
TRAINING: Mapping[str, Mapping[str, Any]] = {
    "triton, bf16, compile": {**_FAST, "bf16": True},
    "PEFT sdpa, bf16, compile": {**_PEFT, "bf16": True, "compile": True},
    "triton, bf16, frozen weights bf16, compile": {**_FAST, "bf16": True, "weights": True},
    "cudnn, bf16, compile": {**_FAST, "fast": ("cudnn", "cudnn"), "bf16": True},
    "PEFT sdpa, bf16": {**_PEFT, "bf16": True},
    "PEFT sdpa, tf32": {**_PEFT, "tf32": True},
    "PEFT sdpa, fp32": _PEFT,
    "PEFT eager, fp32, batch 8": {**_PEFT, "attention": "eager", "batch": 8},
    "triton, bf16": {"fast": ("triton", "triton"), "bf16": True},
    "folded, bf16, compile": {**_FAST, "fast": ("folded", "folded"), "bf16": True},
    "sdpa, bf16, compile": {"attention": "sdpa", "bf16": True, "compile": True},
}


def build(options: Mapping[str, Any]) -> SamModel:
    """Return a frozen SAM ViT-B with random weights, the same for every kind of attention."""
    config = SamConfig()
    for part in (config, config.vision_config, config.mask_decoder_config):
        part._attn_implementation = options.get("attention", "eager")
    # transformers' default, 1e-10, makes an encoder in which attention does nothing.
    config.vision_config.initializer_range = 0.02
    torch.manual_seed(0)
    model = SamModel(config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        # transformers starts them at zero, where no error in them would show.
        if "rel_pos" in name or name.endswith("pos_embed"):
            parameter.data.normal_(std=0.1, generator=generator)
    model.requires_grad_(False).eval().cuda()
    if "fast" in options:
        fast_attention.install(model, *options["fast"])
    return model


def encode(model: SamModel, images: Tensor) -> Tensor:
    """Run the encoder, without the wrapper that collects hidden states."""
    encoder = model.vision_encoder
    tokens = encoder.patch_embed(images) + encoder.pos_embed
    for layer in encoder.layers:
        tokens = layer(tokens)
    out: Tensor = encoder.neck(tokens)
    return out


def cast_frozen(model: SamModel) -> None:
    """Cast the encoder's frozen weights to bf16; what trains stays FP32."""
    for module in model.vision_encoder.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                setattr(module, name, nn.Parameter(parameter.bfloat16(), requires_grad=False))


class FusedGelu(nn.Module):
    """lin1 and GELU as one product (cuBLASLt's epilogue, GELU's tanh form), then lin2."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.lin1, self.lin2 = mlp.lin1, mlp.lin2

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, C) to (…, C)."""
        weight, bias = self.lin1.weight, self.lin1.bias
        hidden = torch._addmm_activation(
            bias, x.reshape(-1, x.shape[-1]), weight.t(), use_gelu=True
        )
        out: Tensor = self.lin2(hidden).view_as(x)
        return out


def drawn_images(batch: int, options: Mapping[str, Any]) -> Tensor:
    """Return random images (B, 3, S, S) in the precision that the row takes."""
    generator = torch.Generator("cuda").manual_seed(2)
    images = torch.randn(batch, 3, SIDE, SIDE, device="cuda", generator=generator)
    return images.bfloat16() if options.get("weights") else images


def prepare(options: Mapping[str, Any]) -> None:
    """Start a row from nothing, with its precision of products."""
    reset()
    torch.backends.cuda.matmul.allow_tf32 = bool(options.get("tf32"))
    torch.backends.cudnn.allow_tf32 = bool(options.get("tf32"))


def autocast(options: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """Return the row's autocast."""
    return torch.autocast("cuda", torch.bfloat16, enabled=bool(options.get("bf16")))


def compiled(function: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
    """Compile as the row says."""
    mode = options.get("compile")
    if not mode:
        return function
    chosen: Callable[..., Any] = torch.compile(function, mode=mode if mode is not True else None)
    return chosen


def captured(step: Callable[[], Any]) -> Callable[[], Any]:
    """Return the replay of a CUDA graph of ``step``."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    replay: Callable[[], Any] = graph.replay
    return replay


@torch.inference_mode()
def inference_reference() -> Tensor:
    """Return the embeddings that eager FP32 gives."""
    prepare({})
    return encode(build({}), drawn_images(INFERENCE_BATCH, {})).cpu()


@torch.inference_mode()
def inference_row(options: Mapping[str, Any], wanted: Tensor) -> Results:
    """Measure the encoder alone."""
    prepare(options)
    model, images = build(options), drawn_images(INFERENCE_BATCH, options)
    if options.get("package"):
        return package_row(model, images, wanted)
    if options.get("weights"):
        cast_frozen(model)
    if options.get("gelu"):
        for layer in model.vision_encoder.layers:
            layer.mlp = FusedGelu(layer.mlp)
    run = compiled(lambda x: encode(model, x), options)
    started = time.perf_counter()
    with autocast(options):
        error = relative_error(run(images), wanted)
        first_s = time.perf_counter() - started

        def step() -> None:
            run(images)

        quick = "compile" in options
        measured = captured(step) if options.get("graph") else step
        median, worst = timed(measured, 30 if quick else 5, 5 if quick else 1)
    return {
        "images_per_s": INFERENCE_BATCH / median,
        "median_ms": median * 1e3,
        "worst_ms": worst * 1e3,
        "peak_gb": peak_gb(),
        "relative_error": error,
        "first_s": first_s,
    }


def package_row(model: SamModel, images: Tensor, wanted: Tensor) -> Results:
    """Measure the package's encoder for inference, with the same weights."""
    segmenter = Segmenter(variant("sam-vit-base"))
    segmenter.image_encoder.load_state_dict(model.vision_encoder.state_dict())
    fast = fast_encoder(segmenter.cuda())
    del model, segmenter
    torch.cuda.empty_cache()
    started = time.perf_counter()
    error = relative_error(fast(images), wanted)
    first_s = time.perf_counter() - started
    torch.cuda.reset_peak_memory_stats()
    median, worst = timed(lambda: fast(images), 100, 20)
    return {
        "images_per_s": INFERENCE_BATCH / median,
        "median_ms": median * 1e3,
        "worst_ms": worst * 1e3,
        "peak_gb": peak_gb(),
        "relative_error": error,
        "first_s": first_s,
    }


def adapt(model: SamModel, by_peft: bool) -> None:
    """Put the same low-rank updates on every qkv, ours or PEFT's; let the decoder train."""
    encoder = model.vision_encoder
    names = [name for name, _ in encoder.named_modules() if name.endswith(".qkv")]
    adapters = {}
    for number, name in enumerate(names):
        generator = torch.Generator().manual_seed(number)
        adapters[name] = SVDLinear.from_linear(encoder.get_submodule(name), RANK, 1.0, generator)
        adapters[name].lam.data = 0.3 * torch.randn(RANK, generator=generator).cuda()
    if by_peft:
        from peft import AdaLoraConfig, get_peft_model

        plan = {"init_r": RANK, "target_r": 32, "lora_alpha": RANK, "total_step": 1000}
        get_peft_model(model, AdaLoraConfig(target_modules=["qkv"], **plan))
    for name, adapter in adapters.items():
        if not by_peft:
            encoder.set_submodule(name, adapter)
            continue
        theirs = encoder.get_submodule(name)
        theirs.lora_A["default"].data = adapter.Q.data
        theirs.lora_B["default"].data = adapter.P.data
        # PEFT divides by the rank + 1e-5.
        theirs.lora_E["default"].data = adapter.lam.data[:, None] * (RANK + 1e-5) / RANK
    model.mask_decoder.requires_grad_(True)


def training_batch(batch: int, options: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, one box each, and blobs as masks at the decoder's resolution."""
    generator = torch.Generator("cuda").manual_seed(3)
    coarse = torch.rand(batch, 1, 16, 16, device="cuda", generator=generator)
    masks = (F.interpolate(coarse, size=256, mode="bilinear")[:, 0] > 0.5).float()
    box = torch.tensor([100.0, 120.0, 900.0, 800.0], device="cuda")
    return drawn_images(batch, options), box.repeat(batch, 1, 1), masks


def training_loss(model: SamModel) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return images, boxes, masks → (BCE + Dice + orthogonality, logits).

    PEFT's own orthogonality applies only to models that return a loss; SAM does not.
    """
    positions = model.get_image_wide_positional_embeddings()
    ours = {n: m for n, m in model.named_modules() if isinstance(m, SVDLinear)}

    def loss_of(images: Tensor, boxes: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        embeddings = encode(model, images)
        # In bf16 the prompt's Fourier features are noise: their phases run to hundreds of radians.
        with torch.autocast("cuda", enabled=False):
            sparse, dense = model.prompt_encoder(
                input_points=None, input_labels=None, input_boxes=boxes, input_masks=None
            )
        logits = model.mask_decoder(
            image_embeddings=embeddings,
            image_positional_embeddings=positions.to(embeddings.dtype).repeat(len(images), 1, 1, 1),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )[0][:, 0, 0].float()
        share = logits.sigmoid()
        overlap = (share * masks).sum((1, 2))
        dice = 1 - (2 * overlap + 1) / (share.sum((1, 2)) + masks.sum((1, 2)) + 1)
        loss = F.binary_cross_entropy_with_logits(logits, masks) + dice.mean()
        return (loss + LAMBDA_ORTHO * orthogonality_penalty(ours) if ours else loss), logits

    return loss_of


def lambda_gradient(model: nn.Module) -> Tensor:
    """Return the gradients of all singular values, ours or PEFT's."""
    named = model.named_parameters()
    return torch.cat([p.grad.flatten() for n, p in named if n.endswith(".lam") or "lora_E" in n])


def training_reference() -> tuple[Tensor, Tensor] | None:
    """Return logits and Λ's gradients in FP32, or None where they do not fit."""
    prepare({})
    model = build(_PEER)
    adapt(model, by_peft=False)
    try:
        loss, logits = training_loss(model)(*training_batch(TRAINING_BATCH, {}))
        loss.backward()
    except torch.OutOfMemoryError:
        return None
    return logits.detach().cpu(), lambda_gradient(model).cpu()


def training_row(options: Mapping[str, Any], wanted: tuple[Tensor, Tensor] | None) -> Results:
    """Measure forward, backward and AdamW."""
    prepare(options)
    batch, by_peft = options.get("batch", TRAINING_BATCH), bool(options.get("peft"))
    model = build(options)
    adapt(model, by_peft)
    if options.get("weights"):
        cast_frozen(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-5, fused=True)
    given, loss_of = training_batch(batch, options), compiled(training_loss(model), options)

    def gradients() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with autocast(options):
            loss, logits = loss_of(*given)
        loss.backward()
        return logits.detach()

    def step() -> None:
        gradients()
        optimizer.step()

    started = time.perf_counter()
    logits = gradients()
    torch.cuda.synchronize()
    first_s = time.perf_counter() - started
    known = wanted if batch == TRAINING_BATCH else None
    errors = {
        "relative_error": relative_error(logits, known and known[0]),
        "gradient_error": relative_error(lambda_gradient(model), known and known[1]),
    }
    del logits
    torch.cuda.reset_peak_memory_stats()
    quick = "fast" in options or "compile" in options
    median, worst = timed(step, 12 if quick else 3, 3 if quick else 1)
    return {
        "images_per_s": batch / median,
        "median_ms": median * 1e3,
        "worst_ms": worst * 1e3,
        "peak_gb": peak_gb(),
        **errors,
        "first_s": first_s,
        "trainable": sum(p.numel() for p in trainable),
    }


def use_best_tiles() -> None:
    """Take the tiles that attention_kernels.py found on this machine."""
    file = Path(os.environ.get("OUT", "out")) / "attention_kernels.json"
    if not file.is_file():
        return
    from adalora_qat.model import triton_attention

    for row, figures in json.loads(file.read_text())["rows"].items():
        if row.startswith("tile ") and figures.get("best"):
            _, kernel, way = row.split(" ")
            tile = triton_attention.Tile(*json.loads(figures["best"].translate({40: 91, 41: 93})))
            triton_attention.TILES[kernel, way == "rows"] = tile


# Compiled side by side beforehand: shares of rows whose memory fits one device together.
SHARES: tuple[tuple[str, ...], ...] = (
    (
        "training: triton, bf16, compile",
        "training: triton, bf16, frozen weights bf16, compile",
        "training: cudnn, bf16, compile",
    ),
    ("training: PEFT sdpa, bf16, compile", "training: folded, bf16, compile"),
    (
        "inference: triton, bf16 weights, compile",
        "inference: triton, bf16 weights, compile, graph, gelu epilogue",
    ),
    ("inference: the package's fast encoder",),
    ("inference: triton, bf16, compile", "inference: sdpa, bf16, compile"),
    (
        "inference: cudnn, bf16, compile",
        "inference: folded, bf16, compile",
    ),
)


def warm(seconds: float) -> None:
    """Fill the compilers' caches on disk with several rows at once; measure nothing."""

    def spawn(share: int) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [sys.executable, *sys.argv, "--share", str(share)],
                timeout=seconds,
                check=False,
                stderr=subprocess.DEVNULL,
            )

    with ThreadPoolExecutor(len(SHARES)) as pool:
        list(pool.map(spawn, range(len(SHARES))))
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    # Choices timed while others ran beside are no good: they are timed again.
    for choice in Path(cache_dir()).rglob("*.best_config"):
        choice.unlink()


def compile_share(share: int, chosen: Sequence[str]) -> None:
    """Run a share of the chosen rows for their compiled code alone."""
    _references.update(inference=None, training=None)
    for row in (row for row in SHARES[share] if row in chosen):
        with contextlib.suppress(Exception):
            run(row, {})


_references: dict[str, Any] = {}


def run(row: str, results: Results) -> Results:
    """Run one row by name."""
    part, _, name = row.partition(": ")
    if part == "inference":
        if part not in _references:
            _references[part] = inference_reference()
        return inference_row(INFERENCE[name], _references[part])
    if part not in _references:
        _references[part] = training_reference()
    return training_row(TRAINING[name], _references[part])


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["all", "inference", "training"], default="all")
    parser.add_argument("--only", nargs="+", help="only rows whose name holds one of these")
    parser.add_argument("--deadline", type=float, default=470, help="seconds for everything")
    parser.add_argument("--warm", choices=["first", "only", "never"], default="first")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    inference, training = (
        [f"inference: {n}" for n in INFERENCE],
        [f"training: {n}" for n in TRAINING],
    )
    # What matters most comes first, should time run out.
    rows = [*inference[:5], *training[:3], *inference[5:], *training[3:]]
    rows = [r for r in rows if given.part in ("all", r.partition(":")[0])]
    rows = [r for r in rows if not given.only or any(part in r for part in given.only)]
    if given.share is not None:
        compile_share(given.share, rows)
    elif given.worker:
        with contextlib.suppress(ImportError):
            use_best_tiles()
        work(rows, Path(given.worker[0]), float(given.worker[1]), run)
    else:
        if given.warm != "never":
            warm(seconds=120)
        if given.warm != "only":
            print("\n".join(table(drive(rows, "vit_speed", given.deadline, CONFIG))))


if __name__ == "__main__":
    main()
