"""What Tables 2 and 3 say of a model besides its cases, counted from the model itself."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from torch import nn

from adalora_qat.adapt.inject import adapters
from adalora_qat.baselines.model_file import BaselineFile, described
from adalora_qat.baselines.parameters import paper_row, trained_size
from adalora_qat.checkpoint import MODEL_FILE, write_tensors
from adalora_qat.config import RunConfig
from adalora_qat.errors import DataError
from adalora_qat.export.run import deployable
from adalora_qat.files import write_json
from adalora_qat.model.sam import Segmenter, random_segmenter
from adalora_qat.predictor import Predictor
from adalora_qat.quantize.layers import FakeQuantLayer
from adalora_qat.quantize.pack import save_packed
from adalora_qat.quantize.prepare import quantized_layers
from adalora_qat.report.tables import MISSING
from adalora_qat.runtime.onnx_predictor import OnnxPredictor
from adalora_qat.study.models import Model, stage_name
from adalora_qat.study.parameters import count_parameters
from adalora_qat.study.study import ModelFacts

FACTS_FILE: Final = "model.json"
"""Stands beside a per-case table and says which model it measured."""


def facts_of(model: Model, predictor: Predictor, segmenter: Segmenter | None) -> ModelFacts:
    """Count a model's parameters and bytes, and say how its parts were trained.

    Bytes are those of the file that ships: the ONNX file, or the model written as safetensors
    as it is deployed (adapters merged, integers as integers). Latency is measured elsewhere.
    """
    if model.kind == "onnx" and model.file is not None:
        size = model.file.stat().st_size
        if model.run is None or model.stage is None:
            total = _onnx_total(predictor)
            words = ("INT8", "INT8") if model.quantized else (MISSING, MISSING)
            return ModelFacts(total, None, size, None, *words)
        trained = model.run.stage(model.stage) / MODEL_FILE
        source = replace(model, kind=model.stage, file=trained)
        return _trained_facts(source, source.segmenter(), size)
    if model.file is not None and (baseline := described(model.file)) is not None:
        return _baseline_facts(model.file, baseline)
    if segmenter is None:
        raise ValueError(f"{model.name} was opened without its module")
    if model.kind == "pretrained" or model.run is None:
        total = sum(parameter.numel() for parameter in _architecture(segmenter).parameters())
        known = model.kind == "pretrained"
        parts = ("frozen", "frozen") if known else (MISSING, MISSING)
        return ModelFacts(total, 0 if known else None, shipped_bytes(model), None, *parts, None)
    return _trained_facts(model, segmenter, shipped_bytes(model))


def shipped_bytes(model: Model) -> int:
    """Write the model as it is deployed, weigh the file, and remove it."""
    segmenter = deployable(model.segmenter())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        if model.quantized:
            save_packed(segmenter, file)
        else:
            write_tensors(file, segmenter.state_dict(), {})
        return file.stat().st_size


def published_counterpart(config: RunConfig, kind: str) -> str | None:
    """Return the paper's model that a stage of a run answers to (``paper.MODELS``), or None.

    Zero-shot models and quantization without training are not in the paper's tables.
    """
    if config.baselines is not None:
        return paper_row(config.baselines)
    encoder, decoder = config.stage1.encoder, config.stage1.decoder
    adapted = encoder == "adapters" and config.adapt.method == "adalora" and decoder == "full"
    if kind == "stage1":
        if (encoder, decoder) == ("frozen", "full"):
            return "decoder"
        lora = encoder == "adapters" and config.adapt.method == "lora"
        if lora and decoder == "frozen" and config.adapt.rank == 8:
            return "lora"
        return "adalora" if adapted else None
    if kind == "stage2" and adapted:
        return {"decoder": "dqat", "full": "fullqat"}.get(config.quantize.policy)
    return None


def write_facts(folder: Path, name: str, facts: ModelFacts, machine: dict[str, Any]) -> None:
    """Write ``model.json``: the model's name, its facts, and the machine that timed it."""
    write_json(folder / FACTS_FILE, {"name": name, "machine": machine, "facts": asdict(facts)})


def read_facts(folder: Path) -> tuple[str, ModelFacts, dict[str, Any]] | None:
    """Read ``model.json`` of an evaluation folder; None if there is none.

    Raises
    ------
    DataError
        If it is damaged.
    """
    file = folder / FACTS_FILE
    if not file.is_file():
        return None
    try:
        told = json.loads(file.read_text("utf-8"))
        return str(told["name"]), ModelFacts(**told["facts"]), dict(told["machine"])
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file} is damaged ({error}); delete it or evaluate anew") from error


def _baseline_facts(file: Path, said: BaselineFile) -> ModelFacts:
    total = trained_size(file)
    start = "random init" if said.origin.source == "random" else f"init {said.origin.source}"
    size = file.stat().st_size
    return ModelFacts(total, total, size, None, f"full, {start}", "full", paper_row(said.config))


def _trained_facts(model: Model, segmenter: Segmenter, size: int) -> ModelFacts:
    if model.run is None:
        raise ValueError("only a run folder says how a model was trained")
    config = model.run.config
    counts = count_parameters(config)
    kept = sum(
        # Λ adds one value a rank to the two vectors of AdaLoRA.
        a.rank * (a.in_features + a.out_features + (1 if hasattr(a, "lam") else 0))
        for a in adapters(segmenter.image_encoder).values()
    )
    at_start = counts["parts"].get("adapters", {}).get("start", 0)
    encoder, decoder = _trained_words(config)
    bits = _bits(segmenter)
    if "image_encoder" in bits:
        encoder += f", {bits['image_encoder']}"
    if "mask_decoder" in bits:
        decoder += f", {bits['mask_decoder']}"
    return ModelFacts(
        total=counts["total"]["total"] + kept,
        trainable=counts["total"]["start"] - at_start + kept,
        bytes=size,
        encoder=encoder,
        decoder=decoder,
        paper=published_counterpart(config, model.kind),
    )


def _trained_words(config: RunConfig) -> tuple[str, str]:
    encoder = config.stage1.encoder
    if encoder == "adapters":
        name = stage_name(config, "stage1").removesuffix(", encoder only")
        return name, config.stage1.decoder
    return encoder, config.stage1.decoder


def _bits(segmenter: Segmenter) -> dict[str, str]:
    """Return for each part of a model which integers its weights have."""
    found: dict[str, set[int]] = {}
    for name, layer in quantized_layers(segmenter).items():
        quantizer = layer.weight_quantizer if isinstance(layer, FakeQuantLayer) else layer
        found.setdefault(name.partition(".")[0], set()).add(quantizer.numerics.bits)
    return {part: "INT" + "/".join(map(str, sorted(bits))) for part, bits in found.items()}


def _onnx_total(predictor: Predictor) -> int | None:
    if not isinstance(predictor, OnnxPredictor):
        return None
    metadata = predictor.metadata
    return _size_of(metadata.variant, metadata.frame.side)


def _architecture(segmenter: Segmenter) -> nn.Module:
    return _fresh(segmenter.variant.name, segmenter.variant.frame.side)


def _size_of(variant: str, side: int) -> int:
    return sum(parameter.numel() for parameter in _fresh(variant, side).parameters())


@cache
def _fresh(variant: str, side: int) -> nn.Module:
    return random_segmenter(variant, 0, side=side)
