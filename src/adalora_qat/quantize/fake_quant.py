"""Fake quantization: the arithmetic of integers, in float tensors that gradients pass through.

Two forms of the same rounding, both straight-through (zero gradient where clipped):

- ``quantize``: the integers themselves, as float. A product of such tensors adds up integers,
  which float32 does exactly up to 2²⁴, so the simulation equals the integer runtime bit for
  bit and does not depend on the order of the additions.
- ``fake_quantize``: integers times scale, with the gradient of the scale after "Learned Step
  Size Quantization" (Esser et al. 2020, Eq. 3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from adalora_qat.errors import ConfigError, TrainingError
from adalora_qat.quantize.numerics import (
    MIN_SCALE,
    Numerics,
    as_stored,
    broadcast_scale,
    scale_of,
    scale_shape,
    to_integers,
)
from adalora_qat.quantize.observers import observer_for, weight_threshold

Mode = Literal["float", "observe", "quantize", "learn"]


class _Quantize(torch.autograd.Function):
    # Rounding has the gradient 0 almost everywhere, which would stop all learning. The
    # straight-through estimator (Bengio et al. 2013) takes round for the identity in the backward
    # pass: dq/dx = 1/s where nothing was clipped, and 0 where more x changes nothing.

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, limit: float) -> Tensor:
        # A division, as in ONNX Runtime; see ``numerics``.
        rounded = (values.to(torch.float32) / scale).round_()
        if not ctx.needs_input_grad[0]:
            # Without a backward pass one buffer is enough.
            return rounded.clamp_(-limit, limit).to(values.dtype)
        clipped = rounded.clamp(-limit, limit)
        ctx.save_for_backward(rounded == clipped, scale)
        # Integers up to 127 are exact in bfloat16 and float16 too.
        return clipped.to(values.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        inside, scale = ctx.saved_tensors
        gradient = gradients[0]
        # One gradient for each input of forward; the scale is frozen here.
        return (gradient * inside).div_(scale), None, None


class _FakeQuantize(torch.autograd.Function):
    # x̂ = s·clip(round(x/s), −Q, Q). The ratio x/s alone is kept: both gradients follow from it.

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, limit: float) -> Tensor:
        ratio = values.to(torch.float32) / scale
        ctx.limit = limit
        ctx.save_for_backward(ratio)
        return (ratio.round().clamp_(-limit, limit) * scale).to(values.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (ratio,) = ctx.saved_tensors
        gradient = gradients[0].to(torch.float32)
        rounded = ratio.round()
        inside = rounded.abs() <= ctx.limit
        # Straight through: dx̂/dx = s·(1/s) = 1 inside, 0 outside.
        for_values = (gradient * inside).to(gradients[0].dtype)
        for_scale = None
        if ctx.needs_input_grad[1]:
            # Eq. 3: round(v/s) − v/s inside, ±Q outside. With s·round(v/s) the product rule
            # gives round(v/s) + s·d(v/s)/ds, and the second part is −v/s.
            step = rounded.clamp(-ctx.limit, ctx.limit) - ratio * inside
            for_scale = gradient * step
        return for_values, for_scale, None


class _ScaleGradient(torch.autograd.Function):
    # The identity, whose gradient is multiplied by a factor.

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def quantize(values: Tensor, scale: Tensor, limit: float) -> Tensor:
    """Return the integers q = clip(round(x / s), −Q, Q) of values.

    Parameters
    ----------
    values : x, any shape and float dtype.
    scale : s, float32, broadcasts against the values; gets no gradient here.
    limit : Q, the largest integer.

    Returns
    -------
    Integers in the shape and dtype of the values; their gradient is 1/s, or 0 if clipped.
    """
    integers: Tensor = _Quantize.apply(values, scale, limit)  # type: ignore[no-untyped-call]
    return integers


def fake_quantize(values: Tensor, scale: Tensor, limit: int) -> Tensor:
    """Return values rounded to multiples of a scale, differentiable in both.

    Parameters
    ----------
    values : x, any shape and float dtype.
    scale : s, float32. One that is smaller than the values must be expanded to their shape if it
        is learned, so that autograd sums its gradient.
    limit : Q, the largest integer.

    Returns
    -------
    s · clip(round(x / s), −Q, Q), in the shape and dtype of the values.
    """
    result: Tensor = _FakeQuantize.apply(values, scale, limit)  # type: ignore[no-untyped-call]
    return result


class FakeQuantizer(nn.Module):
    """The quantizer of one tensor: its scale, and the mode that it is in.

    Attributes
    ----------
    scale : float32, () per tensor, (C,) per channel, (C, G) per group. A buffer, and a
        parameter only while it is learned; the key in the state dict is the same.
    observed : () bool, whether the scale has been set. A quantizer whose tensor never came by
        in calibration stays float.
    mode : ``float`` (passes values through), ``observe`` (the same, watching), ``quantize``
        (scale frozen), ``learn`` (scale trained). Restored from ``observed`` on loading.
    """

    scale: Tensor
    observed: Tensor
    mode: Mode

    def __init__(self, numerics: Numerics, weight: Tensor | None = None, channel_axis: int = 0):
        super().__init__()
        self.numerics = numerics
        self.channel_axis = channel_axis
        shape = () if weight is None else scale_shape(weight, numerics, channel_axis)
        device = None if weight is None else weight.device
        # In the state dict, so that a reload computes with the very scales of training.
        self.register_buffer("scale", torch.ones(shape, device=device))
        self.register_buffer("observed", torch.zeros((), dtype=torch.bool, device=device))
        # A weight is known whole when its scale is chosen: nothing has to be observed.
        self.observer = observer_for(numerics) if weight is None else None
        self.mode = "float"

    @property
    def active(self) -> bool:
        """Whether values are being rounded."""
        return self.mode in ("quantize", "learn")

    def forward(self, values: Tensor) -> Tensor:
        """Return values of any shape as the mode has it, in their own dtype."""
        if self.mode == "observe" and self.observer is not None:
            self.observer(values)
        if not self.active:
            return values
        scale = self.broadcast(values)
        if self.mode == "learn":
            # LSQ, Sec. 2.2: a scale sums the gradients of all its values. Divided by √(N·Q) its
            # steps are as large, relative to its size, as those of a weight.
            factor = (values.numel() / self.scale.numel() * self.numerics.limit) ** -0.5
            learned = _ScaleGradient.apply(scale, factor)  # type: ignore[no-untyped-call]
            # A step may not carry a scale to zero or below.
            scale = learned.clamp_min(MIN_SCALE).expand(values.shape)
        return fake_quantize(values, scale, self.numerics.limit)

    def integers(self, values: Tensor) -> Tensor:
        """Return clip(round(values / scale)) of any shape; only for a frozen scale."""
        return quantize(values, self.broadcast(values), self.numerics.limit)

    def broadcast(self, values: Tensor) -> Tensor:
        """Return the scale shaped to broadcast against ``values``."""
        return broadcast_scale(
            self.scale, values.shape, self.numerics.group_size, self.channel_axis
        )

    def observe(self) -> None:
        """Start the calibration again."""
        self._hold(learned=False)
        self.observed.fill_(False)
        if self.observer is not None:
            self.observer.reset()
        self.mode = "observe"

    @torch.no_grad()
    def freeze(self, name: str, weight: Tensor | None = None) -> None:
        """Fix the scale: from what was observed, or from the weight itself, or as learned.

        Parameters
        ----------
        name : of the layer, for errors.
        weight : the effective weight, if the quantizer is a weight's.

        Raises
        ------
        TrainingError
            If the values it is computed from are not finite; names the layer.
        """
        if self.mode == "learn":
            self.scale.copy_(as_stored(self.scale.clamp(min=MIN_SCALE), self.numerics))
        elif self.mode == "observe":
            threshold = self._threshold(weight)
            if threshold is None:
                # Nothing was observed: there is no telling how large such values are.
                self.mode = "float"
                return
            if not torch.isfinite(threshold).all():
                raise TrainingError(
                    f"{name}: cannot choose a quantization scale, the "
                    f"{'activations' if weight is None else 'weights'} hold NaN or infinity; "
                    "look for the layer before it that diverged, and calibrate again"
                )
            scale = scale_of(threshold, self.numerics.limit)
            self.scale.copy_(as_stored(scale, self.numerics))
            self.observed.fill_(True)
        self._hold(learned=False)
        self.mode = "quantize" if self.observed else "float"

    def learn(self) -> None:
        """Turn the frozen scale into a parameter; a quantizer that stayed float is left so."""
        if self.mode == "observe":
            raise ConfigError("scales are learned from frozen ones: call freeze before learn")
        if self.mode == "quantize":
            self._hold(learned=True)
            self.mode = "learn"

    def extra_repr(self) -> str:
        """Describe the quantizer in a printed model."""
        return f"{self.numerics}, {self.mode}"

    def _threshold(self, weight: Tensor | None) -> Tensor | None:
        if weight is not None:
            return weight_threshold(weight, self.numerics, self.channel_axis)
        if self.observer is None or not self.observer.batches:
            return None
        return self.observer.threshold

    def _hold(self, *, learned: bool) -> None:
        # A name is a buffer or a parameter, never both: torch wants the old one gone first.
        value = self.scale.detach().clone()
        del self.scale
        if learned:
            self.scale = nn.Parameter(value)
        else:
            self.register_buffer("scale", value)

    def restore_mode(self) -> None:
        """Take the mode that a loaded state dict implies."""
        if self.mode != "learn" or not self.observed:
            self._hold(learned=False)
            self.mode = "quantize" if self.observed else "float"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Casting a model to half precision must leave scales in float32.
        before = self.scale.detach()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.scale.dtype != torch.float32:
            self.scale.data = before.to(self.scale.device)
        return self


def integers_of(weight: Tensor, quantizer: FakeQuantizer) -> Tensor:
    """Return the integers of a weight under its frozen scale, without gradient.

    Parameters
    ----------
    weight : in the shape that the quantizer was made for.
    quantizer : the weight's own.

    Returns
    -------
    Integers in [−Q, Q] as float32, in the shape of the weight.
    """
    with torch.no_grad():
        return to_integers(weight, quantizer.broadcast(weight), quantizer.numerics.limit)
