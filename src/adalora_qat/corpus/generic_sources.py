"""Readers for data of one's own: image and mask folders, a table, COCO, images alone."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
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
from adalora_qat.corpus.records import MASK_KINDS, Record
from adalora_qat.errors import DataError

SUFFIXES = IMAGE_SUFFIXES + DICOM_SUFFIXES
IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations")
# What people call the six kinds, in letters and digits; a mask of no stated kind is "lung".
KIND_NAMES = {
    plain(name) + ending: kind
    for kind in MASK_KINDS
    for name in (kind, f"{kind} mask")
    for ending in ("", "s")
}
TABLE_COLUMNS = ("id", "label", "patient", "spacing_row_mm", "spacing_col_mm")


def read_pairs(root: Path) -> Reading:
    """Read a folder of image and mask pairs.

    Layouts: ``images/…/x.png`` with ``masks/…/x.png`` or ``masks/<kind>/…/x.png``, or both in
    one folder as ``x.png`` and ``x_mask.png`` or ``x_<kind>.png``. A mask of no stated kind
    is a lung mask. Sub-folders, when there are some, must be the same on both sides.
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
    """Read a CSV or Parquet table: ``image`` and, as known, ``mask_<kind>``, ``id``, ….

    Columns: image (needed), mask (a lung mask) or mask_<kind>, id, label, patient,
    spacing_row_mm, spacing_col_mm. Paths are relative to the table's folder or absolute.
    """
    table = _read_table(path)
    kinds = {column: kind for column in table.columns if (kind := _mask_column(column))}
    known = {"image", *kinds, *TABLE_COLUMNS}
    if "image" not in table.columns:
        raise DataError(
            f"manifest: {path} has no column 'image' (it has {', '.join(table.columns)}); "
            f"known columns: {', '.join(sorted(known))}, mask_<kind>"
        )
    tally = Tally("manifest", path)
    for number, row in enumerate(table.to_dict("records"), start=2):
        _use_row(tally, row, kinds, path.parent, number)
    return tally.reading()


def read_coco(root: Path) -> Reading:
    """Read COCO annotations: polygons or run lengths, categories named like mask kinds.

    ``root`` is the JSON file, or a folder with one (or with ``annotations/*.json``). Images
    lie where ``file_name`` says, from the JSON's folder, its parent, or ``images/`` in these.
    """
    path = _coco_file(root)
    content = _read_json(path)
    kinds, unknown = _coco_kinds(content, path)
    shapes: defaultdict[Any, defaultdict[str, list[object]]] = defaultdict(
        lambda: defaultdict(list)
    )
    tally = Tally("coco", path)
    for annotation in content["annotations"]:
        kind = kinds.get(annotation.get("category_id"))
        if kind and annotation.get("segmentation"):
            shapes[annotation.get("image_id")][kind].append(annotation["segmentation"])
    for name, count in unknown.items():
        tally.leave(path, f"category {name!r} is no kind of mask ({count} annotations)")
    for image in content["images"]:
        _use_coco_image(tally, image, shapes.get(image.get("id"), {}), path.parent)
    return tally.reading()


def _pair_folders(tally: Tally, image_folder: Path, mask_folder: Path) -> None:
    masks: dict[tuple[str, str], Path] = {}
    used: set[Path] = set()
    files = [path for path in _files(mask_folder) if path.suffix.lower() in IMAGE_SUFFIXES]
    for path in files:
        kind, key = _mask_key(path.relative_to(mask_folder))
        masks.setdefault((kind, key), path)
    for path in _files(image_folder):
        name = path.relative_to(image_folder).with_suffix("").as_posix()
        own = {kind: masks[kind, name] for kind in MASK_KINDS if (kind, name) in masks}
        used |= set(own.values())
        _use_image(tally, path, name, own)
    for path in files:
        if path not in used:
            tally.leave(path, "mask without an image of that name")


def _pair_names(tally: Tally, root: Path) -> None:
    """Pair ``x.png`` with ``x_mask.png`` and ``x_<kind>.png`` in one folder and below."""
    files = _files(root)
    names = {path.relative_to(root).with_suffix("").as_posix(): path for path in files}
    owners = {path: owner for name, path in names.items() if (owner := _owner(name, names))}
    masks: defaultdict[str, dict[str, Path]] = defaultdict(dict)
    for path, (name, kind) in owners.items():
        masks[name].setdefault(kind, path)
    for path in files:
        name = path.relative_to(root).with_suffix("").as_posix()
        if path not in owners:
            _use_image(tally, path, name, masks[name])
        elif path not in masks[owners[path][0]].values():
            tally.leave(path, "a second mask of the same kind")


def _owner(name: str, names: Mapping[str, Path]) -> tuple[str, str] | None:
    """Return (image name, kind) if ``name`` ends like a mask of an image that is there."""
    for ending, kind in [("mask", "lung"), *((kind, kind) for kind in MASK_KINDS)]:
        for separator in ("_", "-"):
            for tail in (f"{separator}{ending}", f"{separator}{ending}_mask"):
                image = name.removesuffix(tail)
                if image != name and image in names:
                    return image, kind
    return None


def _use_image(tally: Tally, path: Path, name: str, masks: Mapping[str, Path]) -> None:
    if path.suffix.lower() not in SUFFIXES:
        tally.leave(path, f"not an image file ({path.suffix or 'no suffix'})")
        return
    # The folder's name keeps two folders of pairs apart.
    tally.use(Record(f"pairs/{tally.root.name}/{name}", "pairs", path, dict(masks)))


def _mask_key(relative: Path) -> tuple[str, str]:
    """Return (kind, image name) of a mask file: ``left_lung/a/x_mask.png`` → left_lung, a/x."""
    kind = KIND_NAMES.get(plain(relative.parts[0])) if len(relative.parts) > 1 else None
    inner = Path(*relative.parts[1:]) if kind else relative
    name = inner.with_suffix("").as_posix().removesuffix("_mask")
    return kind or "lung", name


def _files(root: Path) -> list[Path]:
    found = (path for path in root.rglob("*") if path.is_file())
    return sorted(
        path
        for path in found
        if not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


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


def _mask_column(column: str) -> str | None:
    if column == "mask":
        return "lung"
    kind = column.removeprefix("mask_")
    return kind if kind != column and kind in MASK_KINDS else None


def _use_row(
    tally: Tally, row: Mapping[Any, Any], kinds: Mapping[str, str], folder: Path, number: int
) -> None:
    given = {str(key): value for key, value in row.items() if not pd.isna(value) and value != ""}
    if "image" not in given:
        tally.leave(tally.root, f"row {number} names no image")
        return
    image = folder / str(given["image"])
    masks = {kind: folder / str(given[column]) for column, kind in kinds.items() if column in given}
    absent = [path for path in (image, *masks.values()) if not path.is_file()]
    if absent:
        tally.leave(image, f"row {number}: no file {absent[0]}")
        return
    try:
        spacing = (float(given["spacing_row_mm"]), float(given["spacing_col_mm"]))
    except (KeyError, ValueError):
        spacing = None
    name = str(given.get("id", Path(str(given["image"])).with_suffix("").as_posix()))
    tally.use(
        Record(
            f"manifest/{name.removeprefix('manifest/')}",
            "manifest",
            image,
            masks,
            _optional(given, "label"),
            _optional(given, "patient"),
            spacing,
        )
    )


def _optional(given: Mapping[str, Any], column: str) -> str | None:
    return str(given[column]) if column in given else None


def _coco_file(root: Path) -> Path:
    if root.is_file():
        return root
    check_root("coco", root)
    found = sorted([*root.glob("*.json"), *root.glob("annotations/*.json")])
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise missing("coco", root, f"one .json file (found: {names}); give the file itself")
    return found[0]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"coco: {path} cannot be read as JSON ({error})") from error
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(_is_list_of_maps(content.get(p)) for p in parts):
        raise DataError(f"coco: {path} must hold the lists {', '.join(parts)}")
    return content


def _is_list_of_maps(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _coco_kinds(content: Mapping[str, Any], path: Path) -> tuple[dict[Any, str], dict[str, int]]:
    """Return category id → kind, and name → annotations of the categories that are no kind."""
    kinds: dict[Any, str] = {}
    names: dict[Any, str] = {}
    for category in content["categories"]:
        name = str(category.get("name"))
        kind = KIND_NAMES.get(plain(name))
        if kind:
            kinds[category.get("id")] = kind
        else:
            names[category.get("id")] = name
    if not kinds:
        raise DataError(
            f"coco: {path} has no category named like a mask kind ({', '.join(MASK_KINDS)}); "
            f"it has {', '.join(names.values()) or 'none'}: rename them"
        )
    used = [annotation.get("category_id") for annotation in content["annotations"]]
    return kinds, {name: used.count(key) for key, name in names.items()}


def _use_coco_image(
    tally: Tally, image: Mapping[str, Any], shapes: Mapping[str, Sequence[object]], folder: Path
) -> None:
    name = str(image.get("file_name"))
    places = [folder / name, folder / "images" / name]
    places += [folder.parent / name, folder.parent / "images" / name]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        tally.leave(places[0], "no image file of that name")
        return
    size = (image.get("height"), image.get("width"))
    if not all(isinstance(length, int) and length > 0 for length in size):
        tally.leave(found, "its entry gives no height and width in pixels")
        return
    height, width = int(size[0] or 0), int(size[1] or 0)
    codes = {kind: CocoShapes(tuple(drawn), height, width) for kind, drawn in shapes.items()}
    record_id = f"coco/{Path(name).with_suffix('').as_posix()}"
    tally.use(EncodedRecord(record_id, "coco", found, codes=codes))


READERS: Mapping[str, Callable[[Path], Reading]] = {
    "coco": read_coco,
    "images": read_images,
    "manifest": read_manifest_table,
    "pairs": read_pairs,
}
