"""Putting adapters into a model, finding them, and merging them away again."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from adalora_qat.adapt.lora import LoRALinear
from adalora_qat.adapt.svd_linear import SVDLinear
from adalora_qat.config import AdaptConfig
from adalora_qat.errors import CheckpointError, ConfigError

Adapter = SVDLinear | LoRALinear

_KINDS: Mapping[str, type[SVDLinear] | type[LoRALinear]] = {
    "adalora": SVDLinear,
    "lora": LoRALinear,
}
# What an adapter owns beside the pretrained layer, in the order it is saved.
_STATE: Mapping[type[nn.Module], tuple[str, ...]] = {
    SVDLinear: ("P", "lam", "Q", "mask", "scaling"),
    LoRALinear: ("A", "B", "scaling"),
}


def inject(
    module: nn.Module,
    config: AdaptConfig,
    seed: int,
    ranks: Mapping[str, int] | None = None,
) -> dict[str, Adapter]:
    """Replace the target linear layers of ``module`` by adapters and return them by name.

    Parameters
    ----------
    module : changed in place. Only the adapted layers' own weights are frozen.
    config : ``method``, ``targets`` (fnmatch patterns on the names inside ``module``), ``rank``
        and ``scaling``.
    seed : P, Q and A are drawn from a generator seeded by (seed, name): a layer's start does
        not depend on which other layers are adapted, nor on their order.
    ranks : name → rank, to rebuild pruned adapters; must name exactly the targets.

    Raises
    ------
    ConfigError
        If a pattern matches nothing (near names are listed) or a layer that is not a plain
        linear one, if ``module`` has adapters already, or if ``ranks`` names other layers.
    """
    kind = _KINDS.get(config.method)
    if kind is None:
        raise ConfigError(f"adapt.method={config.method} has no adapters to inject")
    if adapters(module):
        raise ConfigError("the model has adapters already: merge them before injecting again")
    targets = match_linears(module, config.targets)
    if ranks is not None and set(ranks) != set(targets):
        odd = sorted(set(ranks) ^ set(targets))
        raise ConfigError(f"ranks must name exactly the targets {config.targets}; differing: {odd}")
    built = {}
    for name, linear in targets.items():
        rank = config.rank if ranks is None else ranks[name]
        adapter = kind.from_linear(linear, rank, config.scaling, _generator(seed, name))
        built[name] = adapter.train(linear.training)
    # Only when every layer could be built: an error leaves the model as it was.
    for name, adapter in built.items():
        module.set_submodule(name, adapter)
    return adapters(module)


def match_linears(module: nn.Module, patterns: tuple[str, ...]) -> dict[str, nn.Linear]:
    """Return the linear layers whose names match any fnmatch pattern, in module order.

    Raises
    ------
    ConfigError
        If a pattern matches nothing, or a module that is not a plain ``nn.Linear``.
    """
    named = {name: child for name, child in module.named_modules() if name}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise ConfigError(_no_match(pattern, module))
    linears = {}
    for name, child in named.items():
        hit = next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)
        if hit is None:
            continue
        # Subclasses compute something else (a quantized layer, say): not ours to replace.
        if type(child) is not nn.Linear:
            raise ConfigError(
                f"adapt.targets pattern {hit!r} matches {name}, a {type(child).__name__}: "
                "only nn.Linear layers can be adapted; narrow the pattern"
            )
        linears[name] = child
    return linears


def adapters(module: nn.Module) -> dict[str, Adapter]:
    """Return the adapters inside ``module`` by name, in module order."""
    return {name: m for name, m in module.named_modules() if isinstance(m, SVDLinear | LoRALinear)}


def svd_adapters(module: nn.Module) -> dict[str, SVDLinear]:
    """Return the SVD adapters inside ``module`` by name, in module order."""
    return {name: m for name, m in module.named_modules() if isinstance(m, SVDLinear)}


def merge(module: nn.Module) -> list[str]:
    """Replace every adapter by one frozen linear layer with W + ΔW; return their names.

    Raises
    ------
    ConfigError
        If there is nothing to merge: it was merged before, or never adapted.
    """
    adapted = adapters(module)
    if not adapted:
        raise ConfigError("the model has no adapters to merge: inject first, merge once")
    for name, adapter in adapted.items():
        module.set_submodule(name, adapter.merged().train(adapter.training))
    return list(adapted)


def adapter_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the adapters' tensors as ``<layer>.<tensor>``, without the pretrained weights."""
    return {
        f"{name}.{key}": getattr(adapter, key).detach()
        for name, adapter in adapters(module).items()
        for key in _STATE[type(adapter)]
    }


def stored_ranks(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Return {layer: rank} of an adapter state, for ``inject(..., ranks=...)``."""
    ranks = {}
    for key, tensor in state.items():
        layer, _, leaf = key.rpartition(".")
        if leaf in {"lam", "A"}:
            ranks[layer] = tensor.shape[0]
    return ranks


@torch.no_grad()
def load_adapter_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy an adapter state into the adapters of ``module``, exactly.

    Parameters
    ----------
    module : has adapters, injected at ``stored_ranks(state)``.
    state : ``<layer>.<tensor>`` → tensor, as ``adapter_state`` gives it.

    Raises
    ------
    CheckpointError
        If names or shapes differ; nothing is changed then.
    """
    own = adapter_state(module)
    if set(own) != set(state):
        missing, unknown = sorted(set(own) - set(state)), sorted(set(state) - set(own))
        raise CheckpointError(
            f"adapter state does not fit the model: missing {missing[:5]}, unknown {unknown[:5]}; "
            "inject the adapters with the targets and method that the state was saved with"
        )
    for key, tensor in state.items():
        if own[key].shape != tensor.shape:
            raise CheckpointError(
                f"adapter tensor {key} is {tuple(tensor.shape)}, the model holds "
                f"{tuple(own[key].shape)}; inject with ranks=stored_ranks(state)"
            )
    # Nothing was changed before all of it was known to fit.
    for key, tensor in state.items():
        own[key].copy_(tensor)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _no_match(pattern: str, module: nn.Module) -> str:
    linears = [name for name, m in module.named_modules() if name and type(m) is nn.Linear]
    near = difflib.get_close_matches(pattern, linears, n=3, cutoff=0.0)
    hint = f"near names: {', '.join(near)}" if near else "the model has no linear layers"
    return f"adapt.targets pattern {pattern!r} matches no module; {hint}"
