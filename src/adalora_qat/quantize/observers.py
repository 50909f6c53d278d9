"""How large the values of a tensor are, which decides its scale.

Activations are watched batch after batch by an observer; a weight is there whole, so its
threshold is computed from it directly. A threshold is the magnitude that becomes the largest
integer; what lies beyond saturates.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adalora_qat.quantize.numerics import Numerics, as_rows, scale_of, to_integers

_BINS = 2048
_COARSE = 25
_FINE = [step / (5 * _COARSE) for step in (4, 3, 2, 1, -1, -2, -3, -4)]
_EMA_MOMENTUM = 0.9


class Observer(nn.Module):
    """Watches batches; ``threshold`` is the magnitude to map to the largest integer.

    State is not persistent: a calibration that was cut short is done again, not continued.
    """

    threshold: Tensor
    """() float32; NaN or infinite if a batch held such a value."""
    batches: int

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.register_buffer("threshold", torch.zeros(()), persistent=False)
        self.batches = 0

    def forward(self, values: Tensor) -> None:
        """Take in one batch of values of any shape; an empty one is ignored."""
        if values.numel():
            self.update(values.detach().to(torch.float32))
            self.batches += 1

    def update(self, values: Tensor) -> None:
        """Take in one batch of any shape, not empty, float32."""
        raise NotImplementedError


class MinMaxObserver(Observer):
    """The largest magnitude of all batches."""

    def update(self, values: Tensor) -> None:
        """Keep the larger of the old and the new maximum."""
        self.threshold = torch.maximum(self.threshold.to(values.device), _largest(values))


class EMAObserver(Observer):
    """The exponential moving average of each batch's largest magnitude (momentum 0.9)."""

    def update(self, values: Tensor) -> None:
        """Move towards the new maximum; start at the first one."""
        largest = _largest(values)
        self.threshold = torch.lerp(
            largest, self.threshold.to(largest), _EMA_MOMENTUM if self.batches else 0.0
        )


class HistogramObserver(Observer):
    """A histogram of magnitudes, from which a percentile or the least squared error is read.

    2048 bins over [0, top]; where a batch goes beyond, ``top`` doubles and neighbouring bins
    merge, so no batch is kept and no value is lost.
    """

    counts: Tensor

    def __init__(self, numerics: Numerics) -> None:
        super().__init__()
        self.numerics = numerics

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.register_buffer("counts", torch.zeros(_BINS, dtype=torch.float64), persistent=False)
        self.top = 0.0

    def update(self, values: Tensor) -> None:
        """Add a batch to the histogram and read the threshold again."""
        largest = float(_largest(values))
        if not largest < float("inf"):
            self.threshold = torch.full_like(self.threshold, largest)
            return
        self._grow(largest)
        # torch.histc reads an empty range as "from the data"; all zeros need no range.
        top = self.top or 1.0
        self.counts = self.counts.to(values.device) + torch.histc(values.abs(), _BINS, 0.0, top)
        self.threshold = torch.as_tensor(self._read(), dtype=torch.float32, device=values.device)

    def _grow(self, largest: float) -> None:
        if self.top == 0.0:
            # So far all values were zero: they stay in the first bin whatever its width.
            self.top = largest
        while largest > self.top:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = torch.cat([merged, torch.zeros_like(merged)])
            self.top *= 2

    def _read(self) -> float:
        edges = torch.linspace(0.0, self.top, _BINS + 1, dtype=torch.float64)
        counts = self.counts.cpu()
        if self.numerics.observer == "percentile":
            share = counts.cumsum(0) / counts.sum()
            bin_index = int(torch.searchsorted(share, self.numerics.percentile / 100))
            return float(edges[min(bin_index, _BINS - 1) + 1])
        centres = (edges[:-1] + edges[1:]) / 2
        return float(_least_squares(centres[None], counts[None], self.numerics.limit)[0])


def observer_for(numerics: Numerics) -> Observer:
    """Return a fresh observer of the kind that the numerics name."""
    if numerics.observer == "minmax":
        return MinMaxObserver()
    if numerics.observer == "ema":
        return EMAObserver()
    return HistogramObserver(numerics)


def weight_threshold(weight: Tensor, numerics: Numerics, channel_axis: int) -> Tensor:
    """Return the threshold of each scale of a weight.

    Parameters
    ----------
    weight : any shape.
    numerics : says which values share a scale, and by which observer it is chosen.
    channel_axis : the axis of the output channels.

    Returns
    -------
    () per tensor, (C,) per channel, (C, G) per group; float32. A weight is one batch, so
    ``ema`` is ``minmax``.
    """
    rows = as_rows(weight.detach().to(torch.float32), numerics, channel_axis).abs()
    if numerics.observer == "percentile":
        rank = max(1, round(rows.shape[-1] * numerics.percentile / 100))
        return rows.kthvalue(rank, dim=-1).values
    if numerics.observer == "mse":
        flat = rows.reshape(-1, rows.shape[-1])
        return _least_squares(flat, torch.ones_like(flat), numerics.limit).reshape(rows.shape[:-1])
    return rows.amax(dim=-1)


def _least_squares(magnitudes: Tensor, counts: Tensor, limit: int) -> Tensor:
    """Return for each row (M, n) the threshold with the least squared quantization error.

    A search over fractions of the largest magnitude that occurs: 0.04, 0.08, …, 1, then
    finer around the best of each row. Ties go to the larger threshold.
    """
    largest = torch.where(counts > 0, magnitudes, torch.zeros_like(magnitudes)).amax(dim=1)
    best = torch.ones_like(largest)
    best_error = torch.full_like(largest, float("inf"))
    coarse = [step / _COARSE for step in range(_COARSE, 0, -1)]
    for offsets in (coarse, _FINE):
        centre = torch.zeros_like(best) if offsets is coarse else best
        for offset in offsets:
            share = (centre + offset).clamp(max=1)
            scale = scale_of(largest * share, limit)[:, None].to(magnitudes)
            error = magnitudes - to_integers(magnitudes, scale, limit) * scale
            total = (error.square_() * counts).sum(dim=1)
            better = total < best_error
            best = torch.where(better, share, best)
            best_error = torch.where(better, total, best_error)
    return largest * best


def _largest(values: Tensor) -> Tensor:
    low, high = torch.aminmax(values)
    return torch.maximum(-low, high)
