"""Quantiles of the shape of chests, from masks drawn by hand: what ``chest.limits`` stands on.

    python benchmarks/chest_limits.py DATA

prints them by source, for the training and validation images of a prepared folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from adalora_qat.chest.shape import chest_shape, lung_area, raggedness
from adalora_qat.corpus.records import Record
from adalora_qat.corpus.splits import read_manifest, records_of
from adalora_qat.imaging.image_file import load_mask
from adalora_qat.samples.structures import split_sides

QUANTILES = (0, 0.001, 0.003, 0.005, 0.01, 0.5, 0.99, 0.995, 0.997, 0.999, 1)


def masks_of(record: Record) -> dict[str, NDArray[np.bool_]]:
    """Return the masks that a record gives, both lungs by side; none where sides are unclear."""
    if "left_lung" in record.masks:
        return {name: load_mask(path) for name, path in record.masks.items()}
    halves = split_sides(load_mask(record.masks["lung"])) if "lung" in record.masks else None
    return {} if halves is None else dict(zip(("right_lung", "left_lung"), halves, strict=True))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    manifest = read_manifest(parser.parse_args().data)
    rows = []
    for split in ("train", "val"):
        for record in records_of(manifest, split):
            masks = masks_of(record)
            if not masks:
                continue
            ragged = max(map(raggedness, masks.values()))
            shape = {"lung_area": lung_area(masks), **chest_shape(masks), "ragged": ragged}
            rows.append({"source": record.source, **shape})
    for source, part in pd.DataFrame(rows).groupby("source"):
        table = part.drop(columns="source").quantile(QUANTILES).T.round(3)
        print(f"{source}: {len(part)}\n{table.to_string()}\n")


if __name__ == "__main__":
    main()
