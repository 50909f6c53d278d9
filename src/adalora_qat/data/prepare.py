"""From data sets on disk to one manifest: read, check, group, split, write.

Everything is written to one folder: ``manifest.parquet`` and ``.csv``, ``quarantine.csv``,
``groups.csv``, ``report.json``. The same files give the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from adalora_qat.data.duplicates import Link, group, patient_links, shared_links
from adalora_qat.data.fingerprint import (
    Fingerprint,
    FingerprintStore,
    Progress,
    fingerprint_all,
)
from adalora_qat.data.reading import Reading
from adalora_qat.data.records import MASK_KINDS, Record
from adalora_qat.data.sources import read_source
from adalora_qat.data.splits import MANIFEST_COLUMNS, assign_splits, write_manifest
from adalora_qat.errors import DataError
from adalora_qat.files import atomic_write, write_json

QUARANTINE_COLUMNS = ("id", "source", "stage", "reason", "detail", "file")
GROUP_COLUMNS = ("group", "id", "linked_to", "reason", "similarity", "split")


@dataclass(frozen=True)
class PrepareReport:
    """What a prepare did; ``report.json`` holds the same.

    Attributes
    ----------
    folder : where everything was written.
    found, used, quarantined : per source; found = used + quarantined.
    splits : split → records.
    groups : how many groups have two or more records.
    """

    folder: Path
    found: Mapping[str, int]
    used: Mapping[str, int]
    quarantined: Mapping[str, int]
    splits: Mapping[str, int]
    groups: int


def prepare(
    sources: Mapping[str, Path],
    out: Path,
    seed: int = 0,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    external: Collection[str] = (),
    jobs: int | None = None,
    progress: Progress | None = None,
) -> PrepareReport:
    """Read data sets, set aside what is unfit, group duplicates and patients, and split.

    Raises
    ------
    DataError
        If a data set is not laid out as published, or nothing usable is left.
    """
    if not sources:
        raise DataError("prepare needs at least one data set, as NAME=PATH")
    readings = {name: read_source(name, Path(root)) for name, root in sources.items()}
    records = sorted((r for reading in readings.values() for r in reading.records), key=_id)
    with FingerprintStore(out / ".fingerprints" / "store.sqlite") as store:
        fingerprint_all(records, store, jobs, progress)
        facts = {record.id: store[record.id] for record in records}
    fit = [record for record in records if not facts[record.id].findings]
    if not fit:
        raise DataError("no image passed the quality gate; see the reasons in quarantine.csv")
    hashes = {record.id: facts[record.id].pixel_hash for record in fit}
    links = shared_links(fit, hashes, "same pixels") + patient_links(fit)
    groups = group((record.id for record in fit), links)
    sides = assign_splits(fit, [groups[r.id] for r in fit], seed, fractions, external)
    splits = {r.id: side for r, side in zip(fit, sides, strict=True)}
    manifest = _manifest([r for r in fit if splits[r.id]], facts, groups, splits)
    quarantine = _quarantine(readings, records, facts, splits)
    write_manifest(manifest, out)
    _write_table(quarantine, QUARANTINE_COLUMNS, out / "quarantine.csv")
    _write_table(_group_rows(groups, links, splits), GROUP_COLUMNS, out / "groups.csv")
    report = _report(out, readings, manifest, quarantine, groups)
    write_json(out / "report.json", _plain(report))
    return report


def _id(record: Record) -> str:
    return record.id


def _manifest(
    records: Sequence[Record],
    facts: Mapping[str, Fingerprint],
    groups: Mapping[str, str],
    splits: Mapping[str, str | None],
) -> pd.DataFrame:
    rows = []
    for record in records:
        found = facts[record.id]
        row, column = found.spacing_mm or (None, None)
        masks = {f"mask_{kind}": _text(record.masks.get(kind)) for kind in MASK_KINDS}
        rows.append(
            {
                "id": record.id,
                "source": record.source,
                "label": record.label,
                "patient": record.patient,
                "group": groups[record.id],
                "split": splits[record.id],
                "image": _text(record.image),
                **masks,
                "width": found.width,
                "height": found.height,
                "spacing_row_mm": row,
                "spacing_col_mm": column,
                "pixel_hash": found.pixel_hash,
            }
        )
    return pd.DataFrame(rows, columns=list(MANIFEST_COLUMNS))


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _quarantine(
    readings: Mapping[str, Reading],
    records: Sequence[Record],
    facts: Mapping[str, Fingerprint],
    splits: Mapping[str, str | None],
) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = [
        ("", name, "reading", item.reason, "", item.path)
        for name, reading in readings.items()
        for item in reading.set_aside
    ]
    for record in records:
        rows += [
            (record.id, record.source, "quality", reason, detail, record.image)
            for reason, detail in facts[record.id].findings
        ]
        if record.id in splits and splits[record.id] is None:
            detail = "in one group with an image of an external test set"
            rows.append((record.id, record.source, "split", "external twin", detail, record.image))
    return rows


def _group_rows(
    groups: Mapping[str, str], links: Sequence[Link], splits: Mapping[str, str | None]
) -> list[tuple[Any, ...]]:
    return [
        (
            groups[link.first],
            link.second,
            link.first,
            link.reason,
            link.similarity,
            splits[link.second],
        )
        for link in sorted(links)
    ]


def _write_table(rows: Sequence[tuple[Any, ...]], columns: Sequence[str], path: Path) -> None:
    with atomic_write(path) as temporary:
        pd.DataFrame(rows, columns=list(columns)).to_csv(
            temporary, index=False, lineterminator="\n"
        )


def _report(
    out: Path,
    readings: Mapping[str, Reading],
    manifest: pd.DataFrame,
    quarantine: Sequence[tuple[Any, ...]],
    groups: Mapping[str, str],
) -> PrepareReport:
    aside = Counter((row[1], row[0] or str(row[5])) for row in quarantine)
    used = Counter(manifest["source"])
    sizes = Counter(groups.values())
    return PrepareReport(
        folder=out,
        found={name: reading.found for name, reading in readings.items()},
        used={name: used[name] for name in readings},
        quarantined={name: sum(source == name for source, _ in aside) for name in readings},
        splits=dict(sorted(Counter(manifest["split"]).items())),
        groups=sum(size > 1 for size in sizes.values()),
    )


def _plain(report: PrepareReport) -> dict[str, Any]:
    return {
        "found": dict(report.found),
        "used": dict(report.used),
        "quarantined": dict(report.quarantined),
        "splits": dict(report.splits),
        "groups": report.groups,
    }
