"""Outputs of the frozen part of the encoder, computed once instead of at every epoch.

Without augmentation an image never changes, and neither does what a frozen prefix makes of
it: LiteMedSAM's convolutional stem, which holds no adapter, is half of its encoder's time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from adalora_qat.errors import ConfigError
from adalora_qat.model.fast_inference import fast_encoder
from adalora_qat.model.sam import Segmenter
from adalora_qat.model.tiny_vit import TinyViT
from adalora_qat.progress import Progress
from adalora_qat.samples.dataset import SegmentationDataset
from adalora_qat.train.objective import Entry


def entry_for(segmenter: Segmenter, *, augmented: bool, stem_moves: bool) -> Entry:
    """Return the deepest point up to which the network is a fixed function of the image.

    ``stem_moves``: something in front of the first attention is trained (all weights, scales).
    """
    encoder = segmenter.image_encoder
    if augmented or stem_moves or any(p.requires_grad for p in _stem_parameters(segmenter)):
        return "image"
    if not any(p.requires_grad for p in encoder.parameters()):
        return "embedding"
    # A ViT's stem is one convolution: keeping its output would cost more than making it.
    return "stem" if isinstance(encoder, TinyViT) else "image"


class Features:
    """The kept features of a data set, in the order of its samples.

    On a GPU they stay there if they take less than half of what is free: to fetch them from the
    host for every step would take longer than the step.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    @classmethod
    @torch.no_grad()
    def compute(
        cls,
        segmenter: Segmenter,
        dataset: SegmentationDataset,
        entry: Entry,
        device: torch.device,
        *,
        autocast: Callable[[], torch.autocast],
        chunk: int = 8,
        progress: Progress | None = None,
    ) -> Features:
        """Run the prefix over the data set, in fixed chunks, so that runs agree to the bit."""
        encode = _prefix(segmenter, entry, device, autocast)
        rows: Tensor | None = None
        for start in range(0, len(dataset), chunk):
            stop = min(start + chunk, len(dataset))
            images = torch.stack([dataset[index].image for index in range(start, stop)])
            with autocast():
                part = encode(images.to(device))
            if rows is None:
                rows = _room_for(part, len(dataset))
            rows[start:stop] = part
            if progress is not None:
                progress(stop, len(dataset), "frozen features")
        return cls(torch.empty(0) if rows is None else rows)

    def take(self, indices: Sequence[int], device: torch.device) -> Tensor:
        """Return the features of some samples, (B, …), on the device."""
        chosen = torch.tensor(indices)
        if self.rows.is_cuda:
            chosen = chosen.pin_memory().to(self.rows.device, non_blocking=True)
        return self.rows[chosen].to(device, non_blocking=True)


def _prefix(
    segmenter: Segmenter,
    entry: Entry,
    device: torch.device,
    autocast: Callable[[], torch.autocast],
) -> Callable[[Tensor], Tensor]:
    if entry == "stem":
        stem: Callable[[Tensor], Tensor] = segmenter.image_encoder.stem
        return stem
    with autocast():
        half = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type)
    if device.type == "cuda" and half:
        # Fake-quantized encoders and TinyViT have no faster form than their own.
        with contextlib.suppress(ConfigError):
            return fast_encoder(segmenter, dtype)
    return segmenter.encode


def _room_for(part: Tensor, count: int) -> Tensor:
    shape = (count, *part.shape[1:])
    if part.is_cuda:
        free, _ = torch.cuda.mem_get_info(part.device)
        if 2 * count * part[0].numel() * part.element_size() > free:
            return torch.empty(shape, dtype=part.dtype)
    nhwc = part.is_contiguous(memory_format=torch.channels_last) and not part.is_contiguous()
    kept = torch.channels_last if nhwc else torch.contiguous_format
    return torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=kept)


def bytes_needed(segmenter: Segmenter, entry: Entry, count: int) -> int:
    """Return the float32 bytes that keeping the features of ``count`` images takes."""
    side = segmenter.variant.embedding_side
    if entry == "embedding":
        return count * segmenter.variant.decoder_width * side * side * 4
    encoder = segmenter.image_encoder
    if entry == "stem" and isinstance(encoder, TinyViT):
        stem_side = segmenter.variant.frame.side // (
            encoder.config.patch_stride * encoder.config.merge_strides[0]
        )
        return count * encoder.config.dims[1] * stem_side**2 * 4
    return 0


def _stem_parameters(segmenter: Segmenter) -> Sequence[torch.nn.Parameter]:
    encoder = segmenter.image_encoder
    if isinstance(encoder, TinyViT):
        return [*encoder.patch_embed.parameters(), *encoder.layers[0].parameters()]
    return list(encoder.patch_embed.parameters())
