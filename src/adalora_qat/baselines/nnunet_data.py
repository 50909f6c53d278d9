"""Samples as nnU-Net's own files: PNG images and masks, its description and our split.

::

    FOLDER/raw/Dataset001_radiographs/imagesTr/case_00000_0000.png   8-bit grey
    FOLDER/raw/Dataset001_radiographs/labelsTr/case_00000.png        0 or 1
    FOLDER/raw/Dataset001_radiographs/dataset.json                   written last
    FOLDER/cases.csv                                                 case → record
    FOLDER/preprocessed/Dataset001_radiographs/splits_final.json     our train and val
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adalora_qat.files import atomic_write, write_json, write_text
from adalora_qat.progress import Progress
from adalora_qat.samples.dataset import Sample, SegmentationDataset

DATASET_ID: Final = 1
DATASET: Final = f"Dataset{DATASET_ID:03d}_radiographs"


def export_samples(
    folder: Path,
    train: SegmentationDataset,
    val: SegmentationDataset,
    progress: Progress | None = None,
) -> None:
    """Write both data sets for nnU-Net, as they are without augmentation, unless it is done.

    nnU-Net augments by itself. A crop's jitter is drawn once, with the first epoch's numbers.
    """
    raw = folder / "raw" / DATASET
    if (raw / "dataset.json").is_file():
        return
    names: dict[str, list[str]] = {"train": [], "val": []}
    rows: list[tuple[str, str, str]] = []
    total = len(train) + len(val)
    for split, dataset in (("train", train), ("val", val)):
        dataset.set_epoch(1)
        for index in range(len(dataset)):
            sample = dataset[index]
            name = f"case_{len(rows):05d}"
            _write_case(raw, name, sample)
            names[split].append(name)
            rows.append((name, split, sample.id))
            if progress is not None:
                progress(len(rows), total, "images for nnU-Net")
    write_text(folder / "cases.csv", _csv(rows))
    write_json(folder / "preprocessed" / DATASET / "splits_final.json", [names])
    # Last: its presence says that the rest is there.
    write_json(raw / "dataset.json", description(train.targets[0], total))


def description(target: str, count: int) -> dict[str, Any]:
    """Return nnU-Net's ``dataset.json``."""
    return {
        "channel_names": {"0": "radiograph"},
        "labels": {"background": 0, target: 1},
        "numTraining": count,
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
    }


def to_8_bits(unit: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a channel in 0–1 as the 8 bits that nnU-Net is shown, in training and after it."""
    return np.asarray(unit * 255 + 0.5).astype(np.uint8)


def _write_case(raw: Path, name: str, sample: Sample) -> None:
    h, w = sample.valid
    image = to_8_bits(sample.image[0, :h, :w].numpy())
    mask = sample.masks[0, :h, :w].numpy()
    _write_png(raw / "imagesTr" / f"{name}_0000.png", image)
    _write_png(raw / "labelsTr" / f"{name}.png", mask)


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    with atomic_write(path) as temporary:
        Image.fromarray(pixels).save(temporary, compress_level=1)


def _csv(rows: list[tuple[str, str, str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("case", "split", "record"))
    writer.writerows(rows)
    return text.getvalue()
