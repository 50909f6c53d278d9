"""The four kinds of layer that are quantized, as pure functions of (input, weight, bias).

An ``Operator`` is what a float layer, its fake-quantized form and its integer form share:
the geometry. The three differ only in the tensors they put in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adalora_qat.adapt.adapted_linear import AdaptedLinear
from adalora_qat.errors import ConfigError

Kind = Literal["linear", "conv", "conv_transpose", "embedding"]

# The largest float32 below 2³¹: as float it is exact, as int32 it does not overflow.
BIAS_LIMIT = 2.0**31 - 128


@dataclass(frozen=True)
class Operator:
    """The kind of a layer and its geometry; ``operator(x, weight, bias)`` applies it."""

    kind: Kind
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    output_padding: tuple[int, ...] = ()

    @property
    def channel_axis(self) -> int:
        """The axis of the weight that holds the output channels (an embedding: its rows)."""
        return 1 if self.kind == "conv_transpose" else 0

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Apply the layer.

        Parameters
        ----------
        x : the input, (…, in) or (B, C, H, W); for an embedding, indices of any shape.
        weight : in the shape of the float layer's own.
        bias : (out,) or None; an embedding has none.
        """
        if self.kind == "linear":
            return F.linear(x, weight, bias)
        if self.kind == "embedding":
            return F.embedding(x, weight)
        if self.kind == "conv":
            padding: Any = self.padding
            return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)
        return F.conv_transpose2d(
            x,
            weight,
            bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            self.output_padding,
            self.groups,
            self.dilation,
        )

    def per_output(self, scale: Tensor) -> Tensor:
        """Shape a scale (), (1,) or (C,) to broadcast against this layer's output."""
        # At least one dimension: a 0-dim float32 would be rounded to bfloat16 before it
        # multiplies a bfloat16 output, and all of the layer would be off by one factor.
        flat = scale.reshape(-1)
        return flat[:, None, None] if self.kind in ("conv", "conv_transpose") else flat

    def empty_layer(self, shape: tuple[int, ...]) -> nn.Module:
        """Return a float layer of this geometry on the meta device, without bias."""
        if self.kind == "linear":
            return nn.Linear(shape[1], shape[0], bias=False, device="meta")
        if self.kind == "embedding":
            return nn.Embedding(shape[0], shape[1], device="meta")
        rest: dict[str, Any] = {
            "kernel_size": shape[2:],
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "bias": False,
            "device": "meta",
        }
        if self.kind == "conv":
            return nn.Conv2d(shape[1] * self.groups, shape[0], **rest)
        rest["output_padding"] = self.output_padding
        return nn.ConvTranspose2d(shape[0], shape[1], **rest)


def kind_of(module: nn.Module) -> Kind | None:
    """Return what kind of quantizable layer a module is, or None."""
    if isinstance(module, nn.Linear | AdaptedLinear):
        return "linear"
    if isinstance(module, nn.Conv2d):
        return "conv"
    if isinstance(module, nn.ConvTranspose2d):
        return "conv_transpose"
    return "embedding" if isinstance(module, nn.Embedding) else None


def operator_of(name: str, module: nn.Module) -> Operator:
    """Return the operator of a quantizable layer.

    Raises
    ------
    ConfigError
        For a layer that the integer runtime could not reproduce, naming it and why.
    """
    kind = kind_of(module)
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        if module.padding_mode != "zeros":
            raise ConfigError(
                f"{name}: padding mode {module.padding_mode!r} cannot be quantized; "
                "keep this layer float in the policy"
            )
        if isinstance(module, nn.ConvTranspose2d) and module.groups != 1:
            raise ConfigError(
                f"{name}: a transposed convolution with groups cannot be quantized; "
                "keep this layer float in the policy"
            )
        return Operator(
            "conv" if isinstance(module, nn.Conv2d) else "conv_transpose",
            module.stride,
            module.padding if isinstance(module.padding, str) else tuple(module.padding),
            module.dilation,
            module.groups,
            tuple(module.output_padding),
        )
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        raise ConfigError(
            f"{name}: an embedding with max_norm rewrites its weight and cannot be quantized; "
            "keep this layer float in the policy"
        )
    if kind is None:
        raise ConfigError(f"{name}: {type(module).__name__} is not a layer that can be quantized")
    return Operator(kind)


def integer_forward(
    operator: Operator,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_scale: Tensor,
    weight_scale: Tensor,
) -> Tensor:
    """Apply a layer to integer-valued tensors and scale the sum: what an integer runtime does.

    y = (Σ q_x q_w + q_b) · (s_x s_w), the sum exact while it stays below 2²⁴. The fake-quantized
    and the integer form of a layer both call this with equal tensors, so they agree bit for bit.

    Parameters
    ----------
    operator : the layer's kind and geometry.
    x, weight, bias : q_x, q_w and q_b, integer-valued floats in the shapes that the operator
        takes; the bias may be None.
    input_scale : s_x, ().
    weight_scale : s_w, () or (C,).

    Returns
    -------
    The layer's output in the dtype in which the sum came out.
    """
    accumulated = operator(x, weight, bias)
    scale = operator.per_output(input_scale * weight_scale)
    if accumulated.dtype == torch.float32 and not (scale.requires_grad):
        return accumulated.mul_(scale)
    return (accumulated * scale).to(accumulated.dtype)


def sums_in_half(x: Tensor) -> bool:
    """Return whether products of ``x`` come out as float16, in which sums of integers overflow."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device) == torch.float16
    return x.dtype == torch.float16
