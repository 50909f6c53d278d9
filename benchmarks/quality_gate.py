"""How often the quality gate is right: false alarms on real data, wrong masks found.

Usage: ``python benchmarks/quality_gate.py DATA [--out RESULT.json]`` with DATA holding any of
jsrt/, shenzhen/, covid19_radiography/, covid_qu_ex/. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from adalora_qat.corpus.alignment import edge_agreement
from adalora_qat.corpus.quality import QualityLimits, inspect
from adalora_qat.corpus.records import Record
from adalora_qat.corpus.sources import read_source
from adalora_qat.imaging.geometry import to_grey_uint8
from adalora_qat.imaging.image_file import load_image, load_mask

SOURCES = ("jsrt", "shenzhen", "covid19_radiography", "covid_qu_ex")
SIDE = 256
# The other patient's mask is taken this far on in the list, beyond the same patient's images.
OTHER = 97

Mask = NDArray[np.bool_]
Case = tuple[NDArray[np.uint8], Mask]


def main() -> None:
    """Run the gate as it is, then on masks made wrong on purpose."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    limits = QualityLimits()
    records = [
        record
        for source in SOURCES
        if (given.data / source).is_dir()
        for record in read_source(source, given.data / source).records
    ]
    start = perf_counter()
    findings = {record.id: inspect(record, limits) for record in records}
    seconds = perf_counter() - start
    sound = [record for record in records if not findings[record.id]]
    cases = [small(record) for record in sound]
    true = [edge_agreement(*case) for case in cases]
    limit = limits.min_edge_agreement
    result = {
        "records": dict(Counter(record.source for record in records)),
        "findings": {key: [f.code for f in found] for key, found in findings.items() if found},
        "records_per_second_one_core": round(len(records) / seconds, 1),
        "edge_agreement_of_true_masks": {
            f"percentile {p}": round(float(np.percentile(true, p)), 3) for p in (0, 1, 5, 50)
        },
        "wrong_masks_found": {
            name: round(float(np.mean([edge_agreement(*case) < limit for case in wrong(cases)])), 3)
            for name, wrong in WRONG.items()
        },
    }
    text = json.dumps(result, indent=2)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


def small(record: Record) -> Case:
    """Return image and lung mask at 256 px."""
    image = Image.fromarray(to_grey_uint8(load_image(record.image))).resize((SIDE, SIDE))
    parts = [load_mask(path) for path in record.mask_parts("lung")]
    mask = Image.fromarray(np.any(parts, axis=0)).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    return np.asarray(image), np.asarray(mask)


def shifted(share: float) -> Callable[[list[Case]], list[Case]]:
    """Return a maker of masks shifted by a share of the side, each its own way."""

    def move(cases: list[Case]) -> list[Case]:
        angles = np.random.default_rng(0).uniform(0, 2 * np.pi, len(cases))
        return [
            (image, ndimage.shift(mask, share * SIDE * np.array([np.sin(a), np.cos(a)]), order=0))
            for (image, mask), a in zip(cases, angles, strict=True)
        ]

    return move


WRONG: dict[str, Callable[[list[Case]], list[Case]]] = {
    "of another patient": lambda cases: [
        (image, cases[(i + OTHER) % len(cases)][1]) for i, (image, _) in enumerate(cases)
    ],
    "shifted by 3 %": shifted(0.03),
    "shifted by 5 %": shifted(0.05),
    "shifted by 8 %": shifted(0.08),
    "shifted by 12 %": shifted(0.12),
    "mirrored": lambda cases: [(image, mask[:, ::-1]) for image, mask in cases],
    "upside down": lambda cases: [(image, mask[::-1]) for image, mask in cases],
    "image inverted": lambda cases: [(255 - image, mask) for image, mask in cases],
}


if __name__ == "__main__":
    main()
