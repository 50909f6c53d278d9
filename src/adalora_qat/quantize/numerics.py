"""What a number is stored as: value objects, and the arithmetic that goes with them.

Everything is symmetric: a real x is the integer q = clip(round(x / s), −Q, Q) times a
scale s, Q = 2^(bits−1) − 1 (127, never −128, so that ±x are alike). ``round`` is
half-to-even. The division is a division: multiplying by 1/s instead, as torch's fused
``fake_quantize_per_tensor_affine`` does, puts about one exact tie in eight on the other
side, and ONNX Runtime's QuantizeLinear divides (measured: 50 million values, no difference).

Why symmetric: with no zero point, a sum of products is one integer sum, Σ q_x·q_w · (s_x·s_w); a
zero point on each side would add three more terms.

Legend: C output channels, K inputs of one output channel, G groups of one channel.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

Granularity = Literal["tensor", "channel", "group"]
ObserverName = Literal["minmax", "ema", "percentile", "mse"]

# Below this, a scale counts as zero. The square of it is still a normal float32, so the
# product of an input scale and a weight scale never underflows.
MIN_SCALE = 2.0**-62
# The smallest float16 above zero.
_LEAST_HALF = 2.0**-24


class Numerics(BaseModel):
    """How one tensor is quantized: symmetric integers in [−limit, limit] times scales."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: Annotated[int, Field(ge=2, le=8)] = 8
    granularity: Granularity = "tensor"
    group_size: Annotated[int, Field(ge=2)] | None = None
    """Inputs of one output channel that share a scale; only with granularity ``group``."""
    observer: ObserverName = "minmax"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    scale_dtype: Literal["float32", "float16"] = "float32"
    """What a scale is stored as; float16 only with granularity ``group``, where scales take an
    eighth of the bytes. They are rounded to it when they are frozen."""

    @model_validator(mode="after")
    def _group_has_a_size(self) -> Numerics:
        if (self.granularity == "group") != (self.group_size is not None):
            raise ValueError("group_size goes with granularity=group, and only with it")
        if self.scale_dtype != "float32" and self.granularity != "group":
            raise ValueError("scale_dtype=float16 goes with granularity=group only")
        return self

    @property
    def limit(self) -> int:
        """The largest integer, 2^(bits−1) − 1."""
        return int(2 ** (self.bits - 1)) - 1

    def __str__(self) -> str:
        suffix = {"tensor": "", "channel": "/channel", "group": f"/group{self.group_size}"}
        return f"INT{self.bits}{suffix[self.granularity]}"


class LayerNumerics(BaseModel):
    """The numerics of one layer; None means float32."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: Numerics | None = None
    activation: Numerics | None = None

    @model_validator(mode="after")
    def _activations_follow_weights(self) -> LayerNumerics:
        if self.activation is not None and self.weight is None:
            raise ValueError("activations are quantized only where the weight is: give weight too")
        if self.activation is not None and self.activation.granularity != "tensor":
            raise ValueError("activations have one scale: granularity must be tensor")
        return self

    def __str__(self) -> str:
        if self.weight is None:
            return "float32"
        return f"W {self.weight}, A {self.activation or 'float32'}"


def scale_of(largest: Tensor, limit: int) -> Tensor:
    """Return the scale at which the largest magnitude becomes the largest integer.

    Parameters
    ----------
    largest : magnitudes, any shape; one for each scale.
    limit : Q.

    Returns
    -------
    s = largest / Q, float32, in the shape of the magnitudes.

    Notes
    -----
    A tensor that is all zero, or so small that its scale would be below ``MIN_SCALE``
    (denormals), gets the scale 1: every integer is then 0, and nothing divides by zero.
    """
    scale = largest.to(torch.float32) / limit
    return torch.where(scale >= MIN_SCALE, scale, torch.ones_like(scale))


def as_stored(scale: Tensor, numerics: Numerics) -> Tensor:
    """Return scales as float32 values that their stored type holds exactly.

    Parameters
    ----------
    scale : float32, any shape, above 0.
    numerics : says what scales are stored as.
    """
    if numerics.scale_dtype == "float32":
        return scale
    # Rounded now and not on saving: what trains must be what ships. A scale below the smallest
    # float16 would become 0, one above the largest infinite.
    return (
        scale.clamp(_LEAST_HALF, torch.finfo(torch.float16).max).to(torch.float16).to(torch.float32)
    )


def to_integers(values: Tensor, scale: Tensor, limit: float) -> Tensor:
    """Return clip(round(x / s), −Q, Q) as integer-valued float32, without gradient.

    Parameters
    ----------
    values : x, any shape and float dtype.
    scale : s, float32, broadcasts against the values.
    limit : Q.
    """
    return (values.to(torch.float32) / scale).round_().clamp_(-limit, limit)


def scale_shape(weight: Tensor, numerics: Numerics, channel_axis: int) -> tuple[int, ...]:
    """Return the shape of a weight's scale: (), (C,) or (C, G).

    Parameters
    ----------
    weight : any shape; only its shape is read.
    numerics : the weight's.
    channel_axis : the axis of the C output channels: 1 in a transposed convolution, else 0.
    """
    if numerics.granularity == "tensor":
        return ()
    channels = weight.shape[channel_axis]
    if numerics.group_size is None:
        return (channels,)
    # G = ⌈K / group_size⌉: the last group of a channel may be short.
    return (channels, -(-(weight.numel() // channels) // numerics.group_size))


def as_rows(weight: Tensor, numerics: Numerics, channel_axis: int) -> Tensor:
    """Return the values that share each scale in the last dimension, zero-padded.

    Parameters
    ----------
    weight, numerics, channel_axis : as in ``scale_shape``.

    Returns
    -------
    (M,) per tensor, (C, K) per channel, (C, G, group_size) per group.
    """
    if numerics.granularity == "tensor":
        return weight.flatten()
    rows = weight.movedim(channel_axis, 0).flatten(1)
    if numerics.group_size is None:
        return rows
    # Zeros do not change the largest magnitude of a group, and quantize without error.
    padding = -rows.shape[1] % numerics.group_size
    padded = torch.nn.functional.pad(rows, (0, padding))
    return padded.reshape(len(padded), -1, numerics.group_size)


def broadcast_scale(
    scale: Tensor, shape: torch.Size, group_size: int | None, channel_axis: int
) -> Tensor:
    """Return a weight's scale, shaped to broadcast against the weight.

    Parameters
    ----------
    scale : (), (C,) or (C, G).
    shape : of the weight.
    group_size : inputs that share a scale; None but for (C, G).
    channel_axis : as in ``scale_shape``.

    Returns
    -------
    (), or (1, …, C, …, 1), or the whole shape of the weight where scales are those of groups.
    """
    if scale.ndim == 0:
        return scale
    if scale.ndim == 1:
        return scale.reshape([-1 if axis == channel_axis else 1 for axis in range(len(shape))])
    # (C, G) → (C, K), a scale for each input, the short last group cut; then back to the weight's
    # order of axes, from channels first.
    moved = [shape[channel_axis], *(n for axis, n in enumerate(shape) if axis != channel_axis)]
    inputs = shape.numel() // shape[channel_axis]
    rows = scale.repeat_interleave(group_size or 1, dim=1)[:, :inputs]
    return rows.reshape(moved).movedim(0, channel_axis)
