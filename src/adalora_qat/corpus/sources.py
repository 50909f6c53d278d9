"""One reader per public data set: folder on disk → records.

Readers look at names and headers and decode no image, so they are fast and not hurt by a
broken file; what is inside is the quality gate's business. Images without a mask are kept
as records without masks (they can serve as unlabelled images); nothing is made up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

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
)
from adalora_qat.corpus.records import Record
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


def read_source(name: str, root: Path) -> Reading:
    """Read a data set by the name of its reader.

    Raises
    ------
    DataError
        If the name is unknown or the folder is not laid out as that set is published.
    """
    if name not in SOURCES:
        raise DataError(f"unknown data set {name!r}; known: {', '.join(sorted(SOURCES))}")
    return SOURCES[name](Path(root))


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
    """Read a folder that ``phantom/phantom.py`` wrote: every image is a patient of its own."""
    masks = _organ_masks(root, "phantom", 3)
    return _read_named(root, "phantom", masks, lambda stem: (stem, "phantom"))


def _read_named(
    root: Path,
    source: str,
    masks: Mapping[str, MaskIndex],
    describe: Callable[[str], tuple[str, str] | None],
    spacing_mm: Callable[[Path], tuple[float, float] | None] = lambda _: None,
) -> Reading:
    """Read a set whose file names give patient and label.

    ``describe`` maps the lower-case stem of an image to (patient, label), or to None for a
    name that is not of this set.
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
    found = {kind: folders_named(root, names, ORGAN_DEPTH) for kind, names in ORGAN_FOLDERS.items()}
    found = {kind: folders for kind, folders in found.items() if folders}
    if len(found) < at_least:
        wanted = ", ".join(list(ORGAN_FOLDERS)[:at_least])
        looked_for = f"mask folders {wanted} (found: {', '.join(found) or 'none'})"
        raise missing(source, root, looked_for, ORGAN_DEPTH)
    return {kind: MaskIndex(folders, _without_mask) for kind, folders in found.items()}


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


SOURCES: Mapping[str, Reader] = {
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
