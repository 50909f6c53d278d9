"""TinyViT image encoder of LiteMedSAM and MobileSAM.

Written from Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision
Transformers" (ECCV 2022), Sec. 3, and from the shapes of the published checkpoints, whose
parameter names it keeps.

Shapes: B images, C channels, H W rows and columns of the feature map, N = window² tokens,
A attention heads, D embedding width. Feature maps are (B, C, H, W) throughout; in
``torch.channels_last`` the moves between convolution and attention copy nothing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TRITON = importlib.util.find_spec("triton") is not None
"""Whether window attention has a kernel of its own; the CPU build of torch comes without."""


@dataclass(frozen=True)
class TinyViTConfig:
    """The shape of a TinyViT.

    ``patch_stride`` is 1 in LiteMedSAM (two 1×1 convolutions, the first stage at full
    resolution) and 4 in MobileSAM (two 3×3 convolutions of stride 2).
    """

    dims: tuple[int, int, int, int] = (64, 128, 160, 320)
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    heads: tuple[int, int, int, int] = (2, 4, 5, 10)
    windows: tuple[int, int, int, int] = (7, 7, 14, 7)
    merge_strides: tuple[int, int, int] = (2, 2, 1)
    patch_stride: int = 1
    expand_ratio: int = 4
    mlp_ratio: int = 4
    embedding_dim: int = 256


class Conv2dBatchNorm(nn.Module):
    """A convolution without bias and its batch norm, ``c`` and ``bn`` in the checkpoints."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.c = nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        self.bn: nn.Module = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H/stride, W/stride)."""
        out: Tensor = self.bn(self.c(x))
        return out


class PatchEmbed(nn.Module):
    """Image to the first feature map."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        kernel, step = (1, 1) if stride == 1 else (3, 2)
        self.seq = nn.Sequential(
            Conv2dBatchNorm(3, dim // 2, kernel, step),
            nn.GELU(),
            Conv2dBatchNorm(dim // 2, dim, kernel, step),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, S, S) to (B, D, S/stride, S/stride)."""
        out: Tensor = self.seq(images)
        return out


class MBConv(nn.Module):
    """Inverted bottleneck with a residual (Sandler et al., MobileNetV2, 2018)."""

    def __init__(self, dim: int, expand_ratio: int) -> None:
        super().__init__()
        hidden = dim * expand_ratio
        self.conv1 = Conv2dBatchNorm(dim, hidden)
        self.conv2 = Conv2dBatchNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = Conv2dBatchNorm(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (B, C, H, W)."""
        hidden = F.gelu(self.conv1(x))
        hidden = F.gelu(self.conv2(hidden))
        return F.gelu(x + self.conv3(hidden))


class PatchMerging(nn.Module):
    """Change of width, and of resolution where the stride is 2."""

    def __init__(self, dim: int, out_dim: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2dBatchNorm(dim, out_dim)
        self.conv2 = Conv2dBatchNorm(out_dim, out_dim, 3, stride, groups=out_dim)
        self.conv3 = Conv2dBatchNorm(out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C_out, H/stride, W/stride)."""
        out: Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return out


class WindowAttention(nn.Module):
    """Self-attention in a window, with a learned bias per head and absolute offset."""

    attention_bias_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        # Whether a GPU may take this package's kernel in half precision.
        self.fused = True
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        self.register_buffer("attention_bias_index", _offset_index(window), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (windows, N, D)."""
        count, tokens, dim = x.shape
        # The checkpoint interleaves q, k, v by head: (A, 3, D/A), not (3, A, D/A).
        qkv = self.qkv(self.norm(x))
        bias = self.attention_biases[:, self.attention_bias_index]
        if self.fused and _triton_serves(qkv, bias, dim // self.heads):
            # Imported where it is used: the CPU build of torch comes without Triton.
            from adalora_qat.model.triton_windows import window_attention

            fused: Tensor = self.proj(window_attention(qkv, bias.to(qkv.dtype), self.heads))
            return fused
        qkv = qkv.view(count, tokens, self.heads, 3, dim // self.heads)
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        out: Tensor = self.proj(attended.transpose(1, 2).reshape(count, tokens, dim))
        return out


class Mlp(nn.Module):
    """Norm, widen, GELU, narrow."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, dim * ratio)
        self.fc2 = nn.Linear(dim * ratio, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (…, D)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return out


class TinyViTBlock(nn.Module):
    """Window attention, a depthwise convolution that links the windows, an MLP."""

    def __init__(self, dim: int, heads: int, window: int, mlp_ratio: int) -> None:
        super().__init__()
        self.window = window
        self.attn = WindowAttention(dim, heads, window)
        self.local_conv = Conv2dBatchNorm(dim, dim, 3, groups=dim)
        self.mlp = Mlp(dim, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (B, D, H, W)."""
        tokens = x.permute(0, 2, 3, 1)
        tokens = tokens + self._attend(tokens)
        tokens = self.local_conv(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out: Tensor = (tokens + self.mlp(tokens)).permute(0, 3, 1, 2)
        return out

    def _attend(self, tokens: Tensor) -> Tensor:
        batch, height, width, dim = tokens.shape
        side = self.window
        # Padding is attended to, as in the network that was pretrained.
        padded = F.pad(tokens, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = padded.shape[1] // side, padded.shape[2] // side
        windows = padded.view(batch, rows, side, columns, side, dim).transpose(2, 3)
        attended = self.attn(windows.reshape(-1, side * side, dim))
        attended = attended.view(batch, rows, columns, side, side, dim).transpose(2, 3)
        merged: Tensor = attended.reshape(batch, rows * side, columns * side, dim)
        return merged[:, :height, :width]


class Stage(nn.Module):
    """Blocks of one width, then the merging into the next."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the next stage's width and resolution."""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TinyViT(nn.Module):
    """Image (B, 3, S, S) to embeddings (B, 256, S', S').

    ``stem`` holds the convolutional stage, which contains no attention and so no adapter:
    with frozen base weights its output depends on the image alone.
    """

    def __init__(self, config: TinyViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.dims[0], config.patch_stride)
        self.layers = nn.ModuleList(_stage(config, index) for index in range(4))
        out = config.embedding_dim
        self.neck = nn.Sequential(
            nn.Conv2d(config.dims[-1], out, 1, bias=False),
            LayerNorm2d(out, eps=1e-6),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            LayerNorm2d(out, eps=1e-6),
        )

    def stem(self, images: Tensor) -> Tensor:
        """Map (B, 3, S, S) to the features in front of the first attention."""
        features: Tensor = self.layers[0](self.patch_embed(images))
        return features

    def trunk(self, features: Tensor) -> Tensor:
        """Map the stem's features to embeddings (B, 256, S', S')."""
        for layer in self.layers[1:]:
            features = layer(features)
        out: Tensor = self.neck(features)
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, S, S) to embeddings (B, 256, S', S')."""
        return self.trunk(self.stem(images))


def fuse_windows(encoder: TinyViT, fused: bool) -> None:
    """Let the windows of an encoder take this package's kernel on a GPU, or not."""
    for module in encoder.modules():
        if isinstance(module, WindowAttention):
            module.fused = fused


def _triton_serves(qkv: Tensor, bias: Tensor, width: int) -> bool:
    # The kernel is for half precision, windows that fit into registers, and a frozen bias.
    return (
        TRITON
        and qkv.is_cuda
        and qkv.dtype in {torch.bfloat16, torch.float16}
        and qkv.shape[1] <= 256
        and width in {16, 32, 64}
        and not (bias.requires_grad and torch.is_grad_enabled())
    )


def _stage(config: TinyViTConfig, index: int) -> Stage:
    dim, depth = config.dims[index], config.depths[index]
    blocks: list[nn.Module]
    if index == 0:
        blocks = [MBConv(dim, config.expand_ratio) for _ in range(depth)]
    else:
        heads, window = config.heads[index], config.windows[index]
        blocks = [TinyViTBlock(dim, heads, window, config.mlp_ratio) for _ in range(depth)]
    last = index == len(config.dims) - 1
    merging = (
        None
        if last
        else PatchMerging(dim, config.dims[index + 1], stride=config.merge_strides[index])
    )
    return Stage(blocks, merging)


def _offset_index(window: int) -> Tensor:
    """Return (N, N): for two tokens, the number of their absolute row and column offset.

    Offsets are numbered in the order in which the first token, the corner, meets them, so
    that (dy, dx) has number dy·window + dx.
    """
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    return (rows[:, None] - rows).abs() * window + (columns[:, None] - columns).abs()
