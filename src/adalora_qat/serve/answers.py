"""Results as the server gives them: JSON with masks, pictures, and the command line's files."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adalora_qat.dicom.source import Source
from adalora_qat.imaging.contours import geojson
from adalora_qat.runtime.inputs import stem_of
from adalora_qat.runtime.result import ENDINGS, Result
from adalora_qat.runtime.structures import mask_names
from adalora_qat.serve.dicom_files import objects_of
from adalora_qat.serve.refusal import Refusal

MaskForm = Literal["rle", "png", "none"]
# How files of a result are named, beside what ``Result.save`` calls its own.
FILES: Mapping[str, str] = {
    "mask": "image/png",
    "overlay": "image/png",
    "json": "application/json",
    "contours": "application/geo+json",
    "labels": "image/png",
    "zip": "application/zip",
    "dicom": "application/zip",
}


def to_json(result: Result, masks: str = "rle") -> dict[str, Any]:
    """Return a result as JSON: what ``Result.to_json`` gives, and each mask.

    Parameters
    ----------
    masks : ``rle`` (runs as COCO counts them, column by column, of the background first),
        ``png`` (base64) or ``none``.

    Raises
    ------
    Refusal
        422 if ``masks`` is another word.
    """
    if masks not in get_args(MaskForm):
        raise Refusal(422, "bad_field", f"masks={masks!r}: give {', '.join(get_args(MaskForm))}")
    facts = result.to_json()
    if masks == "none":
        return facts
    form: Callable[[NDArray[np.bool_]], Any] = rle if masks == "rle" else _base64
    names = result.structures or ("",) * len(result.masks)
    facts["masks"] = [
        {"structure": name or None, masks: form(mask)}
        for name, mask in zip(names, result.masks, strict=True)
    ]
    return facts


def rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the runs of a mask (H, W), column by column, beginning with the background."""
    flat = np.ravel(mask, order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    counts = np.diff(edges).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def file_of(result: Result, kind: str, source: Source | None = None) -> tuple[bytes, str]:
    """Return one file of a result and its name: byte for byte what ``Result.save`` writes.

    Parameters
    ----------
    kind : of ``FILES``; ``labels`` is the mask with the number of each structure, ``zip`` all
        of them, ``dicom`` an archive of objects.
    source : the header of the image, if it was DICOM.

    Raises
    ------
    Refusal
        404 if there is no such kind; 422 if the image has no DICOM objects.
    """
    stem = stem_of(result.name)
    if kind == "mask":
        return _png(result.mask_values()), stem + ENDINGS["mask"]
    if kind == "labels":
        return _png(result.mask_values("labels")), f"{stem}_labels.png"
    if kind == "overlay":
        buffer = io.BytesIO()
        result.overlay().save(buffer, "PNG")
        return buffer.getvalue(), stem + ENDINGS["overlay"]
    if kind == "contours":
        return _text(geojson(result.masks, result.structures)), stem + ENDINGS["contours"]
    if kind == "json":
        return _text(result.to_json()), stem + ENDINGS["json"]
    if kind == "zip":
        return _zip(result, stem), f"{stem}.zip"
    if kind == "dicom":
        return objects_of(source, result)
    raise Refusal(404, "no_such_file", f"{kind!r}: give one of {', '.join(FILES)}")


def _zip(result: Result, stem: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for kind in ("mask", "overlay", "contours", "json"):
            data, name = file_of(result, kind)
            archive.writestr(name, data)
        for structure, name in mask_names(stem, result.structures).items():
            chosen = [i for i, each in enumerate(result.structures) if each == structure]
            union = result.masks[chosen].any(axis=0)
            archive.writestr(name, _png(np.where(union, np.uint8(255), np.uint8(0))))
    return buffer.getvalue()


def _text(value: Any) -> bytes:
    # As ``files.write_json`` has it.
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode()


def _png(values: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def _base64(mask: NDArray[np.bool_]) -> str:
    return base64.b64encode(_png(np.where(mask, np.uint8(255), np.uint8(0)))).decode("ascii")
