"""Radiographs and masks of a prepared folder as tensors: samples made where the model trains.

Decoded once and kept on the device, so that many short runs share one reading. Augmentation and
prompts are drawn on the device too, in one go a batch: simpler than the package's own (no
opacities, markers or devices), the same for every row of a study.

Shapes: M records, B samples, N structures, S model side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adalora_qat.config import RunConfig
from adalora_qat.corpus.splits import SIDES, assign_splits, read_manifest, records_of
from adalora_qat.samples.planes import decode
from adalora_qat.samples.structures import UNION, assemble, wanted
from adalora_qat.train.sampling import MicroBatch

# Half-widths of what is drawn: degrees, share of the side, share, exponent, share, deviation.
ROTATE, SHIFT, SCALE, GAMMA, CONTRAST, NOISE = 10.0, 0.08, 0.15, 0.5, 0.3, 0.03


@dataclass(frozen=True)
class Corpus:
    """All records of a prepared folder in the model frame.

    Attributes
    ----------
    grey : (M, S, S) uint8, padded at the right and the bottom.
    extent : (M, 2) int64, the valid (h, w).
    masks : (M, N, S, S) bool, known or split from a union; both lungs' union where ``merged``.
    union : (M, S, S) bool, of both lungs.
    known : (M, N) float32; merged : (M,) float32: see ``samples.structures.Truth``.
    drawn : (M, N) bool, whether the set itself draws the structure: what is measured.
    ids, sources, patients : of the records.
    splits : one list of M names of sides for each split.
    """

    grey: Tensor
    extent: Tensor
    masks: Tensor
    union: Tensor
    known: Tensor
    merged: Tensor
    drawn: Tensor
    ids: list[str]
    sources: list[str]
    patients: list[str | None]
    splits: list[list[str]]

    def save(self, path: Path) -> None:
        """Write the tensors and the names into one file."""
        torch.save(vars(self), path)

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Corpus:
        """Read what ``save`` wrote; tensors go to the device."""
        held: dict[str, Any] = torch.load(path, weights_only=True, map_location=device)
        return cls(**held)

    def at(self, split: int, side: str) -> list[int]:
        """Return the positions of the records of one side of a split."""
        return [i for i, name in enumerate(self.splits[split]) if name == side]


def read_corpus(
    folder: Path, side: int, structures: Sequence[str], splits: Sequence[int], most: int | None
) -> Corpus:
    """Decode a prepared folder.

    Parameters
    ----------
    side : S.
    splits : seeds of the splits; 0 is the one that the manifest holds.
    most : read only so many records, spread over the manifest; None reads all.
    """
    manifest = read_manifest(folder)
    manifest = manifest[manifest["split"].isin(SIDES)].reset_index(drop=True)
    if most is not None:
        chosen = np.linspace(0, len(manifest) - 1, most).astype(int)
        manifest = manifest.iloc[chosen].reset_index(drop=True)
    records, groups = records_of(manifest), list(manifest["group"])
    count, shape = len(records), (side, side)
    grey = np.zeros((count, *shape), np.uint8)
    union = np.zeros((count, *shape), np.bool_)
    masks = np.zeros((count, len(structures), *shape), np.bool_)
    extent, known = np.zeros((count, 2), np.int64), np.zeros((count, len(structures)), np.float32)
    merged = np.zeros(count, np.float32)
    for i, record in enumerate(records):
        names = wanted(record, structures)
        read = (*names, UNION) if UNION not in names else names
        planes = decode(record, side, read)
        h, w = planes.frame_map.valid_hw
        truth = assemble(planes.masks[: len(names)], names, structures)
        grey[i, :h, :w] = planes.grey if planes.grey.dtype == np.uint8 else planes.grey >> 8
        masks[i, :, :h, :w], extent[i] = truth.masks, (h, w)
        union[i, :h, :w] = planes.masks[read.index(UNION)]
        known[i], merged[i] = truth.known, truth.merged
    tensors = map(torch.from_numpy, (grey, extent, masks, union, known, merged))
    drawn = torch.tensor([[bool(r.mask_parts(name)) for name in structures] for r in records])
    dealt = [
        list(manifest["split"]) if seed == 0 else assign_splits(records, groups, seed)
        for seed in splits
    ]
    return Corpus(
        *tensors, drawn, [r.id for r in records], [r.source for r in records],
        [r.patient for r in records], [[str(name) for name in names] for names in dealt],
    )  # fmt: skip


def unit(corpus: Corpus, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return images (B, 1, S, S) float32 in 0–1, stretched each, and valid maps (B, 1, S, S)."""
    grey = corpus.grey[rows, None].float()
    side = grey.shape[-1]
    at = torch.arange(side, device=grey.device)
    h, w = corpus.extent[rows].T
    valid = ((at[:, None] < h[:, None, None]) & (at < w[:, None, None]))[:, None]
    low = grey.masked_fill(~valid, math.inf).amin(dim=(2, 3), keepdim=True)
    high = grey.amax(dim=(2, 3), keepdim=True)
    return ((grey - low) / (high - low).clamp(min=1)) * valid, valid.float()


def exact_boxes(masks: Tensor) -> Tensor:
    """Return boxes (B, N, 4) of masks (B, N, S, S) as SAM draws them: first and last pixel."""
    columns, rows = masks.any(dim=2), masks.any(dim=3)
    last = masks.shape[-1] - 1
    edges = [
        edge
        for lines in (columns, rows)
        for edge in (lines.float().argmax(-1), last - lines.flip(-1).float().argmax(-1))
    ]
    x0, x1, y0, y1 = edges
    return torch.stack([x0, y0, x1, y1], dim=-1).float()


def whole_boxes(extent: Tensor, count: int) -> Tensor:
    """Return the boxes (B, N, 4) of whole images of extents (B, 2)."""
    h, w = extent.T.float()
    box = torch.stack([torch.zeros_like(w), torch.zeros_like(h), w, h], dim=-1)
    return box[:, None].expand(-1, count, -1).contiguous()


class DeviceFeed:
    """Endless batches of a corpus on its device, in the form that ``train.loop.Loop`` takes.

    Parameters
    ----------
    rows : positions of the training records; each comes as often as ``repeat`` says of its source.
    samples : how many an epoch has, whatever the number of records.
    """

    def __init__(
        self,
        corpus: Corpus,
        rows: Sequence[int],
        config: RunConfig,
        samples: int,
        repeat: Mapping[str, int],
    ) -> None:
        self.corpus, self.config, self.samples = corpus, config, samples
        self.pool = np.array(
            [row for row in rows for _ in range(repeat.get(corpus.sources[row], 1))]
        )
        self.epoch = 1

    def __len__(self) -> int:
        return self.samples

    def begin(self, epoch: int, micros: Iterable[MicroBatch], device: torch.device) -> None:
        """Draw this epoch's samples; nothing is made ahead."""
        del micros, device
        self.epoch = epoch

    def batch(self, micro: MicroBatch, device: torch.device) -> tuple[dict[str, Tensor], list[str]]:
        """Return the tensors of ``Objective.forward`` and the names of the samples."""
        rows = [self._row((self.epoch - 1) * self.samples + index) for index in micro.indices]
        rng = np.random.default_rng((self.config.seed, self.epoch, *micro.indices))
        tensors = self._samples(torch.tensor(rows, device=device), rng)
        tensors["weights"] = torch.tensor(micro.weights, device=device)
        return tensors, [self.corpus.ids[row] for row in rows]

    def _row(self, position: int) -> int:
        """Return the record of the n-th sample of a run: every pass over the pool is shuffled."""
        lap, at = divmod(position, len(self.pool))
        order = np.random.default_rng((self.config.seed, 7, lap)).permutation(len(self.pool))
        return int(self.pool[order[at]])

    def _samples(self, rows: Tensor, rng: np.random.Generator) -> dict[str, Tensor]:
        corpus, device = self.corpus, rows.device
        grey, valid = unit(corpus, rows)
        planes = torch.cat([grey, corpus.masks[rows].float()], dim=1)
        planes = F.grid_sample(
            planes,
            F.affine_grid(self._moves(rows, rng), list(planes.shape), align_corners=False),
            align_corners=False,
        )
        masks = (planes[:, 1:] > 0.5) & (valid > 0)
        count, each = len(rows), masks.shape[1]
        tone = _sent(rng.uniform(-1, 1, (count, 3)), device)
        grey = planes[:, :1].clamp(0, 1) ** torch.exp(GAMMA * tone[:, 0, None, None, None])
        grey = (grey - 0.5) * (1 + CONTRAST * tone[:, 1, None, None, None]) + 0.5
        noise = torch.randn(grey.shape, device=device, generator=_generator(rng, device))
        grey = (grey + NOISE * tone[:, 2, None, None, None].abs() * noise).clamp(0, 1) * valid
        there = masks.any(dim=(2, 3))
        boxes, named = self._prompts(masks, there, corpus.extent[rows], rng)
        return {
            "inputs": grey.expand(-1, 3, -1, -1),
            "boxes": boxes,
            "masks": masks.float(),
            "valid": valid,
            "structures": torch.where(named, torch.arange(each, device=device), -1),
            "known": corpus.known[rows] * there,
            "merged": corpus.merged[rows],
        }

    def _moves(self, rows: Tensor, rng: np.random.Generator) -> Tensor:
        """Return affine maps (B, 2, 3) about the middle of each image, for ``affine_grid``."""
        count, side = len(rows), self.corpus.grey.shape[-1]
        turn = np.radians(rng.uniform(-ROTATE, ROTATE, count))
        size = np.exp(rng.uniform(-1, 1, count) * math.log1p(SCALE))
        a, b = np.cos(turn) / size, np.sin(turn) / size
        matrix = _sent(np.stack([np.stack([a, -b], -1), np.stack([b, a], -1)], 1), rows.device)
        h, w = self.corpus.extent[rows].T.float()
        centre = torch.stack([w, h], dim=-1) / side - 1
        shift = _sent(rng.uniform(-2 * SHIFT, 2 * SHIFT, (count, 2)), rows.device)
        offset = centre - (matrix @ centre[:, :, None])[:, :, 0] + shift
        return torch.cat([matrix, offset[:, :, None]], dim=2)

    def _prompts(
        self, masks: Tensor, there: Tensor, extent: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return boxes (B, N, 4), and which prompts say what they are for (B, N)."""
        prompt, size = self.config.data.prompt, masks.shape[:2]
        free, unnamed = (_sent(rng.random(size), masks.device) for _ in range(2))
        jitter = rng.integers(-prompt.jitter_px, prompt.jitter_px, (*size, 4), endpoint=True)
        whole = whole_boxes(extent, size[1])
        boxes = (exact_boxes(masks) + _sent(jitter, masks.device)).clamp(min=0)
        boxes = torch.minimum(boxes, whole[:, :, [2, 3, 2, 3]])
        # Jitter can turn a thin box inside out.
        boxes = torch.cat([boxes[..., :2], torch.maximum(boxes[..., 2:], boxes[..., :2] + 1)], -1)
        without = (free < prompt.whole_image) | ~there
        return (
            torch.where(without[:, :, None], whole, boxes),
            without | (unnamed >= prompt.unnamed),
        )


def _sent(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(device, non_blocking=True)


def _generator(rng: np.random.Generator, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(int(rng.integers(2**31)))
