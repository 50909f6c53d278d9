"""From data sets on disk to one manifest: read, check, group, split, write.

One folder holds the outcome: ``manifest.parquet`` and ``.csv``, ``quarantine.csv``,
``groups.csv``, ``report.json`` and ``card.html``. The same files give the same bytes, and a
run that was killed goes on where it stopped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from adalora_qat.corpus.card import CardContents, write_card
from adalora_qat.corpus.duplicates import (
    SAME_PIXELS,
    Link,
    group,
    near_duplicate_links,
    patient_links,
    shared_links,
)
from adalora_qat.corpus.fingerprint import Measuring, available_cores, fingerprint_all
from adalora_qat.corpus.fingerprint_store import Facts, FingerprintStore, stamp
from adalora_qat.corpus.generic_sources import WALKING
from adalora_qat.corpus.outcome import (
    EXTERNAL_TWIN,
    NOT_USED,
    Linked,
    PrepareReport,
    Quarantined,
)
from adalora_qat.corpus.quality import QualityLimits
from adalora_qat.corpus.reading import Reading, shown
from adalora_qat.corpus.records import Record
from adalora_qat.corpus.sources import Source, as_source, read_source
from adalora_qat.corpus.splits import (
    MASK,
    assign_splits,
    check_fractions,
    manifest_columns,
    structures_of,
    write_manifest,
)
from adalora_qat.errors import DataError
from adalora_qat.files import atomic_write, write_json
from adalora_qat.imaging.dicom import DEFAULT_SALT
from adalora_qat.progress import Progress


def prepare(
    sources: Mapping[str, Path | Source],
    out: Path,
    seed: int = 0,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    external: Collection[str] = (),
    jobs: int | None = None,
    progress: Progress | None = None,
    limits: QualityLimits | None = None,
    salt: str = DEFAULT_SALT,
) -> PrepareReport:
    """Read data sets, set aside what is unfit, group duplicates and patients, and split.

    Parameters
    ----------
    sources : name → the data set: a ``Source``, which says the reader, or only the folder or
        file, where the name is that of a reader. The names become the sources in the manifest.
    out : the folder to write; files read before are not read again.
    seed : of the split, at least 0.
    fractions : shares of train, val and test.
    external : sources that are only ever an external test set.
    jobs : processes; None takes every core.
    progress : called with (done, total, what).
    limits : of the quality gate.
    salt : of the hash of DICOM patient ids.

    Raises
    ------
    DataError
        If an argument cannot be used, a data set is not laid out as published, or nothing
        usable is left.
    UserError
        If ``out`` cannot be written.
    """
    out, jobs = Path(out).absolute(), available_cores() if jobs is None else jobs
    chosen = {name: as_source(name, given) for name, given in sources.items()}
    _check_arguments(chosen, out, fractions, external, jobs)
    readings = {name: read_source(name, source) for name, source in chosen.items()}
    records = sorted((r for reading in readings.values() for r in reading.records), key=_id)
    measuring = Measuring(out, limits or QualityLimits(), salt)
    with FingerprintStore(out / ".fingerprints" / "store.sqlite") as store:
        facts = _measure(records, measuring, store, jobs, progress)
        unfit = _set_aside(readings, facts)
        fit = {key: fact for key, fact in facts.items() if not fact.objections}
        if not fit:
            _write_table(unfit, Quarantined, out / "quarantine.csv")
            raise DataError(f"no image is usable; the reasons are in {out / 'quarantine.csv'}")
        links = find_links(fit, store, jobs, progress)
        groups = group(fit, links)
        sides = choose_splits(fit, groups, seed, fractions, external)
        quarantine = sorted([*unfit, *_twins(fit, sides)])
        manifest = build_manifest(fit, groups, sides)
        linked = _linked(groups, links, sides)
        report = _report(out, seed, fractions, external, readings, manifest, quarantine, linked)
        write_manifest(manifest, out)
        _write_table(quarantine, Quarantined, out / "quarantine.csv")
        _write_table(linked, Linked, out / "groups.csv")
        write_json(out / "report.json", {k: v for k, v in asdict(report).items() if k != "folder"})
        write_card(out / "card.html", CardContents(report, manifest, quarantine, linked), store)
        if progress:
            progress(1, 1, "drawing the data card")
    return report


def _check_arguments(
    sources: Mapping[str, Source],
    out: Path,
    fractions: Sequence[float],
    external: Collection[str],
    jobs: int,
) -> None:
    """Refuse at once what would only fail after the images are read."""
    if not sources:
        raise DataError("prepare needs at least one data set, as NAME=PATH")
    if jobs < 1:
        raise DataError(f"jobs={jobs}: give at least 1, or None for every core")
    check_fractions(fractions)
    if unknown := sorted(set(external) - set(sources)):
        raise DataError(
            f"external names {', '.join(unknown)}, which is no source; sources: "
            f"{', '.join(sorted(sources))}"
        )
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; give a folder to write to")
    for name, source in sources.items():
        if source.reader in WALKING and out.is_relative_to(source.path):
            raise DataError(
                f"{out} lies in the data of {name}, {source.path}, and would be read as such the "
                "next time; write to a folder outside"
            )


def _id(record: Record) -> str:
    return record.id


def _measure(
    records: Sequence[Record],
    measuring: Measuring,
    store: FingerprintStore,
    jobs: int,
    progress: Progress | None,
) -> dict[str, Facts]:
    """Bring the store up to date with the files; return what it holds of these records."""
    stamps = {record.id: stamp(record, measuring) for record in records}
    kept = store.current(stamps, measuring.folder)
    due = [record for record in records if record.id not in kept]
    done = len(records) - len(due)
    for fingerprints in fingerprint_all(due, measuring, jobs):
        store.add(fingerprints, stamps)
        done += len(fingerprints)
        if progress:
            progress(done, len(records), "reading images")
    return store.facts(records)


def find_links(
    fit: Mapping[str, Facts], store: FingerprintStore, jobs: int, progress: Progress | None
) -> list[Link]:
    """Find everything that joins records: patients, same pixels, near duplicates.

    Parameters
    ----------
    fit : id → facts of the usable records, in the order of their ids.
    """
    same = shared_links({key: fact.pixel_hash for key, fact in fit.items()}, SAME_PIXELS)
    copies = {link.second for link in same}
    distinct = [key for key in fit if key not in copies]

    def thumbnail(record_id: str) -> Any:
        small = store.thumbnail(record_id)
        if small is None:
            raise DataError(f"{record_id} lost its thumbnail; delete {store.path} and run again")
        return small

    near = near_duplicate_links(distinct, store.descriptors(distinct), thumbnail, jobs, progress)
    return sorted([*patient_links(fact.record for fact in fit.values()), *same, *near])


def choose_splits(
    fit: Mapping[str, Facts],
    groups: Mapping[str, str],
    seed: int,
    fractions: Sequence[float],
    external: Collection[str],
) -> dict[str, str | None]:
    """Return id → split, None for what an external test set forbids.

    Parameters
    ----------
    fit : id → facts of the usable records.
    groups : id → group.
    seed, fractions, external : as for ``assign_splits``.
    """
    records = [fact.record for fact in fit.values()]
    sides = assign_splits(records, [groups[key] for key in fit], seed, fractions, external)
    return dict(zip(fit, sides, strict=True))


def _set_aside(readings: Mapping[str, Reading], facts: Mapping[str, Facts]) -> list[Quarantined]:
    """List what the readers could not use and what the quality gate objects to."""
    rows = [
        Quarantined("", name, "reading", NOT_USED, item.reason, shown(item.path))
        for name, reading in readings.items()
        for item in reading.set_aside
    ]
    for key, fact in facts.items():
        source, file = fact.record.source, str(fact.record.image)
        rows += [
            Quarantined(key, source, "quality", objection.code, objection.reason, file)
            for objection in fact.objections
        ]
    return rows


def _twins(fit: Mapping[str, Facts], sides: Mapping[str, str | None]) -> list[Quarantined]:
    """List the records that an external test set forbids: they are of one group with it."""
    reason = "of one group with an image of an external test set (see groups.csv)"
    return [
        Quarantined(key, fact.record.source, "split", EXTERNAL_TWIN, reason, str(fact.record.image))
        for key, fact in fit.items()
        if sides[key] is None
    ]


def build_manifest(
    fit: Mapping[str, Facts], groups: Mapping[str, str], sides: Mapping[str, str | None]
) -> pd.DataFrame:
    """Return the manifest of the records that have a split, paths absolute."""
    rows = []
    for key, fact in fit.items():
        record = fact.record
        if sides[key] is None:
            continue
        row, column = record.spacing_mm or (math.nan, math.nan)
        masks = {MASK + structure: str(path) for structure, path in record.masks.items()}
        rows.append(
            {
                "id": key,
                "source": record.source,
                "label": record.label,
                "patient": record.patient,
                "group": groups[key],
                "split": sides[key],
                "image": str(record.image),
                **masks,
                "width": fact.width,
                "height": fact.height,
                "spacing_row_mm": row,
                "spacing_col_mm": column,
                "pixel_hash": fact.pixel_hash,
            }
        )
    structures = {structure for fact in fit.values() for structure in fact.record.masks}
    return pd.DataFrame(rows, columns=manifest_columns(structures))


def _linked(
    groups: Mapping[str, str], links: Iterable[Link], sides: Mapping[str, str | None]
) -> list[Linked]:
    sizes = Counter(groups.values())
    split_of = {groups[key]: side for key, side in sides.items() if side}
    rows = (
        Linked(
            groups[link.first],
            sizes[groups[link.first]],
            split_of[groups[link.first]],
            link.reason,
            link.similarity,
            link.first,
            link.second,
        )
        for link in links
    )
    return sorted(rows, key=lambda row: (row.group, row.first, row.second, row.reason))


def _write_table(rows: Sequence[Any], kind: type[Any], path: Path) -> None:
    with atomic_write(path) as temporary:
        table = pd.DataFrame(rows, columns=list(kind._fields))
        table.to_csv(temporary, index=False, lineterminator="\n")


def _report(
    out: Path,
    seed: int,
    fractions: Sequence[float],
    external: Collection[str],
    readings: Mapping[str, Reading],
    manifest: pd.DataFrame,
    quarantine: Sequence[Quarantined],
    linked: Sequence[Linked],
) -> PrepareReport:
    found = {name: reading.found for name, reading in readings.items()}
    used = {name: int((manifest["source"] == name).sum()) for name in readings}
    why = {
        name: Counter(
            row.reason if row.code == NOT_USED else row.code
            for row in quarantine
            if row.source == name
        )
        for name in readings
    }
    return PrepareReport(
        folder=out,
        seed=seed,
        fractions=tuple(fractions),
        external=tuple(sorted(external)),
        found=found,
        used=used,
        quarantined={name: found[name] - used[name] for name in readings},
        reasons={name: dict(counts.most_common()) for name, counts in why.items()},
        masks={name: _mask_counts(manifest[manifest["source"] == name]) for name in readings},
        splits=dict(sorted(Counter(manifest["split"]).items())),
        groups=len({row.group for row in linked}),
        links=dict(sorted(Counter(row.reason for row in linked).items())),
        notes={name: reading.notes for name, reading in readings.items() if reading.notes},
    )


def _mask_counts(manifest: pd.DataFrame) -> dict[str, int]:
    counts = {name: int(manifest[MASK + name].notna().sum()) for name in structures_of(manifest)}
    return {name: count for name, count in counts.items() if count}
