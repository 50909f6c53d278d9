"""Groups of records that belong together: duplicates and one patient's images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from adalora_qat.data.records import Record


class Link(NamedTuple):
    """Two records that belong together, and why."""

    first: str
    second: str
    reason: str
    similarity: float | None = None


def shared_links(
    records: Sequence[Record], keys: Mapping[str, Hashable], reason: str
) -> list[Link]:
    """Link each record to the first (by id) with the same key; records without one stay out."""
    holders: dict[Hashable, list[str]] = defaultdict(list)
    for record in records:
        if record.id in keys:
            holders[keys[record.id]].append(record.id)
    return [
        Link(ids[0], other, reason)
        for ids in (sorted(found) for found in holders.values())
        for other in ids[1:]
    ]


def patient_links(records: Sequence[Record]) -> list[Link]:
    """Link one patient's images; a patient id is only unique within its source."""
    patients = {r.id: (r.source, r.patient) for r in records if r.patient is not None}
    return shared_links(records, patients, "patient")


def group(ids: Iterable[str], links: Iterable[Link]) -> dict[str, str]:
    """Return id → group, the smallest id that links reach from it (union-find)."""
    parent = {key: key for key in ids}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for link in links:
        first, second = sorted((root(link.first), root(link.second)))
        parent[second] = first
    return {key: root(key) for key in parent}
