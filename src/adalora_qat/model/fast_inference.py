"""A SAM ViT encoder that only infers: half precision, few passes over memory, one CUDA graph.

The encoder's arithmetic is left as it is; what goes are passes over the tokens between its
products, and launches:

- Biases at the ends of residual branches are constants: they are summed up beforehand and enter
  with the next norm, and the product adds itself onto the stream (beta = 1 of the GEMM).
- lin1's bias and GELU ride on its product (cuBLASLt's epilogue, GELU's tanh form: it differs
  from the exact one by less than 5e-4, bfloat16 by more).
- Images are cut into patches and multiplied, instead of convolved; adapters are merged.
- Relative-position tables and the q, k, v of padding, fixed by the weights, are made once.
- On a GPU everything is recorded as one CUDA graph for each shape of batch.

Legend: B images, S model side, p patch side, E = S/p grid side, T = B·E² tokens, C channels, D
embedding width, G window side (0: global).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adalora_qat.errors import ConfigError
from adalora_qat.model.fast_attention import Kernel, attend_folded, relative_tables, triton_is_here
from adalora_qat.model.sam import Segmenter, VitImageEncoder


def fast_encoder(
    segmenter: Segmenter, dtype: torch.dtype = torch.bfloat16, *, graph: bool = True
) -> FastEncoder:
    """Return the segmenter's encoder, frozen as it is now, in its fastest form.

    Parameters
    ----------
    dtype : of weights and tokens.
    graph : replay a CUDA graph; it is recorded at the first call with a shape, and holds the
        memory of one pass.

    Raises
    ------
    ConfigError
        If the encoder is not a plain or adapted SAM ViT (fake-quantized layers are not: what
        they compute is decided by their scales).
    """
    encoder = segmenter.image_encoder
    if not isinstance(encoder, VitImageEncoder):
        raise ConfigError(
            f"the fast encoder is for the ViT encoders of SAM, not for {segmenter.variant.name}; "
            "call segmenter.encode"
        )
    return FastEncoder(encoder, dtype, graph=graph)


class FastEncoder:
    """Maps (B, 3, S, S) images to (B, D, E, E) embeddings, without gradients.

    Holds copies of the weights: later changes of the encoder do not reach it.
    """

    def __init__(self, encoder: VitImageEncoder, dtype: torch.dtype, *, graph: bool) -> None:
        config = encoder.config
        kernel = encoder.patch_embed.projection.weight
        self.dtype, self.device = dtype, kernel.device
        self.patch, self.grid = int(config.patch_size), encoder.patch_embed.image_size[0]
        self.grid //= self.patch
        self.heads = int(config.num_attention_heads)
        self.graph = graph and self.device.type == "cuda"
        self._graphs: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        with torch.no_grad():
            self._take(encoder, kernel)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Encode images.

        Parameters
        ----------
        images : (B, 3, S, S) of any dtype, on the encoder's device.

        Returns
        -------
        (B, D, E, E) in the encoder's dtype.

        Raises
        ------
        ConfigError
            If the images have another side than the encoder.
        """
        side = self.grid * self.patch
        if images.shape[1:] != (3, side, side):
            raise ConfigError(
                f"the encoder takes images (B, 3, {side}, {side}), got {tuple(images.shape)}"
            )
        if not self.graph:
            return self._encode(self._cut(images))
        if images.shape not in self._graphs:
            self._graphs[images.shape] = self._record(images)
        graph, patches, out = self._graphs[images.shape]
        self._cut(images, patches)
        graph.replay()
        # The next replay writes into the same place.
        return out.clone()

    # -- what is made once -----------------------------------------------------------------

    def _take(self, encoder: VitImageEncoder, kernel: Tensor) -> None:
        self.patches = self._cast(kernel.flatten(1))
        start = encoder.patch_embed.projection.bias.to(torch.float32).expand(self.grid**2, -1)
        if encoder.pos_embed is not None:
            start = start + encoder.pos_embed.reshape(self.grid**2, -1)
        self.start = self._cast(start)
        shift = torch.zeros_like(start[0])
        self.layers = []
        for layer in encoder.layers:
            self.layers.append(self._layer(layer, shift))
            shift = self.layers[-1].shift_after
        neck = encoder.neck
        narrow = _plain(neck.conv1).weight.flatten(1)
        self.narrow = _Product(self._cast(narrow), self._cast(narrow.to(torch.float32) @ shift))
        self.wide = self._cast(_plain(neck.conv2).weight).to(memory_format=torch.channels_last)
        zero = torch.zeros(len(narrow), device=self.device)
        self.neck_norms = [_Norm.of(n, zero) for n in (neck.layer_norm1, neck.layer_norm2)]

    def _layer(self, layer: Any, shift: Tensor) -> _Layer:
        attention, window = layer.attn, int(layer.window_size)
        qkv, proj = _plain(attention.qkv), _plain(attention.proj)
        lin1, lin2 = _plain(layer.mlp.lin1), _plain(layer.mlp.lin2)
        between = shift + proj.bias.to(torch.float32)
        tables = relative_tables(
            *(attention.rel_pos_h, attention.rel_pos_w), (self.grid, self.grid), window, step=16
        )
        return _Layer(
            norm1=_Norm.of(layer.layer_norm1, shift),
            qkv=_Product(self._cast(qkv.weight), self._cast(qkv.bias)),
            tables=self._cast(torch.stack(tables)),
            window=window or self.grid,
            proj=self._cast(proj.weight),
            norm2=_Norm.of(layer.layer_norm2, between),
            lin1=_Product(self._cast(lin1.weight), self._cast(lin1.bias)),
            lin2=self._cast(lin2.weight),
            shift_after=between + lin2.bias.to(torch.float32),
        )

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.dtype, copy=True).contiguous()

    # -- what is done for every batch ------------------------------------------------------

    def _cut(self, images: Tensor, into: Tensor | None = None) -> Tensor:
        # Images to patches (B, E, E, 3, p, p), cast on the way.
        E, p = self.grid, self.patch
        cut = images.reshape(-1, 3, E, p, E, p).permute(0, 2, 4, 1, 3, 5)
        room = cut.new_empty(cut.shape, dtype=self.dtype) if into is None else into
        return room.copy_(cut)

    def _encode(self, patches: Tensor) -> Tensor:
        B, E = len(patches), self.grid
        stream = self.start.repeat(B, 1).addmm_(patches.view(B * E * E, -1), self.patches.t())
        for layer in self.layers:
            stream = self._block(stream, layer, B)
        narrow = self.neck_norms[0](self.narrow(stream))
        picture = narrow.view(B, E, E, -1).permute(0, 3, 1, 2)
        wide = F.conv2d(picture, self.wide, padding=1).permute(0, 2, 3, 1)
        out = self.neck_norms[1](wide.reshape(B * E * E, -1))
        return out.view(B, E, E, -1).permute(0, 3, 1, 2)

    def _block(self, stream: Tensor, layer: _Layer, B: int) -> Tensor:
        qkv = layer.qkv(layer.norm1(stream)).view(B, self.grid, self.grid, -1)
        attended = self._attend(qkv, layer)
        stream = stream.addmm_(attended.reshape(stream.shape), layer.proj.t())
        hidden = layer.lin1.with_gelu(layer.norm2(stream))
        return stream.addmm_(hidden, layer.lin2.t())

    def _attend(self, qkv: Tensor, layer: _Layer) -> Tensor:
        if qkv.is_cuda and qkv.dtype != torch.float32 and triton_is_here():
            from adalora_qat.model.triton_attention import attend

            return attend(qkv, layer.qkv.bias, layer.tables, self.heads, layer.window)
        window = 0 if layer.window == self.grid else layer.window
        kernel: Kernel = "cudnn" if qkv.is_cuda and qkv.dtype != torch.float32 else "folded"
        tables = (layer.tables[0], layer.tables[1])
        return attend_folded(qkv, layer.qkv.bias, tables, self.heads, window, kernel)

    def _record(self, images: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        given = self._cut(images)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            # Kernels are compiled, and libraries choose theirs, before the recording.
            self._encode(given)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads, which feed, may go on allocating.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            out = self._encode(given)
        return graph, given, out


@dataclass(frozen=True)
class _Product:
    """A linear layer: weight (out, in), bias (out,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight.t())

    def with_gelu(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            return torch._addmm_activation(self.bias, x, self.weight.t(), use_gelu=True)
        return F.gelu(self(x))


@dataclass(frozen=True)
class _Norm:
    """Layer norm of (T, C) rows after a constant was added to them; parameters in FP32."""

    shift: Tensor
    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, norm: Any, shift: Tensor) -> _Norm:
        weight, bias = (t.detach().to(torch.float32, copy=True) for t in (norm.weight, norm.bias))
        return cls(shift, weight, bias, float(norm.eps))

    def __call__(self, x: Tensor) -> Tensor:
        if x.is_cuda and triton_is_here():
            from adalora_qat.model.triton_norm import shifted_layer_norm

            return shifted_layer_norm(x, self.shift, self.weight, self.bias, self.eps)
        shifted = x.to(torch.float32) + self.shift
        return F.layer_norm(shifted, shifted.shape[-1:], self.weight, self.bias, self.eps).to(x)


@dataclass(frozen=True)
class _Layer:
    norm1: _Norm
    qkv: _Product
    tables: Tensor
    window: int
    proj: Tensor
    norm2: _Norm
    lin1: _Product
    lin2: Tensor
    shift_after: Tensor


def _plain(layer: nn.Module) -> Any:
    """Return a layer with its adapter merged, if it has one."""
    merged: Callable[[], nn.Module] | None = getattr(layer, "merged", None)
    plain = layer if merged is None else merged()
    if not isinstance(plain, nn.Linear | nn.Conv2d):
        raise ConfigError(
            f"the fast encoder takes float layers, plain or adapted, not {type(layer).__name__}; "
            "call segmenter.encode"
        )
    return plain
