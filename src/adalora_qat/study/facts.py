"""What tables say of a model besides its cases: parameters, bytes, how its parts were trained.

Counted once, when a stage has ended, into the run folder's ``facts.json``; whatever asks later
reads that file. It is written here, by whoever calls the training, and not by the training
itself: bytes are those of the exported form and the paper's row is the report's to know, both
of which come after training in the order of rooms. A stage that is not in the file (a run of an
older version), or was trained again since, is counted anew by the same function.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from adalora_qat.adapt.inject import adapters
from adalora_qat.baselines.model_file import BaselineFile, described
from adalora_qat.baselines.parameters import trained_size
from adalora_qat.checkpoint import MODEL_FILE, RunFolder, load_model
from adalora_qat.config import RunConfig
from adalora_qat.errors import DataError
from adalora_qat.files import sha256_file, write_json
from adalora_qat.model.sam import Segmenter, random_segmenter
from adalora_qat.quantize.layers import FakeQuantLayer
from adalora_qat.quantize.prepare import quantized_layers
from adalora_qat.report.paper import baseline_row, published_row
from adalora_qat.report.tables import MISSING
from adalora_qat.runtime.metadata import ModelMetadata
from adalora_qat.study.models import STAGES, Model, stage_name
from adalora_qat.study.parameters import adapter_parameters, count_parts
from adalora_qat.study.size import parameter_count, shipped_bytes
from adalora_qat.study.study import ModelFacts

RUN_FACTS: Final = "facts.json"
"""In a run folder: stage → ``StageFacts``."""
FACTS_FILE: Final = "model.json"
"""Stands beside a per-case table and says which model it measured."""


@dataclass(frozen=True)
class StageFacts:
    """What is known of a finished stage.

    Attributes
    ----------
    sha256 : of the stage's model; facts of another model are not taken.
    parts : part of the model → total, start, pruned: its parameters, and how many of them train
        at the start and after pruning; adapters are a part of their own.
    total, trainable : of the whole model, adapters included, after pruning.
    ranks : adapted layer → rank.
    policy : of quantization; "none" for floats.
    bytes : of the model as it ships, adapters merged and integers as integers.
    encoder, decoder : how each was trained ("AdaLoRA, INT8", "frozen", "full").
    paper : the paper's row (``paper.published_row``), None for none.
    """

    sha256: str
    parts: dict[str, dict[str, int]]
    total: int
    trainable: int
    ranks: dict[str, int]
    policy: str
    bytes: int
    encoder: str
    decoder: str
    paper: str | None

    def for_tables(self, size: int | None = None) -> ModelFacts:
        """Return what tables show; ``size`` is of a file that was exported, in bytes."""
        return ModelFacts(
            self.total,
            self.trainable,
            self.bytes if size is None else size,
            None,
            self.encoder,
            self.decoder,
            self.paper,
        )


def write_run_facts(run: RunFolder) -> dict[str, StageFacts]:
    """Write ``facts.json``: every finished stage; those that are in it already are not counted."""
    done: list[str] = [stage for stage in STAGES if run.finished(stage)]
    found = {stage: stage_facts(run, stage) for stage in done}
    write_json(run.path / RUN_FACTS, {stage: asdict(facts) for stage, facts in found.items()})
    return found


def stage_facts(run: RunFolder, stage: str) -> StageFacts:
    """Return the facts of a finished stage: from ``facts.json``, else counted.

    Raises
    ------
    DataError
        If ``facts.json`` is damaged.
    """
    file, model = run.path / RUN_FACTS, run.stage(stage) / MODEL_FILE
    digest = sha256_file(model)
    if file.is_file():
        try:
            told = json.loads(file.read_text("utf-8")).get(stage)
            known = StageFacts(**told) if told else None
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{file} is damaged ({error}); delete it") from error
        if known is not None and known.sha256 == digest:
            return known
    baseline = described(model)
    if baseline is not None:
        return _baseline_facts(model, baseline, digest, published_row(run.config, stage))
    return _counted(run.config, stage, model, digest)


def facts_of(model: Model) -> ModelFacts:
    """Return a model's parameters and bytes, and how its parts were trained.

    Bytes are those of the file that ships: the ONNX file, or the model written as safetensors
    as it is deployed. Latency is measured elsewhere.
    """
    if model.run is not None and model.kind != "pretrained":
        exported = model.file.stat().st_size if model.kind == "onnx" and model.file else None
        return stage_facts(model.run, model.stage or model.kind).for_tables(exported)
    if model.kind == "onnx" and model.file is not None:
        told = ModelMetadata.of(model.file.read_bytes(), str(model.file))
        total = _size_of(told.variant, told.frame.side)
        words = ("INT8", "INT8") if model.quantized else (MISSING, MISSING)
        return ModelFacts(total, None, model.file.stat().st_size, None, *words)
    if model.file is not None and (baseline := described(model.file)) is not None:
        row = baseline_row(baseline.config)
        return _baseline_facts(model.file, baseline, model.sha256, row).for_tables()
    segmenter = model.segmenter()
    total = _size_of(segmenter.variant.name, segmenter.variant.frame.side)
    if model.kind == "pretrained":
        return ModelFacts(total, 0, shipped_bytes(segmenter), None, "frozen", "frozen")
    return ModelFacts(total, None, shipped_bytes(segmenter))


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


def _baseline_facts(file: Path, said: BaselineFile, digest: str, paper: str | None) -> StageFacts:
    total = trained_size(file)
    start = "random init" if said.origin.source == "random" else f"init {said.origin.source}"
    parts = {"all": dict.fromkeys(("total", "start", "pruned"), total)}
    size = file.stat().st_size
    words = (f"full, {start}", "full")
    return StageFacts(digest, parts, total, total, {}, "none", size, *words, paper)


def _counted(config: RunConfig, stage: str, file: Path, digest: str) -> StageFacts:
    segmenter, description = load_model(file)
    kept = adapter_parameters(adapters(segmenter.image_encoder))
    parts, _ = count_parts(config, kept)
    trained = config.stage1.epochs or (stage == "stage2" and config.stage2.epochs)
    if not trained:
        # A stage of no epochs is the pretrained model, whatever would have trained.
        parts = {name: {**part, "start": 0, "pruned": 0} for name, part in parts.items()}
    encoder, decoder = _trained_words(config) if trained else ("frozen", "frozen")
    bits = _bits(segmenter)
    return StageFacts(
        digest,
        parts,
        sum(part["total"] for part in parts.values()),
        sum(part["pruned"] for part in parts.values()),
        description["ranks"],
        config.quantize.policy if bits else "none",
        shipped_bytes(segmenter),
        ", ".join(filter(None, (encoder, bits.get("image_encoder")))),
        ", ".join(filter(None, (decoder, bits.get("mask_decoder")))),
        published_row(config, stage),
    )


def _trained_words(config: RunConfig) -> tuple[str, str]:
    if config.stage1.encoder != "adapters":
        return config.stage1.encoder, config.stage1.decoder
    return stage_name(config, "stage1").removesuffix(", encoder only"), config.stage1.decoder


def _bits(segmenter: Segmenter) -> dict[str, str]:
    """Return for each part of a model which integers its weights have."""
    found: dict[str, set[int]] = {}
    for name, layer in quantized_layers(segmenter).items():
        quantizer = layer.weight_quantizer if isinstance(layer, FakeQuantLayer) else layer
        found.setdefault(name.partition(".")[0], set()).add(quantizer.numerics.bits)
    return {part: "INT" + "/".join(map(str, sorted(bits))) for part, bits in found.items()}


def _size_of(variant: str, side: int) -> int:
    return parameter_count(random_segmenter(variant, 0, side=side))
