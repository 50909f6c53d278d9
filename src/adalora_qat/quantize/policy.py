"""Which layer gets which numerics: selective mixed precision as a table.

A policy is a list of rows, read from top to bottom; the first whose pattern matches a layer's
name decides. A layer that no row matches stays float32. The built-in ones are the YAML files
in ``policies/``; your own have the same form::

    name: mine
    rows:
      - match: "image_encoder.*.qkv"     # fnmatch over module names, * crosses dots
        why: attention projections stay float32
      - match: "*"
        kinds: [linear]                  # default: every kind of layer
        weight: {bits: 4, granularity: group, group_size: 32, observer: mse}
        activation: {bits: 8}
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from adalora_qat.config import QuantizeConfig
from adalora_qat.errors import ConfigError
from adalora_qat.quantize.numerics import LayerNumerics, Numerics
from adalora_qat.quantize.operators import kind_of
from adalora_qat.recipe import named_text

RowKind = Literal["linear", "conv", "depthwise", "conv_transpose", "embedding", "parameter"]
POLICIES = resources.files("adalora_qat.quantize").joinpath("policies")
_LAYERS: tuple[RowKind, ...] = ("linear", "conv", "depthwise", "conv_transpose", "embedding")


class PolicyRow(BaseModel):
    """A pattern and what the layers that it matches are stored and computed in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    match: str
    """fnmatch pattern over the full module name; ``*`` also crosses dots."""
    kinds: tuple[RowKind, ...] = _LAYERS
    """Which kinds of layer the row is for. ``depthwise`` are convolutions with one input for
    each channel, which ``conv`` does not include; ``parameter`` is a bare parameter of a module,
    such as a positional embedding, and must be asked for by name."""
    weight: Numerics | None = None
    """None keeps the layer float32."""
    activation: Numerics | None = None
    """None leaves the layer's input float32 (weight-only)."""
    optional: bool = False
    """Whether the pattern may match nothing: for parts that only some models have."""
    why: str = ""

    def numerics(self) -> LayerNumerics:
        """Return the row's numerics, which must go together."""
        return LayerNumerics(weight=self.weight, activation=self.activation)

    def matches(self, name: str, kind: RowKind) -> bool:
        """Return whether the row speaks of this layer."""
        return kind in self.kinds and fnmatchcase(name, self.match)


class Policy(BaseModel):
    """An ordered table of rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str = ""
    rows: tuple[PolicyRow, ...] = Field(default=())

    def assign(self, model: nn.Module) -> dict[str, LayerNumerics]:
        """Return the numerics of every quantizable layer of ``model``, in module order.

        Bare parameters appear only where a row matches them; layers that stay float32 have
        ``LayerNumerics()``.

        Raises
        ------
        ConfigError
            If a row that is not optional matches nothing in the model: a typo would
            otherwise leave a layer in another precision than the one asked for.
        """
        layers = list(quantizable(model))
        unused = [
            row.match
            for row in self.rows
            if not row.optional and not any(row.matches(name, kind) for name, kind in layers)
        ]
        if unused:
            raise ConfigError(
                f"policy {self.name}: {', '.join(map(repr, unused))} matches nothing in "
                f"{type(model).__name__}; correct the pattern or mark the row optional"
            )
        assigned = {}
        for name, kind in layers:
            row = next((row for row in self.rows if row.matches(name, kind)), None)
            if kind != "parameter" or (row is not None and row.weight is not None):
                assigned[name] = row.numerics() if row is not None else LayerNumerics()
        return assigned

    def with_options(self, config: QuantizeConfig) -> Policy:
        """Return the policy with the run's options put in where a row leaves them open.

        ``per_channel`` turns per-tensor weight scales into per-channel ones; ``group_scales`` is
        what scales of groups are stored as; ``observer`` and
        ``percentile`` hold for activations whose row does not name an observer.
        """
        rows = tuple(_with_options(row, config) for row in self.rows)
        return self.model_copy(update={"rows": rows})


def quantizable(model: nn.Module) -> Iterator[tuple[str, RowKind]]:
    """Yield (name, kind) of each layer and each bare parameter, in module order."""
    for name, module in model.named_modules():
        kind = kind_of(module)
        if kind is not None:
            yield name, "depthwise" if _is_depthwise(module) else kind
            continue
        for parameter, _ in module.named_parameters(name, recurse=False):
            yield parameter, "parameter"


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels


def load_policy(name_or_file: str | Path) -> Policy:
    """Read a built-in policy by name, or your own from a YAML file.

    Raises
    ------
    ConfigError
        For an unknown name (with the nearest known one) or a table that does not hold
        together, with every problem found.
    """
    return parse_policy(named_text(name_or_file, POLICIES, "policy"), str(name_or_file))


def parse_policy(text: str, origin: str) -> Policy:
    """Read a policy from YAML text; ``origin`` names it in errors."""
    try:
        policy = Policy.model_validate(yaml.safe_load(text))
        for row in policy.rows:
            row.numerics()
    except yaml.YAMLError as error:
        raise ConfigError(f"policy {origin} is not YAML: {error}") from error
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc'])) or 'row'}: "
            f"{problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors()
        ]
        raise ConfigError(f"policy {origin}: " + "; ".join(problems)) from None
    return policy


def _with_options(row: PolicyRow, config: QuantizeConfig) -> PolicyRow:
    weight, activation = row.weight, row.activation
    if weight is not None and config.per_channel and weight.granularity == "tensor":
        weight = weight.model_copy(update={"granularity": "channel"})
    if weight is not None and weight.granularity == "group" and config.group_scales == "float16":
        weight = weight.model_copy(update={"scale_dtype": "float16"})
    if activation is not None and "observer" not in activation.model_fields_set:
        activation = activation.model_copy(
            update={"observer": config.observer, "percentile": config.percentile}
        )
    return row.model_copy(update={"weight": weight, "activation": activation})
