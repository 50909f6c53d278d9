"""Splits without leaks, and the manifest they are written to and only ever read back from.

A group (duplicates and one patient's images) stands on one side as a whole. Groups are
dealt out so that every prefix of every stratum (source, class) keeps to the fractions.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from adalora_qat.corpus.records import CHEST, SPLITS, Record, sort_structures, structure_named
from adalora_qat.errors import DataError
from adalora_qat.files import atomic_write

SIDES = ("train", "val", "test")
MASK = "mask_"
# Columns before and after those of the masks, which come by structure.
HEAD_COLUMNS = ("id", "source", "label", "patient", "group", "split", "image")
TAIL_COLUMNS = ("width", "height", "spacing_row_mm", "spacing_col_mm", "pixel_hash")
NUMBER_TYPES = {
    "width": "int64", "height": "int64", "spacing_row_mm": "float64", "spacing_col_mm": "float64"
}  # fmt: skip

# How strongly a group's stratum, its source and the whole pull it to a side: the stratum
# decides, the wider levels break its ties so that many small strata do not all round alike.
LEVEL_WEIGHTS = (1.0, 0.5, 0.25)


def manifest_columns(structures: Iterable[str]) -> list[str]:
    """Return a manifest's columns: those of the chest's structures are always there."""
    masks = [MASK + structure for structure in sort_structures([*CHEST, *structures])]
    return [*HEAD_COLUMNS, *masks, *TAIL_COLUMNS]


def structures_of(manifest: pd.DataFrame) -> list[str]:
    """Return the structures that a manifest has columns for, used or not."""
    return [name.removeprefix(MASK) for name in manifest.columns if name.startswith(MASK)]


def assign_splits(
    records: Sequence[Record],
    groups: Sequence[str],
    seed: int = 0,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    external: Collection[str] = (),
) -> list[str | None]:
    """Give every record a split; all records of a group get the same one.

    A group without any mask is ``unlabelled``; one of an external source is ``external``.
    Everything else is dealt to train, val and test by ``fractions``, stratified by source
    and class, deterministic in ``seed`` and independent of the order of the records.

    Parameters
    ----------
    records, groups : one group name a record.
    fractions : shares of train, val and test; they add up to 1.
    external : sources that are only ever an external test set.

    Returns
    -------
    One split per record, or None for a record of another source that shares a group with
    an external one: it may stand neither in training nor in that test set.

    Raises
    ------
    DataError
        If the fractions are not three shares of one whole, or an external source is unknown.
    """
    check_fractions(fractions)
    _check_external(records, external)
    members: dict[str, list[Record]] = defaultdict(list)
    for record, group in zip(records, groups, strict=True):
        members[group].append(record)
    fixed: dict[str, str] = {}
    for group, inside in members.items():
        if any(record.source in external for record in inside):
            fixed[group] = "external"
        elif not any(record.masks for record in inside):
            fixed[group] = "unlabelled"
    dealt = _deal({g: m for g, m in members.items() if g not in fixed}, seed, fractions)
    split_of = {**dealt, **fixed}
    return [
        None if split_of[group] == "external" and record.source not in external else split_of[group]
        for record, group in zip(records, groups, strict=True)
    ]


def _deal(
    members: Mapping[str, Sequence[Record]], seed: int, fractions: Sequence[float]
) -> dict[str, str]:
    """Deal groups, largest first, each to the side that lags furthest behind its share."""
    dealt: dict[str, str] = {}
    total: Counter[tuple[str, ...]] = Counter()
    given: tuple[Counter[tuple[str, ...]], ...] = tuple(Counter() for _ in SIDES)
    sides = [side for side, share in enumerate(fractions) if share > 0]
    for group in _dealing_order(members, seed):
        sizes = _level_sizes(members[group])

        def lag(side: int, sizes: Mapping[tuple[str, ...], int] = sizes) -> float:
            # How many records this side would be short of its share of all dealt so far.
            return sum(
                LEVEL_WEIGHTS[2 - len(level)]
                * size
                * (fractions[side] * (total[level] + size) - given[side][level])
                for level, size in sizes.items()
            )

        best = max(sides, key=lag)
        for level, size in sizes.items():
            total[level] += size
            given[best][level] += size
        dealt[group] = SIDES[best]
    return dealt


def _dealing_order(members: Mapping[str, Sequence[Record]], seed: int) -> list[str]:
    def key(group: str) -> tuple[int, bytes]:
        first = min(record.id for record in members[group])
        return -len(members[group]), hashlib.sha256(f"{seed}\0{first}".encode()).digest()

    return sorted(members, key=key)


def _level_sizes(records: Sequence[Record]) -> Counter[tuple[str, ...]]:
    """Count a group's records at each level: (source, class), (source,) and ()."""
    sizes: Counter[tuple[str, ...]] = Counter()
    for record in records:
        sizes[record.source, record.label or ""] += 1
        sizes[(record.source,)] += 1
        sizes[()] += 1
    return sizes


def check_fractions(fractions: Sequence[float]) -> None:
    """Refuse fractions that are not three shares of one whole."""
    if len(fractions) != 3 or any(share < 0 for share in fractions):
        raise DataError(
            f"fractions must be three shares (train, val, test), none negative: {fractions}"
        )
    if not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise DataError(f"fractions must add up to 1, got {fractions} = {sum(fractions):g}")


def _check_external(records: Sequence[Record], external: Collection[str]) -> None:
    unknown = set(external) - {record.source for record in records}
    if unknown:
        known = ", ".join(sorted({record.source for record in records})) or "none"
        raise DataError(
            f"external names {', '.join(sorted(unknown))}, which gave no usable record; "
            f"sources with records: {known}"
        )


def write_manifest(manifest: pd.DataFrame, folder: Path) -> None:
    """Write ``manifest.parquet`` and ``manifest.csv``, paths relative to ``folder``.

    A path on another drive than ``folder`` stays absolute.
    """
    columns = manifest_columns(structures_of(manifest))
    stored = manifest.loc[:, columns].astype(NUMBER_TYPES).reset_index(drop=True)
    for column in _text_columns(columns):
        stored[column] = _objects(_text(value) for value in stored[column])
    for column in _path_columns(columns):
        stored[column] = _objects(_relative(_text(value), folder) for value in stored[column])
    with atomic_write(folder / "manifest.parquet") as temporary:
        stored.to_parquet(temporary, index=False, schema=_schema(columns))
    with atomic_write(folder / "manifest.csv") as temporary:
        stored.to_csv(temporary, index=False, lineterminator="\n")


def read_manifest(path: Path | str) -> pd.DataFrame:
    """Read a manifest: a prepare folder, its ``manifest.parquet`` or its ``manifest.csv``.

    Returns
    -------
    One row per record, the columns of ``prepare`` and whatever else the file holds, missing
    values None (NaN for spacings), paths absolute.

    Raises
    ------
    DataError
        If there is no manifest, or it lacks a column, has a mask column that names no
        structure, repeats an id, names an unknown split or puts one group on two sides.
    """
    file = _manifest_file(Path(path))
    try:
        manifest = _read_table(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as a manifest: {error}") from error
    _check_columns(manifest, file)
    manifest = manifest.reset_index(drop=True)
    for column in _text_columns(manifest.columns):
        manifest[column] = _objects(_text(value) for value in manifest[column])
    for column in _path_columns(manifest.columns):
        manifest[column] = _objects(_absolute(value, file.parent) for value in manifest[column])
    _check_manifest(manifest, file)
    return manifest


def records_of(
    manifest: pd.DataFrame, split: str | None = None, target: str | None = None
) -> list[Record]:
    """Return the records of one split, in manifest order.

    Parameters
    ----------
    manifest : as from ``read_manifest``.
    split : one of ``SPLITS``, or None for every record.
    target : keep only records that give this mask, whole or in parts; None keeps all.
        Sets differ in the masks they have, so training and evaluation should name theirs.

    Raises
    ------
    DataError
        If the split is unknown.
    """
    if split is not None and split not in SPLITS:
        raise DataError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    chosen = manifest if split is None else manifest[manifest["split"] == split]
    records = (_record(row) for row in _rows(chosen))
    return [record for record in records if target is None or record.mask_parts(target)]


def _rows(manifest: pd.DataFrame) -> Iterator[dict[str, Any]]:
    columns = list(manifest.columns)
    for values in manifest.itertuples(index=False, name=None):
        yield dict(zip(columns, values, strict=True))


def _record(row: Mapping[str, Any]) -> Record:
    spacing = (row["spacing_row_mm"], row["spacing_col_mm"])
    return Record(
        id=row["id"],
        source=row["source"],
        image=Path(row["image"]),
        masks={
            column.removeprefix(MASK): Path(path)
            for column, path in row.items()
            if column.startswith(MASK) and isinstance(path, str)
        },
        label=_text(row["label"]),
        patient=_text(row["patient"]),
        spacing_mm=None if any(map(math.isnan, spacing)) else spacing,
    )


def _manifest_file(path: Path) -> Path:
    if path.is_dir():
        for name in ("manifest.parquet", "manifest.csv"):
            if (path / name).is_file():
                return path / name
        raise DataError(f"{path} holds no manifest.parquet or manifest.csv; run prepare first")
    if not path.is_file():
        raise DataError(f"manifest {path} does not exist; run prepare first")
    return path


def _read_table(file: Path) -> pd.DataFrame:
    if file.suffix == ".csv":
        columns = pd.read_csv(file, nrows=0).columns
        types = {**dict.fromkeys(_text_columns(columns), "object"), **NUMBER_TYPES}
        # Only an empty field is missing: "NA" and "null" are possible ids and labels.
        return pd.read_csv(file, dtype=types, keep_default_na=False, na_values=[""])
    return pd.read_parquet(file)


def _schema(columns: Iterable[str]) -> pa.Schema:
    # Said outright, or a column without any value would change its type.
    types = {"int64": pa.int64(), "float64": pa.float64()}
    return pa.schema(
        [(c, types[NUMBER_TYPES[c]] if c in NUMBER_TYPES else pa.string()) for c in columns]
    )


def _text_columns(columns: Iterable[str]) -> list[str]:
    known = {*HEAD_COLUMNS, *TAIL_COLUMNS} - set(NUMBER_TYPES)
    return [column for column in columns if column in known or column.startswith(MASK)]


def _path_columns(columns: Iterable[str]) -> list[str]:
    return [column for column in columns if column == "image" or column.startswith(MASK)]


def _check_columns(manifest: pd.DataFrame, file: Path) -> None:
    missing = [column for column in (*HEAD_COLUMNS, *TAIL_COLUMNS) if column not in manifest]
    if missing:
        raise DataError(f"{file} lacks the columns {', '.join(missing)}; run prepare again")
    for structure in structures_of(manifest):
        if structure_named(structure) != structure:
            raise DataError(
                f"{file} has a column {MASK}{structure}, which names no structure; write "
                "lower-case letters, digits and underscores, as in mask_left_kidney"
            )


def _objects(values: Iterable[str | None]) -> pd.Series[Any]:
    return pd.Series(list(values), dtype=object)


def _text(value: object) -> str | None:
    # pandas stores a missing text as None, NaN or pd.NA, by version and dtype.
    return value if isinstance(value, str) else None


def _check_manifest(manifest: pd.DataFrame, file: Path) -> None:
    if (repeated := manifest["id"].duplicated()).any():
        raise DataError(f"{file} lists the id {manifest['id'][repeated].iloc[0]!r} twice")
    if unknown := sorted(set(map(str, manifest["split"])) - set(SPLITS)):
        raise DataError(f"{file} names the split {unknown[0]!r}; known: {', '.join(SPLITS)}")
    sides = manifest.groupby("group")["split"].nunique()
    if (sides > 1).any():
        raise DataError(
            f"{file} has group {sides[sides > 1].index[0]!r} in two splits; run prepare again"
        )


def _relative(value: str | None, folder: Path) -> str | None:
    if value is None:
        return None
    try:
        return Path(os.path.relpath(value, folder)).as_posix()
    except ValueError:  # another drive on Windows
        return value


def _absolute(value: str | None, folder: Path) -> str | None:
    return None if value is None else os.path.abspath(folder / value)  # noqa: PTH100 (keeps links)
