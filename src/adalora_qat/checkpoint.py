"""A run folder: the resolved configuration, provenance, stages and their checkpoints.

::

    RUN/config.yaml                    the configuration that the run computes
    RUN/provenance.json                versions, commit, machine, weights, manifest
    RUN/stage1/model.safetensors       the finished stage: whole model, self-describing
    RUN/stage1/history.csv, ranks.csv  losses by step and epoch; ranks by layer and event
    RUN/stage1/checkpoints/*.safetensors   progress inside the stage, removed when it ends
    RUN/ptq/…, RUN/stage2/…
    RUN/facts.json                     parameters, ranks, bytes by stage (``study.facts``)

A checkpoint is one safetensors file, written beside and renamed: it is there whole or not
at all. Scalars travel as JSON in its header, so nothing is ever unpickled.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from adalora_qat.adapt.inject import adapters, inject, match_linears
from adalora_qat.config import AdaptConfig, QuantizeConfig, RunConfig
from adalora_qat.errors import CheckpointError, UserError
from adalora_qat.files import atomic_write, sha256_file, write_json, write_text
from adalora_qat.model.sam import Segmenter, variant
from adalora_qat.model.weights import load_strictly
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.quantize.branch import BranchedLinear
from adalora_qat.quantize.compensate import branches, insert_branches
from adalora_qat.quantize.layers import FakeQuantLayer
from adalora_qat.quantize.policy import load_policy, parse_policy
from adalora_qat.quantize.prepare import prepare, quantized_layers
from adalora_qat.recipe import dump_config, validated

FORMAT = "adalora-qat/1"
_KEY = "adalora_qat"
MODEL_FILE = "model.safetensors"
# What a start writes before a stage has made anything.
_OF_A_START = {"config.yaml", "provenance.json", "cache", "tracking"}


@dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to one configuration."""

    path: Path
    config: RunConfig

    @classmethod
    def create(cls, path: Path, config: RunConfig) -> RunFolder:
        """Open a run folder for a configuration, making it if it is not there.

        A folder that holds no more than a start leaves takes the new configuration: one that
        failed does not stand in the way of the corrected one.

        Raises
        ------
        CheckpointError
            If the folder belongs to another configuration; names what differs.
        UserError
            If the folder cannot be written.
        """
        existing = path / "config.yaml"
        if existing.is_file():
            if _nothing_made(path):
                write_text(existing, dump_config(config))
                return cls(path, config)
            other = cls.open(path).config
            if other != config:
                found = differences(_plain(other), _plain(config))
                raise CheckpointError(
                    f"{path} is a run of another configuration: {found}; "
                    "choose another --out, or give the same configuration to continue it"
                )
        elif path.is_dir() and any(path.iterdir()):
            raise CheckpointError(f"{path} is not empty and not a run folder; choose another --out")
        else:
            write_text(existing, dump_config(config))
        return cls(path, config)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run folder.

        Raises
        ------
        CheckpointError
            If ``path`` is not a run folder.
        """
        file = path / "config.yaml"
        if not file.is_file():
            raise CheckpointError(f"{path} is not a run folder: it has no config.yaml")
        return cls(path, validated(yaml.safe_load(file.read_text("utf-8")) or {}, str(file)))

    def stage(self, name: str) -> Path:
        """Return the folder of a stage."""
        return self.path / name

    def finished(self, name: str) -> bool:
        """Whether a stage has ended and left its model."""
        return (self.stage(name) / MODEL_FILE).is_file()


def save_model(segmenter: Segmenter, path: Path, config: RunConfig, stage: str) -> str:
    """Write the whole model, self-describing and strict to load; return its SHA-256.

    Parameters
    ----------
    segmenter : float, or with fake-quantized layers; its state dict is stored.
    path : the safetensors file.
    config : what it was built from; adapters and quantization are described from it.
    stage : the name of the stage that made it.
    """
    description = {
        "variant": segmenter.variant.name,
        "side": segmenter.variant.frame.side,
        "structures": list(segmenter.structures),
        "refine": list(segmenter.refine),
        "stage": stage,
        "adapt": config.adapt.model_dump(mode="json"),
        "ranks": _ranks(segmenter),
        "quantize": _quantization(segmenter, config.quantize),
    }
    found = branches(segmenter)
    if found:
        description["branches"] = found
    return write_tensors(path, segmenter.state_dict(), description)


def load_model(path: Path) -> tuple[Segmenter, dict[str, Any]]:
    """Load a model that ``save_model`` wrote: rebuilt as described, then strictly filled.

    Raises
    ------
    CheckpointError
        If the file is damaged, of another format, or does not fit its own description.
    """
    tensors, description = read_tensors(path)
    if "baseline" in description:
        raise CheckpointError(
            f"{path} is a baseline ({description['baseline']['architecture']}), not a Segment "
            "Anything model: it can be evaluated, compared and reported, nothing else"
        )
    segmenter = Segmenter(
        variant(description["variant"]).at_side(description["side"]),
        # Models written before structures have none.
        structures=description.get("structures", ()),
    )
    segmenter.refine = tuple(description.get("refine", ()))
    if description["ranks"]:
        config = AdaptConfig.model_validate(description["adapt"])
        # A target that is missing has a branch instead, and no adapter.
        targets = match_linears(segmenter.image_encoder, config.targets)
        ranks = dict.fromkeys(targets, 0) if description.get("branches") else {}
        inject(segmenter.image_encoder, config, seed=0, ranks=ranks | description["ranks"])
    if description["quantize"] is not None:
        fold_batch_norms(segmenter)
        options = QuantizeConfig.model_validate(description["quantize"]["options"])
        policy = parse_policy(description["quantize"]["policy"], str(path))
        prepare(segmenter, policy, options)
        insert_branches(segmenter, description.get("branches", {}), str(path))
    load_strictly(segmenter, tensors, str(path))
    return segmenter.eval(), description


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """Write tensors and a JSON header as safetensors, atomically; return the file's SHA-256."""
    # safetensors refuses tensors that share memory, and wants them contiguous.
    plain = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    # One metadata key only: safetensors writes several in no fixed order, and equal content
    # is to give equal bytes.
    metadata = {_KEY: json.dumps({"format": FORMAT, **header})}
    with atomic_write(path) as temporary:
        try:
            save_file(plain, temporary, metadata)
        except SafetensorError as error:  # a full disk, among others
            raise UserError(f"cannot write {path}: {error}; make room and try again") from error
    return sha256_file(path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file with its JSON header.

    Raises
    ------
    CheckpointError
        If it is missing, damaged, or was not written by ``write_tensors``.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            if header.pop("format", None) != FORMAT:
                raise CheckpointError(f"{path} was not written by adalora-qat (format {FORMAT})")
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except CheckpointError:
        raise
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore or delete it") from error


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int = 2
) -> None:
    """Write a checkpoint and remove all but the newest ``keep``.

    Parameters
    ----------
    folder : of the stage.
    step : optimizer steps done, 0 to 99,999,999; names the file.
    tensors : by name, of any shape.
    state : everything else, as JSON holds it.
    keep : at least 1.
    """
    write_tensors(folder / f"step-{step:08d}.safetensors", tensors, state)
    for old in _checkpoints(folder)[:-keep]:
        old.unlink()


def latest_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the newest checkpoint of a stage, or None if there is none."""
    files = _checkpoints(folder)
    if not files:
        return None
    return read_tensors(files[-1])


def remove_checkpoints(folder: Path) -> None:
    """Remove a finished stage's checkpoints, and what a killed writer left behind."""
    if folder.is_dir():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Return the optimizer's state as named tensors."""
    return {
        f"optimizer.{key}.{name}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put back what ``optimizer_tensors`` returned."""
    for full, value in tensors.items():
        if full.startswith("optimizer."):
            _, key, name = full.split(".", 2)
            parameter = parameters[name]
            # The step counter stays on the CPU, but where one kernel updates everything.
            fused = any(group.get("fused") for group in optimizer.param_groups)
            if key == "step":
                state = value.to(parameter.device if fused else value.device)
            else:
                # In the parameter's own layout (channels_last), which one kernel asks for.
                state = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            optimizer.state.setdefault(parameter, {})[key] = state


def provenance(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return what made a result: versions, commit, machine, and ``extra``."""
    names = ("adalora-qat", "torch", "transformers", "accelerate", "onnxruntime", "numpy", "pillow")
    return {
        "versions": {"python": platform.python_version(), **_versions(names)},
        "commit": git_commit(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        **extra,
    }


def write_provenance(run: RunFolder, extra: Mapping[str, Any]) -> None:
    """Write ``provenance.json`` into the run folder."""
    write_json(run.path / "provenance.json", provenance(extra))


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return in words where two configurations differ, the first five places; "" if nowhere."""
    a, b = _flat(there), _flat(here)
    keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
    return "; ".join(f"{key} is {a.get(key)!r} there, {b.get(key)!r} here" for key in keys[:5])


def git_commit() -> str | None:
    """Return the commit of the source tree, "-dirty" added if it was changed, or None."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return result.stdout.strip() or None


def _nothing_made(path: Path) -> bool:
    """Whether a run folder holds no file but those of a start: nothing that could be lost."""
    others = [each for each in path.iterdir() if each.name not in _OF_A_START]
    return all(each.is_dir() and not _holds_files(each) for each in others)


def _holds_files(folder: Path) -> bool:
    return any(each.is_file() for each in folder.rglob("*"))


def _ranks(segmenter: Segmenter) -> dict[str, int]:
    """Return adapter → rank, by the names that ``inject`` knows, inside the image encoder."""
    # A quantized adapter is the child ``layer`` of its wrapper.
    wrapped = {
        layer.layer: name
        for name, layer in quantized_layers(segmenter.image_encoder).items()
        if isinstance(layer, FakeQuantLayer)
    }
    found = adapters(segmenter.image_encoder)
    return {
        wrapped.get(adapter, name).removeprefix("image_encoder."): adapter.rank
        for name, adapter in found.items()
        if not isinstance(adapter, BranchedLinear)
    }


def _quantization(segmenter: Segmenter, config: QuantizeConfig) -> dict[str, Any] | None:
    if not quantized_layers(segmenter):
        return None
    policy = load_policy(config.policy)
    return {
        "policy": yaml.safe_dump(
            policy.model_dump(mode="json", exclude_unset=True), sort_keys=False
        ),
        "options": config.model_dump(mode="json"),
    }


def _checkpoints(folder: Path) -> Sequence[Path]:
    return sorted(folder.glob("step-*.safetensors")) if folder.is_dir() else []


def _plain(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _versions(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor() or "unknown"
    match = re.search(r"model name\s*:\s*(.+)", text)
    return match.group(1).strip() if match else platform.processor() or "unknown"
