"""TinyViT image encoder of LiteMedSAM and MobileSAM.

Written from Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision
Transformers" (ECCV 2022), Sec. 3, and from the shapes of the published checkpoints, whose
parameter names it keeps.

The way of an image of LiteMedSAM, S = 256, through its four stages:

    image          (B,   3, 256, 256)
    patch_embed    (B,  64, 256, 256)   two 1×1 convolutions
    layers.0       (B, 128, 128, 128)   2 × MBConv, merging of stride 2
    layers.1       (B, 160,  64,  64)   2 × attention in 7×7 windows, merging of stride 2
    layers.2       (B, 320,  64,  64)   6 × attention in 14×14 windows, merging of stride 1
    layers.3       (B, 320,  64,  64)   2 × attention in 7×7 windows
    neck           (B, 256,  64,  64)   what SAM's mask decoder takes

Shapes: B images, C channels, H W rows and columns of the feature map, N = window² tokens,
A attention heads, D width of the tokens. Feature maps are (B, C, H, W) throughout; in
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

    Attributes
    ----------
    dims, depths : width and number of blocks of each stage.
    heads, windows : attention heads, and side of a window in tokens, of each stage; the first
        stage has no attention, and its entries are not used.
    merge_strides : how much each of the three mergings between stages divides the resolution by.
    patch_stride : 1 in LiteMedSAM (two 1×1 convolutions, the first stage at full resolution) and
        4 in MobileSAM (two 3×3 convolutions of stride 2).
    expand_ratio, mlp_ratio : width of the hidden layer of an MBConv and of an MLP, in widths of
        the stage.
    embedding_dim : width of the embeddings, which SAM's decoder asks for.
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
        # The norm subtracts the mean of its input, and a bias with it.
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
        # Two steps of 2 make a stride of 4; overlapping 3×3 windows see edges that the
        # non-overlapping patches of a plain ViT cut through.
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
    """Inverted bottleneck with a residual (Sandler et al., MobileNetV2, 2018).

    Widen by 1×1, filter each channel by itself with 3×3, narrow by 1×1: in the first stage, with
    its many pixels, much cheaper than attention.
    """

    def __init__(self, dim: int, expand_ratio: int) -> None:
        super().__init__()
        hidden = dim * expand_ratio
        self.conv1 = Conv2dBatchNorm(dim, hidden)
        self.conv2 = Conv2dBatchNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = Conv2dBatchNorm(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (B, C, H, W)."""
        hidden = F.gelu(self.conv1(x))  # (B, 4C, H, W)
        hidden = F.gelu(self.conv2(hidden))  # depthwise, the same shape
        # TinyViT applies GELU after the sum; MobileNetV2's own block ends without.
        return F.gelu(x + self.conv3(hidden))


class PatchMerging(nn.Module):
    """Change of width, and of resolution where the stride is 2.

    An MBConv without residual or widening: only its depthwise convolution has the stride.
    """

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
    """Self-attention in a window, with a learned bias per head and absolute offset.

    softmax(q·kᵀ/√d + b) v, where b depends on (|Δy|, |Δx|) alone: N numbers a head instead of
    the N² that a free bias would take (Graham et al., "LeViT", 2021).
    """

    attention_bias_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        # Whether a GPU may take this package's kernel in half precision.
        self.fused = True
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        # Not persistent: the index follows from the window, the checkpoint holds the numbers.
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        self.register_buffer("attention_bias_index", _offset_index(window), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (windows, N, D)."""
        count, tokens, dim = x.shape
        qkv = self.qkv(self.norm(x))  # (windows, N, 3D)
        # (A, N) looked up by (N, N): (A, N, N).
        bias = self.attention_biases[:, self.attention_bias_index]
        if self.fused and _triton_serves(qkv, bias, dim // self.heads):
            # Imported where it is used: the CPU build of torch comes without Triton.
            from adalora_qat.model.triton_windows import window_attention

            fused: Tensor = self.proj(window_attention(qkv, bias.to(qkv.dtype), self.heads))
            return fused
        # The checkpoint interleaves q, k, v by head: (A, 3, D/A), not (3, A, D/A).
        qkv = qkv.view(count, tokens, self.heads, 3, dim // self.heads)
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)  # (windows, A, N, D/A) each
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        # Heads side by side again, (windows, N, D).
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
    """Window attention, a depthwise convolution that links the windows, an MLP.

    Attention stays inside its window, and windows are not shifted from block to block as in
    Swin: the 3×3 convolution is what carries information across their borders.
    """

    def __init__(self, dim: int, heads: int, window: int, mlp_ratio: int) -> None:
        super().__init__()
        self.window = window
        self.attn = WindowAttention(dim, heads, window)
        self.local_conv = Conv2dBatchNorm(dim, dim, 3, groups=dim)
        self.mlp = Mlp(dim, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (B, D, H, W)."""
        tokens = x.permute(0, 2, 3, 1)  # (B, H, W, D), a view
        tokens = tokens + self._attend(tokens)
        tokens = self.local_conv(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out: Tensor = (tokens + self.mlp(tokens)).permute(0, 3, 1, 2)
        return out

    def _attend(self, tokens: Tensor) -> Tensor:
        batch, height, width, dim = tokens.shape
        side = self.window
        # Padding is attended to, as in the network that was pretrained.
        # −H mod n rows and −W mod n columns complete the last windows.
        padded = F.pad(tokens, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = padded.shape[1] // side, padded.shape[2] // side
        # (B, rows, n, columns, n, D) → (B, rows, columns, n, n, D): tokens by window.
        windows = padded.view(batch, rows, side, columns, side, dim).transpose(2, 3)
        attended = self.attn(windows.reshape(-1, side * side, dim))
        # The same way back, and the padding off.
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
        # The neck of SAM's ViT (Kirillov et al. 2023, App. A): 1×1 to the decoder's width, then
        # 3×3, each with a layer norm over the channels.
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
    # 256 tokens are 16×16, more than any window here.
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
    # Token t stands at (t // window, t % window).
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    return (rows[:, None] - rows).abs() * window + (columns[:, None] - columns).abs()
