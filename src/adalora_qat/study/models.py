"""What can be compared: the models of a run folder, one stage's model, or an ONNX file.

A run folder holds several models: the pretrained one it started from, the decoder fine-tuning
that a demo keeps beside it, stage 1, the model after quantization (PTQ), stage 2, and the ONNX
files that were exported from them. Each becomes a row of the paper's tables.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import torch

from adalora_qat.baselines.model_file import described
from adalora_qat.baselines.networks import title_of
from adalora_qat.baselines.predict import open_baseline
from adalora_qat.checkpoint import MODEL_FILE, RunFolder, load_model, read_tensors
from adalora_qat.config import RunConfig
from adalora_qat.errors import DataError, UserError
from adalora_qat.export.run import deployable
from adalora_qat.files import sha256_file
from adalora_qat.model.predict import TorchPredictor
from adalora_qat.model.sam import Segmenter
from adalora_qat.model.weights import build
from adalora_qat.predictor import Predictor
from adalora_qat.quantize.policy import load_policy
from adalora_qat.runtime.metadata import ModelMetadata
from adalora_qat.runtime.onnx_predictor import OnnxPredictor
from adalora_qat.runtime.session import open_session

Kind = Literal["pretrained", "stage1", "ptq", "stage2", "onnx"]
QUANTIZED: Final[tuple[Kind, ...]] = ("ptq", "stage2")
STAGES: Final[tuple[Kind, ...]] = ("stage1", *QUANTIZED)
NESTED_BASELINE: Final = "decoder_only"


@dataclass(frozen=True)
class Model:
    """One row of the tables, not loaded yet.

    Attributes
    ----------
    name : as it stands in tables.
    kind : which stage it is; ``onnx`` whatever the stage was.
    file : the stage's model or the ONNX file; None for pretrained weights.
    sha256 : of the file, or of the configuration that names the pretrained weights.
    run : the run folder it belongs to, None for a file on its own.
    stage : of an ONNX file in a run folder, the stage it was exported from.
    quantized : whether it computes with integers.
    """

    name: str
    kind: Kind
    file: Path | None
    sha256: str
    run: RunFolder | None = None
    stage: Kind | None = None
    quantized: bool = False

    def open(self, *, cpu: bool = True) -> tuple[Predictor, Segmenter | None]:
        """Load the model: its predictor, and its PyTorch module where it has one.

        Raises
        ------
        CheckpointError
            If weights are missing, damaged or of another format.
        """
        if self.file is not None:
            return open_file(self.file, self.name, cpu=cpu)
        return _predictor(self.segmenter(), self.name, cpu=cpu)

    def segmenter(self) -> Segmenter:
        """Load the PyTorch module, on the CPU."""
        if self.file is None:
            if self.run is None:
                raise ValueError("pretrained weights are named by a run's configuration")
            return build(self.run.config.model)[0]
        return load_model(self.file)[0]


def open_file(
    file: Path, name: str, *, cpu: bool = True, merged: bool = False
) -> tuple[Predictor, Segmenter | None]:
    """Load an ONNX file, a baseline or a stage's model, as ``Model.open`` does.

    Parameters
    ----------
    merged : bring a stage's model into the form that ships, adapters merged.
    """
    if file.suffix == ".onnx":
        return OnnxPredictor(file, name=name), None
    if described(file) is not None:
        return open_baseline(file, name, cpu=cpu), None
    segmenter = load_model(file)[0]
    return _predictor(deployable(segmenter) if merged else segmenter, name, cpu=cpu)


def _predictor(segmenter: Segmenter, name: str, *, cpu: bool) -> tuple[Predictor, Segmenter]:
    if not cpu and torch.cuda.is_available():
        segmenter.to("cuda")
    return TorchPredictor(segmenter, name), segmenter


def named(argument: str) -> tuple[str | None, Path]:
    """Read ``PATH`` or ``NAME=PATH``; a path that exists is never split."""
    name, separator, path = argument.partition("=")
    if not separator or not name or Path(argument).exists():
        return None, Path(argument)
    return name, Path(path)


def models_of(arguments: Sequence[str], *, zero_shot: bool = True) -> list[Model]:
    """Return every model that the arguments of a command hold, under different names.

    Parameters
    ----------
    arguments : run folders, stage models, ONNX files; each may be ``NAME=PATH``.
    zero_shot : also take the pretrained model that a run started from, once for all runs
        that start from the same weights.

    Raises
    ------
    DataError
        If an argument holds no model, or two would have one name.
    """
    found: list[Model] = []
    for argument in arguments:
        name, path = named(argument)
        models = _models_at(path)
        if name is not None:
            models = [
                replace(m, name=name if len(models) == 1 else f"{name}: {m.name}") for m in models
            ]
        found += models
    starts: set[str] = set()
    kept = []
    for model in found:
        if model.kind == "pretrained":
            if not zero_shot or model.sha256 in starts:
                continue
            starts.add(model.sha256)
        kept.append(model)
    if not kept:
        raise DataError(f"no model in {', '.join(arguments)}: train first, or give an ONNX file")
    return _distinct(kept)


def model_at(path: Path) -> Model:
    """Return the one model that ``evaluate`` takes for a path: a run folder's furthest stage."""
    models = [m for m in _models_at(path) if path.is_file() or m.kind in STAGES]
    if not models:
        raise DataError(f"{path} holds no finished stage: train first")
    own = [m for m in models if m.run is None or m.run.path != path / NESTED_BASELINE]
    return (own or models)[-1]


def _models_at(path: Path) -> list[Model]:
    if path.is_dir():
        return list(_of_run(RunFolder.open(path)))
    if path.suffix == ".onnx":
        return [onnx_model(path, _run_of(path.parent))]
    if path.is_file():
        # RUN/stage1/model.safetensors: the run folder says how it was trained.
        run, stage = _run_of(path.parent.parent), stage_of(path.parent.name)
        if run is not None and stage is not None:
            return [stage_model(run, stage)]
        baseline = described(path)
        if baseline is not None:
            return [Model(baseline.title, "stage1", path, sha256_file(path))]
        quantized = load_model(path)[1]["quantize"] is not None
        kind: Kind = "ptq" if quantized else "stage1"
        return [Model(path.stem, kind, path, sha256_file(path), quantized=quantized)]
    raise DataError(f"{path} does not exist; give a run folder, a stage's model or an ONNX file")


def _of_run(run: RunFolder) -> Iterator[Model]:
    if not run.finished("stage1"):
        raise DataError(f"{run.path} has no finished stage 1; run `adalora-qat train` to its end")
    if run.config.baselines is not None:
        # Nothing to start from that could segment: its backbone's weights at most.
        yield stage_model(run, "stage1")
        return
    yield pretrained(run)
    nested = _run_of(run.path / NESTED_BASELINE)
    if nested is not None and nested.finished("stage1"):
        yield stage_model(nested, "stage1")
    yield stage_model(run, "stage1")
    if load_policy(run.config.quantize.policy).rows:
        for stage in QUANTIZED:
            if run.finished(stage):
                yield stage_model(run, stage)
    for file in sorted(run.path.glob("*.onnx")):
        metadata = _metadata(file)
        # Float ONNX files answer as stage 1 does, and halves of a model are no model.
        if metadata is not None and metadata.part == "whole" and metadata.policy != "none":
            yield onnx_model(file, run)


def shared_structures(models: Sequence[Model]) -> tuple[str, ...]:
    """Return the structures that every model has a learned prompt for."""
    each = [_structures_of(model) for model in models]
    return tuple(name for name in each[0] if all(name in other for other in each)) if each else ()


def _structures_of(model: Model) -> tuple[str, ...]:
    if model.file is None:
        return model.run.config.model.structures if model.run is not None else ()
    if model.file.suffix == ".onnx":
        return OnnxPredictor(model.file).structures
    if described(model.file) is not None:
        return ()
    return tuple(read_tensors(model.file)[1].get("structures", ()))


def _run_of(folder: Path) -> RunFolder | None:
    return RunFolder.open(folder) if (folder / "config.yaml").is_file() else None


def pretrained(run: RunFolder) -> Model:
    """Return the model that a run started from."""
    start = json.dumps(run.config.model.model_dump(mode="json"), sort_keys=True)
    name = "Random weights" if run.config.model.init == "random" else "Zero-shot"
    return Model(name, "pretrained", None, hashlib.sha256(start.encode()).hexdigest(), run)


def stage_model(run: RunFolder, stage: Kind) -> Model:
    """Return the model of a run's finished stage."""
    file = run.stage(stage) / MODEL_FILE
    quantized = stage in QUANTIZED and bool(load_policy(run.config.quantize.policy).rows)
    return Model(
        stage_name(run.config, stage), stage, file, sha256_file(file), run, None, quantized
    )


def onnx_model(file: Path, run: RunFolder | None) -> Model:
    """Return an ONNX file, with the stage of ``run`` that it was exported from if that is there."""
    metadata = ModelMetadata.from_props(
        open_session(file).get_modelmeta().custom_metadata_map, str(file)
    )
    quantized = metadata.policy != "none"
    for source, sha256 in metadata.sources.items():
        stage = stage_of(source.partition("/")[0])
        if run is None or stage is None or not run.finished(stage):
            continue
        # Only the stage it was exported from may speak for it, not one trained since.
        if sha256_file(run.stage(stage) / MODEL_FILE) == sha256:
            name = f"{stage_name(run.config, stage)}, ONNX"
            return Model(name, "onnx", file, sha256_file(file), run, stage, quantized)
    return Model(f"{file.stem}, ONNX", "onnx", file, sha256_file(file), None, None, quantized)


def stage_of(folder: str) -> Kind | None:
    """Return the stage that a folder's name stands for, or None."""
    return next((stage for stage in STAGES if stage == folder), None)


def _metadata(file: Path) -> ModelMetadata | None:
    """Return what an ONNX file says of itself; None for files of someone else."""
    try:
        properties = open_session(file).get_modelmeta().custom_metadata_map
        return ModelMetadata.from_props(properties, str(file))
    except UserError:
        return None


def stage_name(config: RunConfig, stage: Kind) -> str:
    """Return what a stage of a run is called in tables, in the paper's words where it has some."""
    if stage == "stage1":
        return _first_stage_name(config)
    policy = config.quantize.policy
    if stage == "ptq":
        return "PTQ" if policy == "full" else f"PTQ ({Path(policy).stem})"
    return {"full": "Full QAT", "decoder": "D-QAT"}.get(policy, f"QAT ({Path(policy).stem})")


def _first_stage_name(config: RunConfig) -> str:
    if config.baselines is not None:
        return title_of(config.baselines)
    encoder, decoder = config.stage1.encoder, config.stage1.decoder
    if not config.stage1.epochs:
        return "Nothing trained"
    if encoder == "frozen":
        return "Decoder fine-tuning" if decoder == "full" else "Nothing trained"
    only = "" if decoder == "full" else ", encoder only"
    if encoder == "full":
        return f"Full fine-tuning{only}"
    if config.adapt.method == "lora":
        return f"LoRA r={config.adapt.rank}{only}"
    return f"AdaLoRA{only}"


def distinct_names(names: Sequence[str], homes: Sequence[str], what: str, hint: str) -> list[str]:
    """Add the folder's name where two have one name.

    Parameters
    ----------
    names, homes : of each one, its name and that of its folder.
    what, hint : for the message: what is named, and what to give instead.

    Raises
    ------
    DataError
        If that does not tell them apart.
    """
    counts = Counter(names)
    told = [
        f"{name} · {home}" if counts[name] > 1 else name
        for name, home in zip(names, homes, strict=True)
    ]
    doubled = sorted(name for name, n in Counter(told).items() if n > 1)
    if doubled:
        raise DataError(f"two {what} would be called {', '.join(doubled)}; {hint}")
    return told


def _distinct(models: Sequence[Model]) -> list[Model]:
    hint = "give each argument a name, as in first=runs/a second=runs/b"
    names = distinct_names([m.name for m in models], [_home(m) for m in models], "models", hint)
    return [replace(model, name=name) for model, name in zip(models, names, strict=True)]


def _home(model: Model) -> str:
    if model.run is not None:
        folder = model.run.path.resolve()
        # A baseline kept inside a run is known by that run.
        nested = folder.name == NESTED_BASELINE and _run_of(folder.parent) is not None
        return folder.parent.name if nested else folder.name
    return model.file.resolve().parent.name if model.file else "pretrained"


def description(model: Model) -> dict[str, Any]:
    """Return where a model came from, for provenance."""
    told: dict[str, Any] = {"kind": model.kind, "sha256": model.sha256}
    if model.stage:
        told["stage"] = model.stage
    return told
