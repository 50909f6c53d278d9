"""A corpus of phantom thumbnails the size of the paper's, copies among them, cached on disk."""

from __future__ import annotations

import io
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adalora_qat.corpus.descriptor import FREQUENCIES, THUMBNAIL_SIDE, describe, thumbnail
from adalora_qat.phantom.phantom import phantom

# The paper's count, and the share of it that the two COVID collections have in common.
PAPER_RECORDS = 64_590
COPIES = 1 / 3
CHUNK = 256


def corpus(folder: Path, count: int) -> tuple[Path, NDArray[np.float16], NDArray[np.int64]]:
    """Make (or find) the corpus.

    Returns
    -------
    thumbnails : path of an (N, 128, 128) uint8 array, to be memory-mapped.
    descriptors : (N, F, F).
    original : (N,), the index each image was copied from, its own for originals.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures, found = folder / "thumbnails.npy", folder / "descriptors.npy"
    original = np.arange(count)
    originals = count - int(count * COPIES)
    # Originals and copies interleaved, so that a part of the corpus has its share of both.
    random = np.random.default_rng(7)
    copies = np.sort(random.choice(np.arange(1, count), count - originals, replace=False))
    sources = np.setdiff1d(original, copies)
    original[copies] = [random.choice(sources[: np.searchsorted(sources, c)]) for c in copies]
    if not found.is_file():
        shape = (count, THUMBNAIL_SIDE, THUMBNAIL_SIDE)
        thumbnails = np.lib.format.open_memmap(pictures, "w+", np.uint8, shape)
        descriptors = np.zeros((count, FREQUENCIES, FREQUENCIES), np.float16)
        starts = range(0, count, CHUNK)
        with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            chunks = [list(enumerate(original))[at : at + CHUNK] for at in starts]
            for at, (small, described) in zip(starts, pool.map(_render, chunks), strict=True):
                thumbnails[at : at + CHUNK] = small
                descriptors[at : at + CHUNK] = described
        thumbnails.flush()
        np.save(found, descriptors)
    return pictures, np.load(found, mmap_mode="r"), original


def _render(
    chunk: list[tuple[int, int]],
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    small = np.stack([thumbnail(_picture(index, source)) for index, source in chunk])
    return small, np.stack([describe(one) for one in small])


def _picture(index: int, source: int) -> NDArray[np.uint8]:
    image = phantom(int(source), THUMBNAIL_SIDE).image
    if index == source:
        return image
    random = np.random.default_rng(index)
    left, top, right, bottom = random.uniform(0, 0.05, 4) * THUMBNAIL_SIDE
    picture = Image.fromarray(image).resize(
        (120, 120), Image.Resampling.BILINEAR, box=(left, top, 128 - right, 128 - bottom)
    )
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=75)
    return np.asarray(Image.open(stored))
