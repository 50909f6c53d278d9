"""From a float model to one that trains as integers: prepare → observe → freeze → learn.

``prepare`` wraps layers and changes no output. ``observe`` starts a calibration: run a few
batches. ``freeze`` fixes the scales; from here the model computes with integers, which with no
further training is post-training quantization. ``learn`` makes the scales trainable; ``freeze``
ends that. What is frozen is what ``convert`` and the exporter ship: nothing calibrates again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from adalora_qat.config import QuantizeConfig
from adalora_qat.errors import ConfigError
from adalora_qat.quantize.fake_quant import FakeQuantizer
from adalora_qat.quantize.layers import FakeQuantLayer, FakeQuantParameter, wrap
from adalora_qat.quantize.numerics import LayerNumerics
from adalora_qat.quantize.policy import Policy

# Of half a step; a little less than all, so that a weight on the grid is never half-way.
_WITHIN = 0.9999


def prepare(
    model: nn.Module, policy: Policy, config: QuantizeConfig | None = None
) -> list[tuple[str, LayerNumerics]]:
    """Wrap the layers that ``policy`` quantizes, in place; outputs do not change yet.

    Fold batch norms and inject adapters before. The wrapped layer becomes the child ``layer``
    of its wrapper: ``fc1.weight`` is ``fc1.layer.weight`` afterwards.

    Returns
    -------
    (name, numerics) of every quantizable layer in module order, those that stay float32 too.

    Raises
    ------
    ConfigError
        If the model is already prepared, a pattern matches nothing, or a layer that would be
        quantized cannot be.
    """
    if any(isinstance(module, FakeQuantLayer | FakeQuantParameter) for module in model.modules()):
        raise ConfigError("the model is already prepared for quantization; prepare it once")
    assigned = policy.with_options(config or QuantizeConfig()).assign(model)
    layers = {name: module for name, module in model.named_modules() if name in assigned}
    wrappers: dict[nn.Module, FakeQuantLayer] = {}
    for name, numerics in assigned.items():
        if numerics.weight is None:
            continue
        if name in layers:
            wrappers[layers[name]] = wrap(name, layers[name], numerics)
        else:
            _wrap_parameter(model, name, numerics)
    replace_modules(model, dict(wrappers))
    return list(assigned.items())


def observe(model: nn.Module) -> None:
    """Begin calibration: the model computes in float32 and watches its activations.

    Called on a frozen model it discards the scales and starts again.
    """
    _require_prepared(model)
    for layer in quantized_layers(model).values():
        for quantizer in _quantizers_of(layer):
            quantizer.observe()


def freeze(model: nn.Module) -> list[str]:
    """Fix every scale: from the calibration, or as learned; return the layers left weight-only.

    A layer whose input never came by in calibration (SAM's mask embedding under box prompts)
    keeps a float32 input, and is named in the result.

    Raises
    ------
    ConfigError
        If the model is not prepared, or no batch was run since ``observe``.
    TrainingError
        If a weight or an activation was not finite; names the layer.
    """
    _require_prepared(model)
    layers = quantized_layers(model)
    inputs = [
        layer.input_quantizer
        for layer in layers.values()
        if isinstance(layer, FakeQuantLayer) and layer.input_quantizer is not None
    ]
    if any(_quantizers_of(layer)[0].mode == "float" for layer in layers.values()):
        raise ConfigError("nothing was calibrated: call observe and run some batches, then freeze")
    watching = [q for q in inputs if q.mode == "observe"]
    if watching and not any(q.observer is not None and q.observer.batches for q in watching):
        raise ConfigError("no batch was run since observe: run some, then freeze")
    for layer in layers.values():
        if isinstance(layer, FakeQuantLayer):
            layer.freeze()
        else:
            layer.freeze(layer.name, layer_parameter(model, layer.name))
    return [
        name
        for name, layer in layers.items()
        if isinstance(layer, FakeQuantLayer)
        and layer.input_quantizer is not None
        and not layer.input_quantizer.active
    ]


@torch.no_grad()
def spread(model: nn.Module, seed: int) -> None:
    """Move the frozen weights at random within half a step, so that rounding keeps their means.

    Rounding undoes what moved a weight by less than half a step. Weights that came from an INT8
    file begin on the grid that they return to, so that all of a short fine-tuning would be lost.
    With uniform noise added, a weight goes to either neighbour as often as it is near to it
    (stochastic rounding, Gupta et al. 2015); one on the grid stays there.

    Parameters
    ----------
    model : prepared and frozen; master weights are changed in place.
    seed : of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in quantized_layers(model).values():
        if isinstance(layer, FakeQuantLayer):
            weight: Tensor = layer.layer.weight  # type: ignore[assignment]
            noise = torch.rand(weight.shape, generator=generator).to(weight.device) - 0.5
            weight += _WITHIN * noise * layer.weight_quantizer.broadcast(weight)
    refresh(model)


def learn(model: nn.Module) -> dict[str, nn.Parameter]:
    """Make frozen scales trainable (LSQ) and return them by their state-dict key.

    Raises
    ------
    ConfigError
        If the scales are not frozen yet.
    """
    layers = quantized_layers(model)
    if not layers or any(_quantizers_of(layer)[0].mode == "float" for layer in layers.values()):
        raise ConfigError("scales are learned from frozen ones: call freeze before learn")
    learned = {}
    for name, module in model.named_modules():
        if isinstance(module, FakeQuantizer):
            module.learn()
            if isinstance(module.scale, nn.Parameter):
                learned[f"{name}.scale"] = module.scale
    # Integers kept for a frozen scale would not follow one that moves.
    refresh(model)
    return learned


def refresh(model: nn.Module) -> None:
    """Bring the kept integers of weights that do not train up to date.

    Needed after weights were written in place, or ``requires_grad`` was turned off, since
    ``freeze``; loading a state dict does it by itself.
    """
    for layer in quantized_layers(model).values():
        if isinstance(layer, FakeQuantLayer):
            layer.refresh()


def quantized_layers(model: nn.Module) -> dict[str, FakeQuantLayer | FakeQuantParameter]:
    """Return the fake-quantized layers and parameters by their name in the float model."""
    return {
        module.name: module
        for module in model.modules()
        if isinstance(module, FakeQuantLayer | FakeQuantParameter)
    }


def replace_modules(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    """Put each module's replacement wherever the module stands, shared ones included."""
    for parent in list(model.modules()):
        if parent in replacements.values():
            continue
        for name, child in parent._modules.items():
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]


def layer_parameter(model: nn.Module, name: str) -> Tensor:
    """Return the float32 master of a parametrized parameter."""
    owner, _, leaf = name.rpartition(".")
    return model.get_parameter(f"{owner}.parametrizations.{leaf}.original".lstrip("."))


def _wrap_parameter(model: nn.Module, name: str, numerics: LayerNumerics) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    parameter = getattr(module, leaf)
    trains = parameter.requires_grad
    quantizer = FakeQuantParameter(name, parameter, numerics)
    parametrize.register_parametrization(module, leaf, quantizer)
    layer_parameter(model, name).requires_grad_(trains)


def _quantizers_of(layer: FakeQuantLayer | FakeQuantParameter) -> list[FakeQuantizer]:
    if isinstance(layer, FakeQuantParameter):
        return [layer]
    inputs = [] if layer.input_quantizer is None else [layer.input_quantizer]
    return [layer.weight_quantizer, *inputs]


def _require_prepared(model: nn.Module) -> None:
    if not quantized_layers(model):
        raise ConfigError("the model is not prepared for quantization: call prepare first")
