"""Readers of the COVID-19 chest radiograph sets: classes in folders, hardly any patient ids.

These sets were merged from one another and hold each other's images, so their own train
and test folders are not kept as splits: duplicates decide which side an image may stand on.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path

from adalora_qat.corpus.reading import (
    MaskIndex,
    Reading,
    Tally,
    check_any_pair,
    check_root,
    children_named,
    image_files,
    leave_other_files,
    masks_of,
    missing,
    plain,
    subfolders,
)
from adalora_qat.corpus.records import Record

# Folder names reduced to letters and digits → what they stand for.
RADIOGRAPHY_CLASSES = {
    "covid": "COVID",
    "covid19": "COVID",
    "lungopacity": "Lung_Opacity",
    "normal": "Normal",
    "viralpneumonia": "Viral Pneumonia",
}
QU_EX_CLASSES = {"covid19": "COVID-19", "noncovid": "Non-COVID", "normal": "Normal"}
QU_EX_PARTS = {"lungsegmentationdata": "lung", "infectionsegmentationdata": "infection"}
QATA_PARTS = {"qatacov19v1": "v1", "qatacov19v2": "v2"}
SPLIT_FOLDERS = {name + ending: name for name in ("train", "val", "test") for ending in ("", "set")}
IMAGES = ("images", "image")
MASKS = ("masks", "mask")
LUNG_MASKS = ("lungmasks", "lungmask")
INFECTION_MASKS = ("infectionmasks", "infectionmask")
TRUTHS = ("groundtruths", "groundtruth", "masks", "labels")
# Kaggle nests "Lung Segmentation Data" in itself: part, part, split, class.
CLASS_DEPTH = 5


def read_covid19_radiography(root: Path) -> Reading:
    """Read the COVID-19 Radiography Database: four classes, model-made lung masks.

    Layout: ``{COVID,Lung_Opacity,Normal,Viral Pneumonia}/{images,masks}/*.png``; images are
    299 px and masks 256 px, which is evened out when a mask is loaded.
    """
    tally = Tally("covid19_radiography", root)
    claimed: list[MaskIndex] = []
    for folder in _class_folders(tally, RADIOGRAPHY_CLASSES):
        masks = {"lung": MaskIndex(children_named(folder, MASKS))}
        _read_class(tally, folder, masks, "", RADIOGRAPHY_CLASSES[plain(folder.name)])
        claimed.append(masks["lung"])
    check_any_pair(tally, claimed)
    return tally.reading()


def read_covid_qu_ex(root: Path) -> Reading:
    """Read COVID-QU-Ex: lung masks for all, infection masks for COVID-19 in the infection part.

    Layout: ``{Lung,Infection} Segmentation Data/{Train,Val,Test}/{COVID-19,Non-COVID,Normal}/
    {images,lung masks,infection masks}/*.png``. The published infection masks outside
    COVID-19 are all black: nobody outlined anything there, so no such mask is claimed. The
    infection part repeats images of the lung part; the duplicate search joins them.
    """
    tally = Tally("covid_qu_ex", root)
    claimed: list[MaskIndex] = []
    for folder in _class_folders(tally, QU_EX_CLASSES):
        label = QU_EX_CLASSES[plain(folder.name)]
        masks = {"lung": MaskIndex(children_named(folder, LUNG_MASKS))}
        if label == "COVID-19":
            masks["infection"] = MaskIndex(children_named(folder, INFECTION_MASKS))
        part = _place(folder, {**QU_EX_PARTS, **SPLIT_FOLDERS}) + f"{label}/"
        _read_class(tally, folder, masks, part, label)
        claimed.append(masks["lung"])
    check_any_pair(tally, claimed)
    return tally.reading()


def read_qata_cov19(root: Path) -> Reading:
    """Read QaTa-COV19: infection masks, not lungs.

    Layouts: v1 ``{Images,Ground-truths}``, v2 ``{Train Set,Test Set}/{Images,Ground-truths}``;
    the mask of ``x.png`` is ``mask_x.png``. Names from BIMCV (``sub-S…_ses-…``) hold the
    patient's pseudonym; the others hold none.
    """
    tally = Tally("qata_cov19", root)
    check_root(tally.source, root)
    claimed: list[MaskIndex] = []
    for folder in [root, *subfolders(root, CLASS_DEPTH)]:
        if not children_named(folder, IMAGES) or not children_named(folder, TRUTHS):
            continue
        truths = children_named(folder, TRUTHS)
        masks = {"infection": MaskIndex(truths, lambda stem: stem.lower().removeprefix("mask_"))}
        _read_class(tally, folder, masks, _place(folder, QATA_PARTS | SPLIT_FOLDERS), "COVID-19")
        claimed.append(masks["infection"])
    if not claimed:
        wanted = "folders with both Images/ and Ground-truths/"
        raise missing(tally.source, root, wanted, CLASS_DEPTH)
    check_any_pair(tally, claimed)
    return tally.reading()


def _class_folders(tally: Tally, classes: Mapping[str, str]) -> list[Path]:
    """Return the folders named like a class that hold images, directly or in ``images/``."""
    check_root(tally.source, tally.root)
    candidates = [tally.root, *subfolders(tally.root, CLASS_DEPTH)]
    named = [folder for folder in candidates if plain(folder.name) in classes]
    filled = [folder for folder in named if any(image_files(place) for place in _images_of(folder))]
    if not filled:
        wanted = ", ".join(dict.fromkeys(classes.values()))
        raise missing(
            tally.source,
            tally.root,
            f"class folders ({wanted}) with images/ and their masks",
            CLASS_DEPTH,
        )
    return filled


def _images_of(folder: Path) -> list[Path]:
    return children_named(folder, IMAGES) or [folder]


def _read_class(
    tally: Tally, folder: Path, masks: Mapping[str, MaskIndex], part: str, label: str
) -> None:
    """Record every image of one class folder, and set aside its other files.

    Parameters
    ----------
    tally : where records go.
    folder : holds the images, directly or in ``images/``.
    masks : structure → index of mask files.
    part : goes before the image's name in the id, with its slash.
    label : the class.
    """
    used: list[Path] = []
    for place in _images_of(folder):
        for path in image_files(place):
            own = masks_of(path.stem.lower(), masks)
            used += own.values()
            name = f"{tally.source}/{part}{path.stem}"
            patient = _bimcv_patient(path.stem)
            tally.use(Record(name, tally.source, path, own, label, patient))
        leave_other_files(tally, place)
    tally.leave_orphans(masks, used)


def _place(folder: Path, names: Mapping[str, str]) -> str:
    """Return where a folder stands in the published tree, whichever level the user gave.

    ``…/Lung Segmentation Data/Lung Segmentation Data/Train/COVID-19`` → ``lung/train/``.
    """
    known = [names[plain(part)] for part in folder.absolute().parts if plain(part) in names]
    # Kaggle's archives repeat a folder's name inside it.
    unrepeated = [part for part, _ in itertools.groupby(known)]
    return "".join(f"{part}/" for part in unrepeated[-2:])


def _bimcv_patient(stem: str) -> str | None:
    match = re.match(r"sub-(S\d+)", stem, re.IGNORECASE)
    return match[1].upper() if match else None
