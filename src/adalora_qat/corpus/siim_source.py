"""Reader of the SIIM-ACR Pneumothorax set: DICOM images and a table of run lengths.

Its masks outline pneumothorax, not lungs. The set has no lung masks and none is made up:
its images serve as a second target, as robustness test and for pseudo-labels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from adalora_qat.corpus.mask_codes import EncodedRecord, RelativeRuns
from adalora_qat.corpus.reading import (
    DICOM_SUFFIXES,
    Reading,
    Tally,
    check_root,
    missing,
    subfolders,
)
from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError
from adalora_qat.imaging.dicom import DicomHeader, read_dicom_header

SOURCE = "siim_acr"
# Stage one's table, then stage two's, then whatever else has the two columns.
TABLE_NAMES = ("train-rle.csv", "train-rle.csv.gz", "stage_2_train.csv", "stage_2_train.csv.gz")
COLUMNS = ("ImageId", "EncodedPixels")
NO_PNEUMOTHORAX = "-1"
# dicom-images-train/<study>/<series>/<image>.dcm below the folder of the download.
DICOM_DEPTH = 5


def read_siim_acr(root: Path) -> Reading:
    """Read SIIM-ACR: pneumothorax masks where there are some, no mask where there is none.

    Layout: ``dicom-images-train/**/<ImageId>.dcm`` and ``train-rle.csv[.gz]`` with the
    columns ``ImageId`` and `` EncodedPixels`` (published with the leading space). Images
    without a row (the test part) have neither label nor mask.
    """
    check_root(SOURCE, root)
    folders = [root, *subfolders(root, DICOM_DEPTH)]
    images = [path for folder in folders for path in _dicom_files(folder)]
    if not images:
        raise missing(SOURCE, root, "DICOM files (.dcm)", DICOM_DEPTH)
    rows = _read_table(_find_table(root, folders))
    tally = Tally(SOURCE, root)
    for path in images:
        try:
            header = read_dicom_header(path)
        except DataError as error:
            tally.leave(path, str(error).removeprefix(f"{path}: "))
            continue
        tally.use(_record(path, header, rows.get(path.stem)))
    return tally.reading()


def _record(path: Path, header: DicomHeader, rows: tuple[str, ...] | None) -> Record:
    drawn = tuple(row for row in rows or () if row.strip() != NO_PNEUMOTHORAX)
    codes = {"pneumothorax": RelativeRuns(drawn, header.height, header.width)} if drawn else {}
    label = None if rows is None else "pneumothorax" if drawn else "no pneumothorax"
    return EncodedRecord(
        id=f"{SOURCE}/{path.stem}",
        source=SOURCE,
        image=path,
        label=label,
        patient=header.patient,
        spacing_mm=header.spacing_mm,
        codes=codes,
    )


def _dicom_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in DICOM_SUFFIXES and not path.name.startswith(".")
    )


def _find_table(root: Path, folders: list[Path]) -> Path:
    tables = [path for folder in folders for path in sorted(folder.glob("*.csv*"))]
    ranked = {name: rank for rank, name in enumerate(TABLE_NAMES)}
    tables.sort(key=lambda path: ranked.get(path.name.lower(), len(ranked)))
    for path in tables:
        if set(COLUMNS) <= set(_columns(path)):
            return path
    names = ", ".join(path.name for path in tables) or "no .csv at all"
    raise missing(
        SOURCE, root, f"a table with the columns {' and '.join(COLUMNS)} (found: {names})"
    )


def _columns(path: Path) -> list[str]:
    try:
        return [str(name).strip() for name in pd.read_csv(path, nrows=0).columns]
    except (OSError, ValueError, EOFError):
        return []


def _read_table(path: Path) -> Mapping[str, tuple[str, ...]]:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{SOURCE}: {path} cannot be read ({error}); copy it again") from error
    table.columns = table.columns.str.strip()
    rows: defaultdict[str, list[str]] = defaultdict(list)
    for image, runs in zip(table[COLUMNS[0]], table[COLUMNS[1]], strict=True):
        rows[image.strip()].append(runs.strip())
    return {image: tuple(lines) for image, lines in rows.items()}
