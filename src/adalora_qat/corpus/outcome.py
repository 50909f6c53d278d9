"""What ``prepare`` decided, as the tables and the data card show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

# Codes in quarantine.csv beside those of the quality gate.
NOT_USED = "not_used"
EXTERNAL_TWIN = "external_twin"


@dataclass(frozen=True)
class PrepareReport:
    """What a prepare did; ``report.json`` holds the same but for the folder.

    Attributes
    ----------
    folder : where everything was written.
    seed, fractions, external : as given.
    found, used, quarantined : per source; found = used + quarantined.
    reasons : per source, why files were set aside → how many objections.
    masks : per source, mask kind → how many of the used records have it.
    splits : split → records.
    groups : how many groups have two or more records.
    links : why records were grouped → how many pairs.
    notes : per source, what else the user should know, such as columns without a meaning.
    """

    folder: Path
    seed: int
    fractions: tuple[float, ...]
    external: tuple[str, ...]
    found: Mapping[str, int]
    used: Mapping[str, int]
    quarantined: Mapping[str, int]
    reasons: Mapping[str, Mapping[str, int]]
    masks: Mapping[str, Mapping[str, int]]
    splits: Mapping[str, int]
    groups: int
    links: Mapping[str, int]
    notes: Mapping[str, tuple[str, ...]]


class Quarantined(NamedTuple):
    """A row of ``quarantine.csv``; a record with several objections has several.

    ``stage`` is ``reading`` (the reader had no use for the file), ``quality`` (the gate
    objects) or ``split`` (of one group with an external test set).
    """

    id: str
    source: str
    stage: str
    code: str
    reason: str
    file: str


class Linked(NamedTuple):
    """A row of ``groups.csv``: two records of one group and why they belong together."""

    group: str
    size: int
    split: str
    reason: str
    similarity: float | None
    first: str
    second: str
