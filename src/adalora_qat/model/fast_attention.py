"""SAM's relative-position attention without its bias tensor.

transformers' ``SamVisionAttention`` adds a decomposed relative-position bias to the scores:
S[i, j] = s·q_i·k_j + q_i·Rh[y_i − y_j] + q_i·Rw[x_i − x_j]. Written out, the bias is as large as
the scores, and an SDPA call that takes it as a mask has no flash kernel to go to. Two ways round:

- folded: the bias is itself a dot product, [q·s, rel_h, rel_w]·[k, onehot(y), onehot(x)] with
  rel_h[i, y] = q_i·Rh[y_i − y], so a plain SDPA call of a wider head computes all of it;
- triton: a kernel that adds rel_h and rel_w to the scores as it goes (``triton_attention.py``).

Windows are cut after the ``qkv`` projection and put together before ``proj``, so neither runs on
padding: a padded token is zero, and its q, k and v are the projection's bias.

Legend: B images, E grid side, G window side (E where attention is global), H heads, D head
width, C = H·D channels, K = G rounded up to what a kernel likes.
"""

from __future__ import annotations

import contextlib
import importlib.util
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.models.sam.modeling_sam import SamVisionAttention, SamVisionLayer

from adalora_qat.errors import ConfigError

Kernel = Literal["folded", "cudnn", "triton"]
KERNELS: tuple[Kernel, ...] = ("folded", "cudnn", "triton")


class FastVisionAttention(SamVisionAttention):  # type: ignore[misc]
    """A ``SamVisionAttention`` with the same parameters, computed in another way.

    ``kernel`` is "folded" (SDPA of a wider head), "cudnn" (the same, on cuDNN's kernel, which
    alone leaves V at its width), or "triton".
    """

    kernel: Kernel

    def forward(self, hidden_states: Tensor, window: int = 0) -> tuple[Tensor, None]:
        """Attend within windows, or over the whole grid.

        Parameters
        ----------
        hidden_states : (B, E, E, C) tokens.
        window : G; 0 for global attention.

        Returns
        -------
        (B, E, E, C), and None in the place of the scores.
        """
        qkv = self.qkv(hidden_states)
        if self.kernel == "triton" and _triton_serves(qkv, self.num_attention_heads):
            out = self._attend_triton(qkv, window)
        else:
            out = self._attend_sdpa(qkv, window)
        attended: Tensor = self.proj(out)
        return attended, None

    def _attend_sdpa(self, qkv: Tensor, window: int) -> Tensor:
        padding = self._padding(qkv) if window else None
        tables = self._tables(qkv.shape[1], qkv.shape[2], window, step=8)
        return attend_folded(qkv, padding, tables, self.num_attention_heads, window, self.kernel)

    def _attend_triton(self, qkv: Tensor, window: int) -> Tensor:
        # Imported where it is used: the CPU build of torch comes without Triton.
        from adalora_qat.model.triton_attention import relative_attention

        B, height, width, triple = qkv.shape
        heads = self.num_attention_heads
        padding = self._padding(qkv) if window else qkv.new_zeros(triple)
        if padding.requires_grad:
            # The kernel gives padding no gradient; handed windows that are cut, it has none.
            tables = self._tables(window, window, window, step=16)
            cut = _cut(qkv, window, padding)
            out = relative_attention(cut, padding.detach(), *tables, heads, window)
            return _join(out, window, (B, height, width))
        tables = self._tables(height, width, window, step=16)
        return relative_attention(qkv, padding, *tables, heads, window or height)

    def _tables(self, height: int, width: int, window: int, step: int) -> tuple[Tensor, Tensor]:
        return relative_tables(self.rel_pos_h, self.rel_pos_w, (height, width), window, step)

    def _padding(self, qkv: Tensor) -> Tensor:
        # q, k and v of a padded token, (3C,): what the projection makes of a zero.
        zero = qkv.new_zeros(1, qkv.shape[-1] // 3)
        padding: Tensor = self.qkv(zero)[0].to(qkv.dtype)
        # At zero only a bias has a gradient, and it is frozen but in full fine-tuning.
        biases = (p for name, p in self.qkv.named_parameters() if name.split(".")[-1] == "bias")
        return padding if any(bias.requires_grad for bias in biases) else padding.detach()


class FastVisionLayer(SamVisionLayer):  # type: ignore[misc]
    """A ``SamVisionLayer`` that leaves cutting and joining windows to its attention."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (B, E, E, C) to (B, E, E, C)."""
        normed = self.layer_norm1(hidden_states)
        attended, _ = self.attn(hidden_states=normed, window=self.window_size)
        hidden_states = hidden_states + attended
        out: Tensor = hidden_states + self.mlp(self.layer_norm2(hidden_states))
        return out


def install(model: nn.Module, kernel: Kernel, window_kernel: Kernel | None = None) -> int:
    """Make every SAM ViT layer in ``model`` compute fast; return how many there are.

    Objects, parameters and names stay: only the classes of the layers and of their attention
    change, so adapters may be injected before or after.

    Parameters
    ----------
    kernel : for the layers with global attention.
    window_kernel : for those with windows; the same if not given.

    Raises
    ------
    ConfigError
        If the model has no such layers, has them fast already, has attention dropout or no
        relative positions, or if "triton" is asked for where Triton is not installed.
    """
    if any(isinstance(module, FastVisionLayer) for module in model.modules()):
        raise ConfigError("fast attention is installed already: install it once")
    layers = [module for module in model.modules() if isinstance(module, SamVisionLayer)]
    if not layers:
        raise ConfigError("the model has no SAM ViT layers: fast attention works on those only")
    chosen = [window_kernel or kernel if layer.window_size else kernel for layer in layers]
    for layer, kind in zip(layers, chosen, strict=True):
        _check(layer.attn, kind)
    for layer, kind in zip(layers, chosen, strict=True):
        attention = layer.attn
        attention.kernel = kind
        attention.__class__ = FastVisionAttention
        layer.__class__ = FastVisionLayer
    return len(layers)


def install_best(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Kernel | None:
    """Install what is fastest for training in ``dtype`` on ``device``; return its name.

    None, and the model as it was, where transformers' own way is as good: on the CPU, in
    float32, and for encoders without SAM ViT layers.
    """
    served = any(isinstance(module, SamVisionLayer) for module in model.modules())
    if device.type != "cuda" or dtype == torch.float32 or not served:
        return None
    kernel: Kernel = "triton" if triton_is_here() else "cudnn"
    install(model, kernel)
    return kernel


def attend_folded(
    qkv: Tensor,
    padding: Tensor | None,
    tables: tuple[Tensor, Tensor],
    heads: int,
    window: int,
    kernel: Kernel,
) -> Tensor:
    """Attend within windows by PyTorch's own kernels, differentiably.

    Parameters
    ----------
    qkv : (B, height, width, 3·H·D), the projection's output.
    padding : (3·H·D,), q, k and v of a token off the grid; only windows have such.
    tables : as ``relative_tables`` gives them.
    heads : H.
    window : G; 0 for global attention.
    kernel : "folded" or "cudnn".

    Returns
    -------
    (B, height, width, H·D).
    """
    B, height, width, triple = qkv.shape
    rel = relative_terms(qkv, tables, heads)
    if window:
        qkv, rel = _cut(qkv, window, padding), _cut(rel, window, None)
    out = _attend_folded(qkv, rel, heads, (triple // (3 * heads)) ** -0.5, kernel)
    return _join(out, window, (B, height, width)) if window else out


def triton_is_here() -> bool:
    """Whether Triton is installed; the CPU build of torch comes without it."""
    return importlib.util.find_spec("triton") is not None


def relative_tables(
    rel_pos_h: Tensor, rel_pos_w: Tensor, grid: tuple[int, int], window: int, step: int
) -> tuple[Tensor, Tensor]:
    """Return what each row and column of the grid multiplies its queries by.

    Parameters
    ----------
    rel_pos_h, rel_pos_w : (2·G − 1, D), or another length, which is then interpolated.
    grid : (height, width) in tokens.
    window : G, or 0 for the whole grid.
    step : K is G rounded up to a multiple of it: 8 suits SDPA's kernels, 16 tensor cores.

    Returns
    -------
    (height, K, D) and (width, K, D): entry [y, k] is Rh[y mod G − k], zero for k ≥ G.
    """
    height, width = grid
    return (
        _relative_table(rel_pos_h, height, window or height, step),
        _relative_table(rel_pos_w, width, window or width, step),
    )


def relative_terms(qkv: Tensor, tables: tuple[Tensor, Tensor], heads: int) -> Tensor:
    """Return [rel_h, rel_w] for every token and head, of queries that are not scaled.

    Parameters
    ----------
    qkv : (B, height, width, 3·H·D), the projection's output.
    tables : (height, K, D) and (width, K, D), as ``relative_tables`` gives them.
    heads : H.

    Returns
    -------
    (B, height, width, H·2K): rel_h[i, k] = q_i·Rh[y_i − k], then rel_w[i, k] = q_i·Rw[x_i − k].
    """
    row, column = (table.to(qkv.dtype) for table in tables)
    B, height, width, _ = qkv.shape
    query = qkv.view(B, height, width, 3, heads, -1)[:, :, :, 0]
    rel_h = torch.einsum("byxhd,ykd->byxhk", query, row)
    rel_w = torch.einsum("byxhd,xkd->byxhk", query, column)
    return torch.cat([rel_h, rel_w], dim=-1).flatten(3)


def _relative_table(table: Tensor, side: int, window: int, step: int) -> Tensor:
    """Return the table of one axis, (side, K, D): entry [y, k] is R[y mod G − k], zero for k ≥ G.

    Parameters
    ----------
    table : (2·G − 1, D), or another length, which is interpolated.
    side : of the grid along this axis, in tokens.
    window : G.
    step : K is G rounded up to a multiple of it.
    """
    length = 2 * window - 1
    if len(table) != length:
        # Another grid than the pretrained one: as transformers does.
        table = F.interpolate(table.T[None], size=length, mode="linear")[0].T
    lines = torch.arange(side, device=table.device) % window
    keys = torch.arange(window, device=table.device)
    entries = table[lines[:, None] - keys + window - 1]
    return F.pad(entries, (0, 0, 0, -window % step))


def _attend_folded(qkv: Tensor, rel: Tensor, heads: int, scale: float, kernel: Kernel) -> Tensor:
    """Attend over whole grids, or windows: (B, height, width, H·D).

    Parameters
    ----------
    qkv : (B, height, width, 3·H·D).
    rel : (B, height, width, H·2K), as ``relative_terms`` gives them.
    heads : H.
    scale : of the products of queries and keys.
    kernel : "folded" or "cudnn".
    """
    B, height, width, C = qkv.shape[0], qkv.shape[1], qkv.shape[2], qkv.shape[3] // 3
    query, key, value = _heads(qkv, heads)
    terms = rel.view(B, height * width, heads, -1).transpose(1, 2)
    query = torch.cat([query * scale, terms], dim=-1)
    places = _one_hot_places(height, width, terms.shape[-1] // 2, key)
    key = torch.cat([key, places.expand(B, heads, -1, -1)], dim=-1)
    if kernel == "cudnn":
        backend: contextlib.AbstractContextManager[None] = sdpa_kernel(SDPBackend.CUDNN_ATTENTION)
    else:
        # The flash kernels take one width for all three.
        backend = contextlib.nullcontext()
        value = F.pad(value, (0, query.shape[-1] - value.shape[-1]))
    with backend:
        out = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    return out[..., : C // heads].transpose(1, 2).reshape(B, height, width, C)


def _one_hot_places(height: int, width: int, K: int, like: Tensor) -> Tensor:
    """Return which row, then which column each key stands in: (height·width, 2K).

    Parameters
    ----------
    height, width : of the grid in tokens, at most K.
    K : slots of each axis.
    like : gives device and dtype.
    """
    slots = torch.arange(K, device=like.device)
    tokens = torch.arange(height * width, device=like.device)[:, None]
    rows, columns = tokens // width == slots, tokens % width == slots
    return torch.cat([rows, columns], dim=-1).to(like.dtype)


def _heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    B, height, width, _ = qkv.shape
    query, key, value = qkv.view(B, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def _cut(tokens: Tensor, side: int, padding: Tensor | None) -> Tensor:
    """Cut (B, height, width, F) into windows (B·n, side, side, F), filling with ``padding``."""
    B, height, width, features = tokens.shape
    down, right = -height % side, -width % side
    if down or right:
        tokens = F.pad(tokens, (0, 0, 0, right, 0, down))
        if padding is not None:
            inside = torch.zeros(height + down, width + right, 1, device=tokens.device).bool()
            inside[:height, :width] = True
            tokens = torch.where(inside, tokens, padding)
    tokens = tokens.view(B, (height + down) // side, side, (width + right) // side, side, features)
    return tokens.transpose(2, 3).reshape(-1, side, side, features)


def _join(windows: Tensor, side: int, shape: tuple[int, int, int]) -> Tensor:
    """Put windows (B·n, side, side, F) together and drop the padding; the reverse of ``_cut``."""
    B, height, width = shape
    rows, columns = -(-height // side), -(-width // side)
    tokens = windows.view(B, rows, columns, side, side, -1).transpose(2, 3)
    return tokens.reshape(B, rows * side, columns * side, -1)[:, :height, :width]


def _triton_serves(qkv: Tensor, heads: int) -> bool:
    # The kernel is for half precision, square grids and head widths that are powers of two.
    _, height, width, triple = qkv.shape
    return (
        qkv.dtype in {torch.bfloat16, torch.float16}
        and height == width
        and triple // (3 * heads) in {16, 32, 64, 128}
    )


def _check(attention: nn.Module, kernel: Kernel) -> None:
    if kernel not in KERNELS:
        raise ConfigError(f"unknown attention kernel {kernel!r}; known: {', '.join(KERNELS)}")
    if not attention.use_rel_pos or attention.dropout:
        raise ConfigError(
            "fast attention computes relative positions without attention dropout; "
            f"this model has use_rel_pos={attention.use_rel_pos}, dropout={attention.dropout}"
        )
    if kernel == "triton" and not triton_is_here():
        raise ConfigError(
            "the triton attention kernel needs Triton, which comes with CUDA builds of torch; "
            "choose cudnn or folded"
        )
