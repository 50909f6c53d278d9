"""What reading a data set returns, and how its folders are found and its files paired.

Every file that a reader looked at ends up either used or set aside with a reason, and the
counts are checked, so nothing can be lost between the disk and the report.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif")
DICOM_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
# How far below the given folder a data set may lie: archives unpack into one or two folders.
SEARCH_DEPTH = 3


class SetAside(NamedTuple):
    """A file that was found but not used."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Reading:
    """The outcome of reading one data set.

    Attributes
    ----------
    source : name of the reader.
    root : the folder or file that was given.
    records : what can be used, in a fixed order.
    set_aside : what was found and cannot be used, with reasons.
    found : how many files (or table rows, for a table) the reader looked at.
    notes : what else the user should know, such as columns without a meaning.

    Raises
    ------
    DataError
        If the counts do not add up, two records share an id, or nothing at all was found.
    """

    source: str
    root: Path
    records: list[Record]
    set_aside: list[SetAside]
    found: int
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.found != len(self.records) + len(self.set_aside):
            raise DataError(
                f"{self.source}: {self.found} found, but {len(self.records)} used and "
                f"{len(self.set_aside)} set aside in {self.root}; this is a bug of the reader"
            )
        if not self.found:
            raise DataError(f"{self.source}: no images in {self.root}; {_describe(self.root)}")
        twice = [key for key, n in Counter(record.id for record in self.records).items() if n > 1]
        if twice:
            raise DataError(
                f"{self.source}: {len(twice)} ids occur more than once in {self.root}, e.g. "
                f"{twice[0]}; give every image its own name"
            )


@dataclass
class Tally:
    """Collects records and set-aside files while a reader walks through a data set."""

    source: str
    root: Path
    records: list[Record] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    found: int = 0
    notes: list[str] = field(default_factory=list)
    _ids: set[str] = field(default_factory=set)

    def use(self, record: Record) -> None:
        """Count one file as found and used; a second one with the same id is set aside.

        So is a file whose name no table can hold: names on disk may be any bytes.
        """
        for path in (record.image, *record.masks.values()):
            if shown(path) != str(path):
                self.leave(path, "its name is not UTF-8; rename it")
                return
        if record.id in self._ids:
            self.leave(record.image, f"a second image of the name {record.id}")
            return
        self._ids.add(record.id)
        self.found += 1
        self.records.append(record)

    def leave(self, path: Path, reason: str) -> None:
        """Count one file as found and not used."""
        self.found += 1
        self.set_aside.append(SetAside(path, reason))

    def leave_orphans(self, masks: Mapping[str, MaskIndex], used: Iterable[Path]) -> None:
        """Set aside the mask files that no image asked for."""
        taken = set(used)
        for structure, index in masks.items():
            for path in index.files:
                if path not in taken:
                    self.leave(path, f"{structure} mask without an image of that name")

    def reading(self) -> Reading:
        """Return what was read; the counts must add up."""
        notes = tuple(self.notes)
        return Reading(self.source, self.root, self.records, self.set_aside, self.found, notes)


class MaskIndex:
    """The mask files of one structure, found by the key of the image they belong to.

    Parameters
    ----------
    folders : where the files lie.
    key : stem of a mask file → key that the image's stem gives too.

    Attributes
    ----------
    files : every image file in the folders; of two with one key the first is served.
    """

    def __init__(self, folders: Iterable[Path], key: Callable[[str], str] = str.lower) -> None:
        self.files = [path for folder in folders for path in image_files(folder)]
        self._by_key: dict[str, Path] = {}
        for path in self.files:
            self._by_key.setdefault(key(path.stem), path)

    def __contains__(self, key: str) -> bool:
        return key in self._by_key

    def get(self, key: str) -> Path | None:
        """Return the mask of ``key``, or None."""
        return self._by_key.get(key)


def masks_of(key: str, masks: Mapping[str, MaskIndex]) -> dict[str, Path]:
    """Return structure → mask file for the image with this key, where there is one."""
    files = {structure: index.get(key) for structure, index in masks.items()}
    return {structure: path for structure, path in files.items() if path is not None}


def check_any_pair(tally: Tally, masks: Iterable[MaskIndex]) -> None:
    """Refuse a set in which there are images and masks but not one of them fits another.

    Raises
    ------
    DataError
        Naming an image and a mask, so that the difference can be seen.
    """
    example = next((index.files[0].name for index in masks if index.files), "none at all")
    if tally.records and not any(record.masks for record in tally.records):
        raise DataError(
            f"{tally.source}: none of the {len(tally.records)} images in {tally.root} has a mask "
            f"of its name: image {tally.records[0].image.name}, mask {example}; name masks like "
            "their images, or read images without masks as the source 'images'"
        )


def shown(path: Path) -> str:
    """Return a path as text that can be written and printed, bytes that are no UTF-8 escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def plain(name: str) -> str:
    """Return a name reduced to lower-case letters and digits: ``Left Lung`` → ``leftlung``."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def subfolders(folder: Path, depth: int) -> list[Path]:
    """Return folders below ``folder``, nearest first, then by name; hidden ones left out."""
    below: list[Path] = []
    level = [folder]
    for _ in range(depth):
        level = sorted(child for parent in level for child in _folders_in(parent))
        below += level
    return below


def children_named(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the folders directly in ``folder`` with one of these (plain) names."""
    return sorted(child for child in _folders_in(folder) if plain(child.name) in names)


def folders_named(root: Path, names: Sequence[str], depth: int = SEARCH_DEPTH) -> list[Path]:
    """Return every folder at or below ``root`` with one of these (plain) names, nearest first."""
    return [path for path in [root, *subfolders(root, depth)] if plain(path.name) in names]


def need_folder(
    source: str, root: Path, names: Sequence[str], what: str, depth: int = SEARCH_DEPTH
) -> Path:
    """Return the nearest folder with one of these names.

    Parameters
    ----------
    source : the reader, for the message.
    names : of the folder, in lower-case letters and digits (``plain``).
    what : the folder holds, for the message.
    depth : how many levels below ``root`` are looked at.

    Raises
    ------
    DataError
        Saying what was looked for and what was found instead.
    """
    check_root(source, root)
    named = folders_named(root, names, depth)
    if not named:
        raise missing(source, root, f"{what} (a folder named like {', '.join(names)})", depth)
    return named[0]


def check_root(source: str, root: Path) -> None:
    """Refuse a root that is not a folder."""
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{source}: {root} {state}; give the folder of the unpacked data set")


def missing(source: str, root: Path, looked_for: str, depth: int = SEARCH_DEPTH) -> DataError:
    """Return the error for a data set that is not laid out as published.

    Parameters
    ----------
    source : the reader.
    looked_for : in words; the message adds what there is instead.
    depth : how many levels below ``root`` were looked at.
    """
    return DataError(
        f"{source}: looked in {root} and up to {depth} levels below for {looked_for}; "
        f"{_describe(root)}"
    )


def image_files(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Return the image files directly in a folder, by name."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    )


def leave_other_files(tally: Tally, folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> None:
    """Set aside the files in an image folder that are not images."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and (path.suffix.lower() not in suffixes or path.name.startswith(".")):
            tally.leave(path, f"not an image file ({path.suffix or 'no suffix'})")


def _folders_in(folder: Path) -> list[Path]:
    # scandir knows folders without a stat of each of, say, 30,000 images.
    with os.scandir(folder) as entries:
        return [
            Path(entry.path)
            for entry in entries
            if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))
        ]


def _describe(root: Path) -> str:
    if not root.is_dir():
        return f"found the file {root.name}"
    folders = [f"{path.relative_to(root)}/" for path in subfolders(root, 2)]
    files = Counter(path.suffix or path.name for path in root.iterdir() if path.is_file())
    listed = folders[:12] + [f"… {len(folders) - 12} more folders"] * (len(folders) > 12)
    listed += [f"{n} × {suffix} files" for suffix, n in files.most_common(4)]
    return "found " + (", ".join(listed) or "an empty folder")
