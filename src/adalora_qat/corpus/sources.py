"""One reader per public data set: folder on disk → records; and which reader reads what.

Readers look at names and headers and decode no image, so they are fast and not hurt by a
broken file; what is inside is the quality gate's business. Images without a mask are kept
as records without masks (they can serve as unlabelled images); nothing is made up.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from adalora_qat.corpus import generic_sources
from adalora_qat.corpus.covid_sources import (
    read_covid19_radiography,
    read_covid_qu_ex,
    read_qata_cov19,
)
from adalora_qat.corpus.reading import (
    IMAGE_SUFFIXES,
    MaskIndex,
    Reading,
    Tally,
    check_any_pair,
    check_root,
    folders_named,
    image_files,
    leave_other_files,
    masks_of,
    missing,
    need_folder,
    subfolders,
)
from adalora_qat.corpus.records import Record, structure_named
from adalora_qat.corpus.siim_source import read_siim_acr
from adalora_qat.errors import DataError
from adalora_qat.imaging.image_file import load_mask

Reader = Callable[[Path], Reading]

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "cxrpng", "cxr", "all247images", "pngs")
MASK_FOLDERS = ("masks", "mask", "labels", "groundtruths", "groundtruth")
# The SCR archive: JSRT/scratch/fold1/masks/left lung.
ORGAN_DEPTH = 5
# JSRT's own raw images among them.
NAMED_SUFFIXES = (*IMAGE_SUFFIXES, ".img")
ORGAN_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "left_lung": ("leftlung", "leftlungs", "leftmask", "leftlungmask", "leftlungmasks"),
    "right_lung": ("rightlung", "rightlungs", "rightmask", "rightlungmask", "rightlungmasks"),
    "heart": ("heart", "hearts", "heartmask", "heartmasks"),
}


SOURCE_NAME = r"[A-Za-z][A-Za-z0-9_-]*"


class Source(NamedTuple):
    """Where a data set lies and which reader reads it."""

    reader: str
    path: Path


def parse_sources(given: Sequence[str]) -> dict[str, Source]:
    """Read ``NAME=READER:PATH`` arguments; ``NAME=PATH`` where NAME is a reader.

    A path may hold spaces, colons and equals signs. NAME becomes the source in the manifest.

    Raises
    ------
    DataError
        If an argument has another form, a name is given twice, or a reader is unknown.
    """
    sources: dict[str, Source] = {}
    for argument in given:
        name, separator, rest = argument.partition("=")
        if not (separator and name and rest):
            raise DataError(
                f"{argument!r} must have the form NAME=PATH, as in jsrt=data/jsrt, or "
                "NAME=READER:PATH, as in hospital_a=pairs:data/a"
            )
        if name in sources:
            raise DataError(
                f"{name} is given twice, {sources[name].path} and {rest}; give each data set a "
                f"name of its own, as in {name}_2=READER:PATH"
            )
        reader, separator, path = rest.partition(":")
        if separator and path and reader in READERS:
            sources[name] = Source(reader, Path(path))
        elif name in READERS:
            sources[name] = Source(name, Path(rest))
        else:
            raise _unknown_reader(reader if separator else name, argument)
    return sources


def as_source(name: str, given: Path | Source) -> Source:
    """Return what to read: a path alone is read by the reader of that name."""
    if isinstance(given, Source):
        return Source(given.reader, Path(given.path).absolute())
    return Source(name, Path(given).absolute())


def read_source(name: str, given: Path | Source) -> Reading:
    """Read a data set; its records carry the name that the user gave it.

    Parameters
    ----------
    name : a letter, then letters, digits, ``_`` and ``-``: begins the ids of the records.
    given : the reader and the folder or file; a path alone where the name is the reader's.

    Raises
    ------
    DataError
        If name or reader cannot be used, or the folder is not laid out as the set is published.
    """
    reader, root = as_source(name, given)
    if not re.fullmatch(SOURCE_NAME, name):
        raise DataError(
            f"{name!r} cannot name a data set: give a letter and then letters, digits, _ and -"
        )
    if reader not in READERS:
        raise _unknown_reader(reader, f"{name}={root}")
    try:
        reading = READERS[reader](root)
    except OSError as error:
        raise DataError(
            f"{name}: {error.filename or root} cannot be read ({error.strerror or error}); "
            "check the path and who may read it"
        ) from error
    except DataError as error:
        raise error if name == reader else DataError(f"{name}: {error}") from error
    if name == reader:
        return reading
    records = [
        replace(record, id=name + record.id.removeprefix(reader), source=name)
        for record in reading.records
    ]
    return replace(reading, source=name, records=records)


def _unknown_reader(reader: str, argument: str) -> DataError:
    near = difflib.get_close_matches(reader, READERS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return DataError(
        f"{argument!r}: no reader is called {reader!r}; {hint}known: {', '.join(sorted(READERS))}. "
        "A name of your own takes its reader along, NAME=READER:PATH, as in "
        "hospital_a=pairs:data/a"
    )


def read_jsrt(root: Path) -> Reading:
    """Read JSRT: one image per patient; lung and heart masks of the SCR database.

    Layout: ``images/JPC(LN|NN)###.*`` and ``masks/{left_lung,right_lung,heart}/``, or as
    published: ``All247images/*.IMG`` (raw) and SCR's ``fold*/masks/left lung/``. Left is
    the patient's left, as in SCR.
    """

    def describe(stem: str) -> tuple[str, str] | None:
        match = re.fullmatch(r"jpc(ln|nn)(\d{3})", stem)
        labels = {"ln": "nodule", "nn": "non-nodule"}
        return (stem.upper(), labels[match[1]]) if match else None

    masks = _organ_masks(root, "jsrt", 3)
    return _read_named(root, "jsrt", masks, describe, _jsrt_spacing_mm)


def read_shenzhen(root: Path) -> Reading:
    """Read Shenzhen: one image per patient, mask of both lungs where one was drawn.

    Layout: ``images`` (or ``CXR_png``) and ``masks`` (or ``mask``) with
    ``CHNCXR_####_#[_mask]``; the last digit is 1 for tuberculosis.
    """
    masks = {"lung": _lung_masks(root, "shenzhen")}
    return _read_named(root, "shenzhen", masks, _nlm_name("chncxr"))


def read_montgomery(root: Path) -> Reading:
    """Read Montgomery: one image per patient, lung masks.

    Layouts: as published, ``CXR_png/MCUCXR_####_#.png`` with ``ManualMask/leftMask`` and
    ``rightMask``; or merged (512 px copies), ``images`` and ``masks`` of both lungs.
    """
    check_root("montgomery", root)
    if folders_named(root, ORGAN_FOLDERS["left_lung"], ORGAN_DEPTH):
        masks = _patient_sides(_organ_masks(root, "montgomery", 2))
    else:
        masks = {"lung": _lung_masks(root, "montgomery")}
    return _read_named(root, "montgomery", masks, _nlm_name("mcucxr"), _montgomery_spacing_mm)


def read_phantom(root: Path) -> Reading:
    """Read a folder that ``write_phantoms`` wrote: every image is a patient of its own."""
    folder = need_folder("phantom", root, ("masks",), "masks")
    masks = {
        structure: MaskIndex([child])
        for child in subfolders(folder, 1)
        if (structure := structure_named(child.name))
    }
    return _read_named(root, "phantom", masks, lambda stem: (stem, "phantom"))


def _read_named(
    root: Path,
    source: str,
    masks: Mapping[str, MaskIndex],
    describe: Callable[[str], tuple[str, str] | None],
    spacing_mm: Callable[[Path], tuple[float, float] | None] = lambda _: None,
) -> Reading:
    """Read a set whose file names give patient and label.

    Parameters
    ----------
    masks : structure → its mask files.
    describe : lower-case stem of an image → (patient, label), None for a name that is not of
        this set.
    spacing_mm : image file → (row, column) size of a pixel in mm, None where unknown.
    """
    folder = need_folder(source, root, IMAGE_FOLDERS, "images")
    tally = Tally(source, root)
    for path in image_files(folder, NAMED_SUFFIXES):
        described = describe(path.stem.lower())
        if described is None:
            tally.leave(path, f"not named like an image of {source}")
            continue
        patient, label = described
        own = masks_of(path.stem.lower(), masks)
        record_id = f"{source}/{path.stem}"
        tally.use(Record(record_id, source, path, own, label, patient, spacing_mm(path)))
    leave_other_files(tally, folder, NAMED_SUFFIXES)
    check_any_pair(tally, masks.values())
    tally.leave_orphans(masks, (p for record in tally.records for p in record.masks.values()))
    return tally.reading()


def _organ_masks(root: Path, source: str, at_least: int) -> dict[str, MaskIndex]:
    check_root(source, root)
    present = {
        organ: folders
        for organ, names in ORGAN_FOLDERS.items()
        if (folders := folders_named(root, names, ORGAN_DEPTH))
    }
    if len(present) < at_least:
        wanted = ", ".join(list(ORGAN_FOLDERS)[:at_least])
        looked_for = f"mask folders {wanted} (found: {', '.join(present) or 'none'})"
        raise missing(source, root, looked_for, ORGAN_DEPTH)
    return {organ: MaskIndex(folders, _without_mask) for organ, folders in present.items()}


def _lung_masks(root: Path, source: str) -> MaskIndex:
    folder = need_folder(source, root, MASK_FOLDERS, "lung masks")
    # Kaggle's copy nests mask/mask.
    return MaskIndex(folders_named(folder, MASK_FOLDERS, 1), _without_mask)


def _without_mask(stem: str) -> str:
    return stem.lower().removesuffix("_mask")


def _patient_sides(masks: dict[str, MaskIndex]) -> dict[str, MaskIndex]:
    """Name two lung folders by the patient's side, whichever side the set's names mean.

    Montgomery's documentation does not say whose left its leftMask is. All its images are
    frontal in the usual orientation, so the patient's left lung lies on the image's right;
    the first image with both masks decides.
    """
    left, right = masks["left_lung"], masks["right_lung"]
    for path in left.files:
        other = right.get(_without_mask(path.stem))
        if other is None:
            continue
        try:
            columns = [np.flatnonzero(load_mask(mask).any(axis=0)) for mask in (path, other)]
        except DataError:
            continue  # the quality gate will say so; the next pair tells as well
        if all(column.size for column in columns):
            if columns[0].mean() < columns[1].mean():
                left, right = right, left
            break
    return {**masks, "left_lung": left, "right_lung": right}


def _jsrt_spacing_mm(path: Path) -> tuple[float, float] | None:
    """Return the spacing of a JSRT image, 0.175 mm at 2048 px, however it was resized."""
    if path.suffix.lower() == ".img":
        return 0.175, 0.175
    width, height = _size(path)
    return (0.175 * 2048 / height, 0.175 * 2048 / width) if width and width == height else None


def _montgomery_spacing_mm(path: Path) -> tuple[float, float] | None:
    """Return the spacing of a Montgomery image, 0.0875 mm at its full 4020 × 4892 px.

    A square copy has lost which of the two orientations it had, and with it the spacing.
    """
    return (0.0875, 0.0875) if sorted(_size(path)) == [4020, 4892] else None


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0, 0  # the quality gate will say why it cannot be read


def _nlm_name(prefix: str) -> Callable[[str], tuple[str, str] | None]:
    """Return the reader of the National Library of Medicine's names, ``PREFIX_####_#``."""

    def describe(stem: str) -> tuple[str, str] | None:
        match = re.fullmatch(rf"({prefix}_\d{{4}})_([01])", stem)
        labels = {"0": "normal", "1": "tuberculosis"}
        return (match[1].upper(), labels[match[2]]) if match else None

    return describe


READERS: Mapping[str, Reader] = {
    "covid19_radiography": read_covid19_radiography,
    "covid_qu_ex": read_covid_qu_ex,
    "jsrt": read_jsrt,
    "montgomery": read_montgomery,
    "phantom": read_phantom,
    "qata_cov19": read_qata_cov19,
    "shenzhen": read_shenzhen,
    "siim_acr": read_siim_acr,
    **generic_sources.READERS,
}
