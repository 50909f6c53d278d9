"""Adapters as PEFT folders, both ways (written against PEFT 0.21; safetensors only).

PEFT's AdaLoRA computes ΔW = B (A ⊙ E) · lora_alpha / (init_r + 1e-5), with the start rank in the
denominator after pruning too; ours is s · P diag(Λ) Q. So B = P, A = Q, and E takes up the factor
between them. PEFT's LoRA computes ΔW = B A · lora_alpha / r.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adalora_qat.adapt.inject import Adapter, inject, load_adapter_state, stored_ranks
from adalora_qat.adapt.lora import LoRALinear
from adalora_qat.adapt.model_card import model_card
from adalora_qat.adapt.svd_linear import SVDLinear
from adalora_qat.config import AdaptConfig
from adalora_qat.errors import CheckpointError, ConfigError
from adalora_qat.files import atomic_write, write_json, write_text
from adalora_qat.model.weights import load_strictly

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"

_PREFIX = "base_model.model."
# PEFT adds this to the rank before it divides.
_EPSILON = 1e-5
# Settings under which PEFT computes something else than these adapters do, and their plain value.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "trainable_token_indices": (None, []),
}


@dataclass(frozen=True)
class PeftFolder:
    """A PEFT adapter in this package's terms.

    Attributes
    ----------
    method : which kind of adapter.
    state : ``<layer>.<tensor>`` → tensor, as ``inject.adapter_state`` gives it.
    base_model : what it was trained on, as the folder says.
    modules : name → state of the modules that were trained and saved whole, beside the adapter.
    """

    method: Literal["adalora", "lora"]
    state: dict[str, Tensor]
    base_model: str | None
    modules: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def ranks(self) -> dict[str, int]:
        """Layer → rank."""
        return stored_ranks(self.state)


def save_peft(
    folder: Path,
    adapters: Mapping[str, Adapter],
    *,
    base_model: str,
    prefix: str = "",
    modules: Mapping[str, nn.Module] | None = None,
    description: str = "",
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write adapters as a folder that PEFT loads: configuration, weights and model card.

    Pruned triplets are left out. LoRA layers of rank 0, which PEFT does not know, too.

    Parameters
    ----------
    adapters : name → adapter, all of one kind, with one scaling if AdaLoRA.
    base_model : Hub id or folder of the pretrained model.
    prefix : put before each name, for a model in which the adapted module is a part:
        "vision_encoder." for transformers' ``SamModel``.
    modules : what trained whole and belongs to it, by its full name in that model: a mask
        decoder. PEFT puts them back with the adapter (``modules_to_save``).
    description : a paragraph for the model card.
    facts : rows of its table on the training: recipe, data, results.

    Raises
    ------
    ConfigError
        If there are no adapters, or two kinds, or AdaLoRA layers of different scaling.
    """
    kinds = {type(adapter) for adapter in adapters.values()}
    if len(kinds) != 1:
        raise ConfigError(
            f"a PEFT folder holds one kind of adapter, got {sorted(k.__name__ for k in kinds)}"
        )
    svd = {f"{prefix}{n}": a for n, a in adapters.items() if isinstance(a, SVDLinear)}
    lora = {f"{prefix}{n}": a for n, a in adapters.items() if isinstance(a, LoRALinear)}
    config, tensors = _adalora_to_peft(svd) if svd else _lora_to_peft(lora)
    whole = dict(modules or {})
    config |= {
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "bias": "none",
        "modules_to_save": list(whole) or None,
    }
    for name, module in whole.items():
        tensors |= {f"{_PREFIX}{name}.{k}": _plain(t) for k, t in module.state_dict().items()}
    ranks = {name: adapter.active_rank for name, adapter in (svd or lora).items()}
    with atomic_write(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_text(folder / CARD, model_card(config, ranks, description, facts or {}))
    # Last, because its presence makes the folder an adapter.
    write_json(folder / CONFIG, config)


def read_peft(folder: Path, *, prefix: str = "") -> PeftFolder:
    """Read a PEFT folder of an AdaLoRA or LoRA adapter on linear layers.

    Parameters
    ----------
    prefix : taken off each layer's name; the reverse of ``save_peft``.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, if the weights are pickled, or if the adapter uses
        something that these layers do not compute (DoRA, biases, …).
    """
    config, tensors = _read_config(folder), _read_weights(folder)
    method = str(config.get("peft_type", "")).lower()
    if method not in {"adalora", "lora"}:
        raise CheckpointError(
            f"{folder}: peft_type {config.get('peft_type')!r} is not supported; "
            "ADALORA and LORA are"
        )
    for key, plain in _UNSUPPORTED.items():
        if config.get(key, plain[0]) not in plain:
            raise CheckpointError(f"{folder}: {key}={config[key]!r} is not supported")
    modules = _take_modules(tensors, config.get("modules_to_save") or [])
    layers = _by_layer(folder, tensors, prefix)
    state: dict[str, Tensor] = {}
    for name, parts in layers.items():
        convert = _adalora_from_peft if method == "adalora" else _lora_from_peft
        try:
            own = convert(f"{prefix}{name}", parts, config)
        except KeyError as error:
            raise CheckpointError(
                f"{folder}: {name} lacks {error}; the folder is incomplete or of another method"
            ) from None
        state |= {f"{name}.{leaf}": tensor for leaf, tensor in own.items()}
    base = config.get("base_model_name_or_path")
    return PeftFolder("adalora" if method == "adalora" else "lora", state, base, modules)


def inject_peft(
    module: nn.Module,
    folder: Path,
    *,
    prefix: str = "",
    modules: Mapping[str, nn.Module] | None = None,
) -> dict[str, Adapter]:
    """Put the adapters of a PEFT folder into ``module``, at their stored ranks.

    Parameters
    ----------
    module : changed in place.
    folder : as PEFT or ``save_peft`` wrote it.
    prefix : taken off each layer's name; see ``read_peft``.
    modules : where what was saved whole goes, by the names that ``save_peft`` was given.

    Raises
    ------
    CheckpointError
        As ``read_peft``, or if the adapters do not fit the model's layers, or if ``modules``
        are not those of the folder. The model is left as it was.
    ConfigError
        If the model lacks a layer that the folder adapts, or has adapters already.
    """
    stored = read_peft(folder, prefix=prefix)
    ranks, whole = stored.ranks, dict(modules or {})
    if set(whole) != set(stored.modules):
        raise CheckpointError(
            f"{folder} holds whole modules {sorted(stored.modules)} beside the adapter, and "
            f"modules={sorted(whole)} were given: name exactly those"
        )
    config = AdaptConfig(method=stored.method, targets=tuple(ranks), schedule=(), rank=1)
    # The seed is idle: every drawn tensor is overwritten.
    injected = inject(module, config, seed=0, ranks=ranks)
    try:
        load_adapter_state(module, stored.state)
        for name, part in whole.items():
            load_strictly(part, stored.modules[name], f"{folder}, {name}")
    except CheckpointError:
        for name, adapter in injected.items():
            module.set_submodule(name, adapter.to_linear())
        raise
    return injected


def _adalora_to_peft(
    adapters: Mapping[str, SVDLinear],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    scalings = {float(adapter.scaling) for adapter in adapters.values()}
    if len(scalings) != 1:
        raise ConfigError(
            f"PEFT's AdaLoRA has one scaling for all layers, these have {sorted(scalings)}"
        )
    ranks = {name: adapter.active_rank for name, adapter in adapters.items()}
    start = max(1, *ranks.values())
    tensors: dict[str, Tensor] = {}
    for name, adapter in adapters.items():
        kept = adapter.mask
        parts = {
            "lora_A": adapter.Q[kept],
            "lora_B": adapter.P[:, kept],
            "lora_E": (adapter.lam[kept].double() * (start + _EPSILON) / start)[:, None],
        }
        tensors |= {f"{_PREFIX}{name}.{leaf}": _plain(part) for leaf, part in parts.items()}
    config = {
        "peft_type": "ADALORA",
        "target_modules": list(adapters),
        "init_r": start,
        "target_r": max(1, round(sum(ranks.values()) / len(ranks))),
        "lora_alpha": scalings.pop() * start,
        "rank_pattern": {
            f"{name}.lora_E": [True] * rank + [False] * (start - rank)
            for name, rank in ranks.items()
        },
        # PEFT refuses to load without a plan; for a finished adapter it means nothing.
        "total_step": 1,
    }
    return config, tensors


def _lora_to_peft(
    adapters: Mapping[str, LoRALinear],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    kept = {name: adapter for name, adapter in adapters.items() if adapter.rank}
    if not kept:
        raise ConfigError("every LoRA layer has rank 0: there is nothing to save")
    tensors: dict[str, Tensor] = {}
    for name, adapter in kept.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = _plain(adapter.A)
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = _plain(adapter.B)
    alphas = {name: float(adapter.scaling) * adapter.rank for name, adapter in kept.items()}
    first = next(iter(kept))
    config = {
        "peft_type": "LORA",
        "target_modules": list(kept),
        "r": kept[first].rank,
        "lora_alpha": alphas[first],
        "lora_dropout": 0.0,
        # PEFT reads the keys as patterns: anchored and escaped, each fits its layer alone.
        "rank_pattern": {f"^{re.escape(name)}": a.rank for name, a in kept.items()},
        "alpha_pattern": {f"^{re.escape(name)}": alpha for name, alpha in alphas.items()},
    }
    return config, tensors


def _adalora_from_peft(
    name: str, parts: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Tensor]:
    P, Q, E = parts["lora_B"].float(), parts["lora_A"].float(), parts["lora_E"].double()
    start = int(config["init_r"])
    alpha = float(config["lora_alpha"])
    # PEFT takes the layer's rank where alpha is not positive.
    scaling = (alpha if alpha > 0 else float(Q.shape[0])) / max(1, start)
    lam = (E.flatten() * max(1, start) / (start + _EPSILON)).float()
    mask = torch.ones(lam.shape, dtype=torch.bool)
    return {"P": P, "lam": lam, "Q": Q, "mask": mask, "scaling": torch.tensor(scaling)}


def _lora_from_peft(
    name: str, parts: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Tensor]:
    A, B = parts["lora_A.weight"].float(), parts["lora_B.weight"].float()
    alpha = float(config["lora_alpha"])
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        # PEFT's rule: a pattern fits the end of the name, from a dot on; the first one wins.
        if re.match(rf"(.*\.)?({pattern})$", name):
            alpha = float(value)
            break
    divisor = math.sqrt(A.shape[0]) if config.get("use_rslora") else A.shape[0]
    return {"A": A, "B": B, "scaling": torch.tensor(alpha / divisor)}


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a PEFT adapter: it has no {CONFIG}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} must hold a mapping, got {type(config).__name__}")
    return config


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = " (adapter_model.bin is pickled and never loaded: save it again with PEFT)"
        hint = pickled if (folder / "adapter_model.bin").exists() else ""
        raise CheckpointError(f"{folder} has no {WEIGHTS}{hint}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


def _take_modules(tensors: dict[str, Tensor], names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Take the tensors of the modules saved whole out of ``tensors``."""
    states: dict[str, dict[str, Tensor]] = {}
    for name in names:
        start = f"{_PREFIX}{name}."
        keys = [key for key in tensors if key.startswith(start)]
        states[name] = {key.removeprefix(start): tensors.pop(key) for key in keys}
    return states


def _by_layer(
    folder: Path, tensors: Mapping[str, Tensor], prefix: str
) -> dict[str, dict[str, Tensor]]:
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(rf"{re.escape(_PREFIX + prefix)}(.+)\.(lora_[ABE](?:\.weight)?)", key)
        if match is None:
            raise CheckpointError(
                f"{folder}: tensor {key} is not a low-rank update of a layer under "
                f"{prefix or 'the model'!r}; give the prefix it was saved with"
            )
        layers.setdefault(match[1], {})[match[2]] = tensor
    if not layers:
        raise CheckpointError(f"{folder}: {WEIGHTS} holds no tensors")
    return layers


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()
