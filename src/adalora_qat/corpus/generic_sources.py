"""Readers for your own data: folders of images and masks, a table, COCO, images alone."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from adalora_qat.corpus.mask_codes import CocoShapes, EncodedRecord
from adalora_qat.corpus.reading import (
    DICOM_SUFFIXES,
    IMAGE_SUFFIXES,
    Reading,
    Tally,
    check_root,
    missing,
    plain,
)
from adalora_qat.corpus.records import CHEST, Record, sort_structures, structure_named
from adalora_qat.errors import DataError

SUFFIXES = IMAGE_SUFFIXES + DICOM_SUFFIXES
IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations")
# What a mask is of where nothing says so.
UNNAMED = "lung"
SPACINGS = ("spacing_row_mm", "spacing_col_mm")
TABLE_COLUMNS = ("image", "id", "label", "patient", *SPACINGS)


def read_pairs(root: Path) -> Reading:
    """Read a folder of image and mask pairs.

    Layouts: ``images/…/x.png`` with ``masks/…/x.png`` or ``masks/<structure>/…/x.png``, or both
    in one folder as ``x.png`` and ``x_mask.png`` or ``x_<structure>_mask.png``; the ending
    ``_mask`` may be left out for structures of the chest. A mask of no stated structure is a
    lung mask. Sub-folders, when there are some, must be the same on both sides.
    """
    check_root("pairs", root)
    images = [child for child in root.iterdir() if plain(child.name) in IMAGE_FOLDERS]
    masks = [child for child in root.iterdir() if plain(child.name) in MASK_FOLDERS]
    tally = Tally("pairs", root)
    if len(images) == len(masks) == 1:
        _pair_folders(tally, images[0], masks[0])
    elif not images and not masks:
        _pair_names(tally, root)
    else:
        raise missing("pairs", root, "one folder images/ and one folder masks/")
    if not any(record.masks for record in tally.records):
        raise missing("pairs", root, "images with a mask of the same name")
    return tally.reading()


def read_images(root: Path) -> Reading:
    """Read a folder of images without masks, DICOM among them, sub-folders too."""
    check_root("images", root)
    tally = Tally("images", root)
    for path in _files(root):
        if path.suffix.lower() in SUFFIXES or (not path.suffix and _is_dicom(path)):
            name = path.relative_to(root).as_posix()
            tally.use(Record(f"images/{root.name}/{name}", "images", path))
        else:
            tally.leave(path, f"not an image file ({path.suffix or 'no suffix'})")
    return tally.reading()


def read_manifest_table(path: Path) -> Reading:
    """Read a CSV or Parquet table: ``image`` and, where known, ``mask_<structure>``, ``id``, ….

    Columns: image (needed), mask (a lung mask) or mask_<structure>, id, label, patient,
    spacing_row_mm, spacing_col_mm. Paths are relative to the table's folder or absolute.
    """
    table = _read_table(path)
    if "image" not in table.columns:
        raise DataError(
            f"manifest: {path} has no column 'image' (it has {', '.join(table.columns)}); "
            f"known columns: {', '.join(TABLE_COLUMNS)}, mask_<structure>"
        )
    tally = Tally("manifest", path)
    structures = _mask_columns(table.columns, path)
    for column in table.columns:
        if column not in TABLE_COLUMNS and column not in structures:
            tally.notes.append(f"column {column!r} of {path.name} has no meaning here: not used")
    for number, row in enumerate(table.to_dict("records"), start=2):
        _use_row(tally, row, structures, path.parent, number)
    return tally.reading()


def read_coco(root: Path) -> Reading:
    """Read COCO annotations, polygons or run lengths; a category is a structure.

    ``root`` is the JSON file, or a folder with one (or with ``annotations/*.json``). Images
    lie where ``file_name`` says, from the JSON's folder, its parent, or ``images/`` in these.
    """
    path = _coco_file(root)
    content = _read_json(path)
    structures = {
        category.get("id"): structure_named(str(category.get("name")))
        for category in content["categories"]
    }
    shapes: defaultdict[Any, defaultdict[str, list[object]]] = defaultdict(
        lambda: defaultdict(list)
    )
    tally = Tally("coco", path)
    for annotation in content["annotations"]:
        structure = structures.get(annotation["category_id"])
        if structure is None:
            raise _unnamed_category(content, annotation["category_id"], path)
        if annotation.get("segmentation"):
            shapes[annotation["image_id"]][structure].append(annotation["segmentation"])
    for image in content["images"]:
        _use_coco_image(tally, image, shapes.get(image.get("id"), {}), path.parent)
    return tally.reading()


def _pair_folders(tally: Tally, image_folder: Path, mask_folder: Path) -> None:
    images = {
        path: path.relative_to(image_folder).with_suffix("").as_posix()
        for path in _files(image_folder)
    }
    names = set(images.values())
    masks: defaultdict[str, dict[str, Path]] = defaultdict(dict)
    used: set[Path] = set()
    files = [path for path in _files(mask_folder) if path.suffix.lower() in IMAGE_SUFFIXES]
    for path in files:
        structure, name = _mask_key(path.relative_to(mask_folder), names)
        masks[name].setdefault(structure, path)
    for path, name in images.items():
        own = {structure: masks[name][structure] for structure in sort_structures(masks[name])}
        used |= set(own.values())
        _use_image(tally, path, name, own)
    for path in files:
        if path not in used:
            tally.leave(path, "mask without an image of that name")


def _pair_names(tally: Tally, root: Path) -> None:
    """Pair ``x.png`` with ``x_mask.png`` and ``x_<structure>_mask.png`` in one folder and below."""
    files = _files(root)
    names = {path.relative_to(root).with_suffix("").as_posix(): path for path in files}
    owners = {path: owner for name, path in names.items() if (owner := _owner(name, names))}
    masks: defaultdict[str, dict[str, Path]] = defaultdict(dict)
    for path, (name, structure) in owners.items():
        masks[name].setdefault(structure, path)
    alike: list[tuple[str, str, str]] = []
    for path in files:
        name = path.relative_to(root).with_suffix("").as_posix()
        if path not in owners:
            _use_image(tally, path, name, masks[name])
            alike += [(name, *split)] if (split := _split_name(name, names)) else []
        elif path not in masks[owners[path][0]].values():
            tally.leave(path, "a second mask of the same structure")
    if alike:
        name, image, structure = alike[0]
        tally.notes.append(
            f"{len(alike)} images are named like another with an ending, such as {name}; if that "
            f"is a mask of {image}, name it {image}_{structure}_mask"
        )


def _owner(name: str, names: Mapping[str, Path]) -> tuple[str, str] | None:
    """Return (image name, structure) if ``name`` ends like a mask of an image that is there.

    A structure that is not of the chest counts only with ``_mask`` after it: ``a_lateral`` may
    well be a second image of ``a``.
    """
    for ending, structure in [("mask", UNNAMED), *((name, name) for name in CHEST)]:
        for separator in ("_", "-"):
            for tail in (f"{separator}{ending}", f"{separator}{ending}_mask"):
                image = name.removesuffix(tail)
                if image != name and image in names:
                    return image, structure
    stem = name.removesuffix("_mask").removesuffix("-mask")
    return _split_name(stem, names) if stem != name else None


def _split_name(name: str, names: Mapping[str, Path]) -> tuple[str, str] | None:
    """Split ``a_spleen`` into an image that is there, the longest, and a structure."""
    for place in range(len(name) - 1, 0, -1):
        structure = structure_named(name[place + 1 :])
        if name[place] in "_-" and structure and name[:place] in names:
            return name[:place], structure
    return None


def _use_image(tally: Tally, path: Path, name: str, masks: Mapping[str, Path]) -> None:
    if path.suffix.lower() not in SUFFIXES:
        tally.leave(path, f"not an image file ({path.suffix or 'no suffix'})")
        return
    # The folder's name keeps two folders of pairs apart.
    tally.use(Record(f"pairs/{tally.root.name}/{name}", "pairs", path, dict(masks)))


def _mask_key(relative: Path, images: Collection[str]) -> tuple[str, str]:
    """Return (structure, image name) of a mask file: ``spleen/a/x_mask.png`` → spleen, a/x.

    A folder that the images have too is a sub-folder, unless it names a structure of the chest.
    """
    name = relative.with_suffix("").as_posix().removesuffix("_mask")
    structure = structure_named(relative.parts[0]) if len(relative.parts) > 1 else None
    if structure is None or (structure not in CHEST and name in images):
        return UNNAMED, name
    return structure, name.partition("/")[2]


def _files(root: Path) -> list[Path]:
    """Return every file at or below ``root``, hidden files and folders left out."""

    def refuse(error: OSError) -> None:
        raise error  # a folder that cannot be read must not pass for an empty one

    files: list[Path] = []
    for folder, below, names in os.walk(root, onerror=refuse):
        below[:] = [name for name in below if not name.startswith(".")]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(path for path in files if path.is_file())


def _is_dicom(path: Path) -> bool:
    # Archives write DICOM files without a suffix, and old ones without the preamble's
    # "DICM": then the first element, group 0008 in little endian, gives them away.
    with path.open("rb") as handle:
        head = handle.read(132)
    return head[128:] == b"DICM" or head[:2] == b"\x08\x00"


def _read_table(path: Path) -> pd.DataFrame:
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            table = pd.read_parquet(path)
        else:
            table = pd.read_csv(path, dtype=str)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"manifest: {path} cannot be read as a table ({error})") from error
    table.columns = [str(name).strip() for name in table.columns]
    return table


def _mask_columns(columns: Iterable[str], path: Path) -> dict[str, str]:
    """Return column → structure of the columns that hold masks."""
    structures: dict[str, str] = {}
    for column in columns:
        name = column.lower()
        if "mask" not in name:
            continue
        structure = UNNAMED if name == "mask" else structure_named(name.removeprefix("mask"))
        if structure is None or not name.startswith("mask"):
            raise DataError(
                f"manifest: the column {column!r} of {path} names no structure; masks stand in "
                "mask_<structure>, as in mask_left_kidney (letters, digits and underscores)"
            )
        if structure in structures.values():
            raise DataError(f"manifest: {path} has two columns of {structure} masks; remove one")
        structures[column] = structure
    return structures


def _use_row(
    tally: Tally, row: Mapping[Any, Any], structures: Mapping[str, str], folder: Path, number: int
) -> None:
    given = {str(key): value for key, value in row.items() if not pd.isna(value) and value != ""}
    if "image" not in given:
        tally.leave(tally.root, f"row {number} names no image")
        return
    image = folder / str(given["image"])
    masks = {
        structure: folder / str(given[column])
        for column, structure in structures.items()
        if column in given
    }
    absent = [path for path in (image, *masks.values()) if not path.is_file()]
    if absent:
        tally.leave(image, f"row {number}: no file {absent[0]}")
        return
    name = str(given.get("id", Path(str(given["image"])).with_suffix("").as_posix()))
    tally.use(
        Record(
            f"manifest/{name.removeprefix('manifest/')}",
            "manifest",
            image,
            masks,
            _optional(given, "label"),
            _optional(given, "patient"),
            _spacing_mm(given, tally.root, number),
        )
    )


def _spacing_mm(given: Mapping[str, Any], path: Path, number: int) -> tuple[float, float] | None:
    if not any(column in given for column in SPACINGS):
        return None
    try:
        row, column = (float(given[name]) for name in SPACINGS)
    except (KeyError, ValueError):
        row = column = math.nan
    if not (0 < row < math.inf and 0 < column < math.inf):
        raise DataError(
            f"manifest: {path}, row {number}: {' and '.join(SPACINGS)} must both be sizes in mm "
            f"above 0, not {' and '.join(str(given.get(name)) for name in SPACINGS)}"
        )
    return row, column


def _optional(given: Mapping[str, Any], column: str) -> str | None:
    return str(given[column]) if column in given else None


def _coco_file(root: Path) -> Path:
    if root.is_file():
        return root
    check_root("coco", root)
    files = sorted([*root.glob("*.json"), *root.glob("annotations/*.json")])
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise missing("coco", root, f"one .json file (found: {names}); give the file itself")
    return files[0]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"coco: {path} cannot be read as JSON ({error})") from error
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(_is_list_of_maps(content.get(p)) for p in parts):
        raise DataError(f"coco: {path} must hold the lists {', '.join(parts)}")
    ids = [item.get("id") for part in ("images", "categories") for item in content[part]]
    ids += [item.get(key) for item in content["annotations"] for key in ("image_id", "category_id")]
    if not all(isinstance(value, int | str) for value in ids):
        raise DataError(f"coco: {path} has an id that is neither a number nor a text")
    return content


def _is_list_of_maps(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _unnamed_category(content: Mapping[str, Any], category_id: object, path: Path) -> DataError:
    for category in content["categories"]:
        if category.get("id") == category_id:
            return DataError(
                f"coco: the category {category.get('name')!r} of {path} cannot name a structure; "
                "rename it with letters, digits and underscores, as in left_kidney"
            )
    return DataError(
        f"coco: {path} has an annotation of category {category_id!r}, which its categories lack"
    )


def _use_coco_image(
    tally: Tally, image: Mapping[str, Any], shapes: Mapping[str, Sequence[object]], folder: Path
) -> None:
    name = str(image.get("file_name"))
    places = [folder / name, folder / "images" / name]
    places += [folder.parent / name, folder.parent / "images" / name]
    file = next((path for path in places if path.is_file()), None)
    if file is None:
        tally.leave(places[0], "no image file of that name")
        return
    size = (image.get("height"), image.get("width"))
    if not all(isinstance(length, int) and length > 0 for length in size):
        tally.leave(file, "its entry gives no height and width in pixels")
        return
    height, width = int(size[0] or 0), int(size[1] or 0)
    codes = {
        structure: CocoShapes(tuple(shapes[structure]), height, width)
        for structure in sort_structures(shapes)
    }
    record_id = f"coco/{Path(name).with_suffix('').as_posix()}"
    tally.use(EncodedRecord(record_id, "coco", file, codes=codes))


# Readers that take every image at or below the folder.
WALKING = ("images", "pairs")
READERS: Mapping[str, Callable[[Path], Reading]] = {
    "coco": read_coco,
    "images": read_images,
    "manifest": read_manifest_table,
    "pairs": read_pairs,
}
