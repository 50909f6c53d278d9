"""What segmenting one radiograph gives: masks, how far to trust them, and the files of both."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adalora_qat.chest.caution import Caution
from adalora_qat.chest.masks import LUNGS, Masks
from adalora_qat.chest.measures import Measure, measure
from adalora_qat.chest.overlay import draw_overlay
from adalora_qat.errors import DataError, printable
from adalora_qat.files import atomic_write, write_json
from adalora_qat.imaging.contours import geojson
from adalora_qat.runtime.plausibility import SPACING

PromptKind = Literal["automatic", "box", "points"]
MaskValues = Literal["255", "labels"]
# What can be written of a result → how its file's name ends; in the order of writing, as a JSON
# file says that the others are there.
ENDINGS = {
    "mask": "_mask.png", "overlay": "_overlay.png", "contours": ".geojson", "json": ".json",
}  # fmt: skip
WRITTEN = ("mask", "overlay", "json")
_JSON_STARTS = b'{\n  "image": '

# A notebook shows a picture at this size at most; a detector's image would make it crawl.
_SHOWN_SIDE = 1024


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The segmentation of one radiograph of (H, W) pixels, with N objects.

    Attributes
    ----------
    name : of the image file; ``image`` for an image that was in memory.
    image : (H, W) or (H, W, 3), the pixels as they were read; not copied.
    masks : (N, H, W) bool, one per box, in their order; without a box one per structure of the
        model, or else one. ``masks["heart"]`` is (H, W), the union of that structure's.
    boxes : (N, 4) float32, (x0, y0, x1, y1) in continuous pixels of the image, the outer edges
        of its pixels: the boxes that were given, or the one that was found. The whole image
        where nothing was found, and for points.
    scores : (N,) float32 in [0, 1], the expected IoU of each mask with one drawn by hand, if
        the model is calibrated, else the model's own estimate of it.
    confidence : the mean of the scores, if the model is calibrated; None if it is not.
    confidence_means : what the confidence is, in words.
    warnings : what is odd about the image or its masks; empty if nothing is.
    prompt : ``automatic``, ``box`` or ``points``.
    spacing_mm : (row, column) size of a pixel; None where it is not known.
    seconds : ``read`` and ``predict``, how long each took.
    model : file, SHA-256, variant, policy and version of the model.
    file_sha256 : of the image file; None for an image that was in memory.
    structures : (N,) what each mask is of; empty where it is not known.
    view : PA, AP or another word of DICOM's View Position; None where it is not known.
    options : what the command line was asked for; empty in Python.
    """

    name: str
    image: NDArray[Any]
    masks: Masks
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    confidence: float | None
    confidence_means: str
    warnings: tuple[Caution, ...]
    prompt: PromptKind
    spacing_mm: tuple[float, float] | None
    seconds: Mapping[str, float]
    model: Mapping[str, str]
    file_sha256: str | None = None
    structures: tuple[str, ...] = ()
    view: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "masks", Masks(self.masks, self.structures))

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool: both lungs where lungs are among the structures, or else all masks."""
        return self.masks.union()

    @cached_property
    def measures(self) -> Mapping[str, Measure]:
        """Name → number of a chest, with what withholds it; empty unless lungs are named."""
        named = self.masks_by_structure()
        sure: dict[str, float] = {}
        if self.confidence is not None:
            for name, score in zip(self.structures, self.scores.tolist(), strict=False):
                sure[name] = min(score, sure.get(name, 1.0))
        return measure(
            named,
            spacing_mm=self.spacing_mm,
            view=self.view,
            confidence=sure,
            warned={caution.code for caution in self.warnings},
        )

    def of(self, structures: Sequence[str]) -> Result:
        """Return the result with some of its structures alone, one mask each.

        Parameters
        ----------
        structures : names of ``self.structures``; ``lungs`` is both lungs as one mask, then
            called ``lung``.

        Raises
        ------
        DataError
            If there is none, or one is not there; says which there are.
        """
        if isinstance(structures, str) or not structures:
            raise DataError(f"structures {structures!r}: give a list of some of {self._names()}")
        groups: dict[str, list[int]] = {}
        for name in structures:
            wanted = LUNGS if name == "lungs" else (name,)
            group = [i for i, each in enumerate(self.structures) if each in wanted]
            if not group:
                raise DataError(f"no mask of {name!r}; there are {self._names()}")
            groups["lung" if name == "lungs" else name] = group
        parts = list(groups.values())
        boxes = [[*self.boxes[g, :2].min(axis=0), *self.boxes[g, 2:].max(axis=0)] for g in parts]
        return replace(
            self,
            masks=Masks(np.stack([np.asarray(self.masks)[group].any(axis=0) for group in parts])),
            boxes=np.array(boxes, dtype=np.float32),
            scores=np.array([self.scores[group].mean() for group in parts], dtype=np.float32),
            structures=tuple(groups),
        )

    def masks_by_structure(self) -> dict[str, NDArray[np.bool_]]:
        """Return structure → (H, W) bool, the union of its masks; empty where none is named."""
        return {name: self.masks[name] for name in dict.fromkeys(self.structures)}

    def overlay(self) -> Image.Image:
        """Draw the masks over the image (``overlay.draw_overlay``), W × H, RGB."""
        return draw_overlay(self.image, self.masks, self.structures, self.boxes, self.measures)

    def _names(self) -> str:
        return ", ".join(dict.fromkeys(self.structures)) or "no names: the masks are of boxes"

    def save(
        self,
        folder: Path | str,
        stem: str | None = None,
        *,
        write: Collection[str] = WRITTEN,
        mask_values: MaskValues = "255",
    ) -> tuple[Path, ...]:
        """Write the files of the command line into a folder, which is made if need be.

        They are ``<stem>_mask.png``, ``<stem>_overlay.png`` and, last, ``<stem>.json`` (see
        ``to_json``), which is always written: where it is, the others are complete. All of
        them are there in the end, or none.

        Parameters
        ----------
        folder : files of an earlier result of the same image are replaced.
        stem : how the names begin; that of the image file if not given, or ``image``.
        write : of ``mask``, ``overlay``, ``json`` and ``contours``: ``<stem>.geojson``, the
            outlines of each mask as polygons (``contours.geojson``).
        mask_values : what the mask's pixels hold beside 0: ``255`` inside any mask, or
            ``labels``, k inside the k-th, of several the last.

        Returns
        -------
        The paths of the files, in the order of ``write``, the JSON last if it is not named.

        Raises
        ------
        DataError
            If the folder holds the result of another image under these names, or ``write`` or
            ``mask_values`` are other words.
        UserError
            If the folder cannot be written.
        """
        stem = Path(self.name).stem if stem is None else stem
        paths = {kind: Path(folder) / (stem + ENDINGS[kind]) for kind in _checked(write)}
        values = self.mask_values(mask_values)
        facts, json_path = self.to_json(), paths["json"]
        check_earlier(json_path, facts["image_sha256"])
        _remove(json_path)
        try:
            if "mask" in paths:
                with atomic_write(paths["mask"]) as temporary:
                    Image.fromarray(values).save(temporary)
            if "overlay" in paths:
                with atomic_write(paths["overlay"]) as temporary:
                    self.overlay().save(temporary)
            if "contours" in paths:
                write_json(paths["contours"], geojson(self.masks, self.structures))
            write_json(json_path, facts)
        except BaseException:
            for path in paths.values():
                _remove(path)
            raise
        return tuple(paths.values())

    def mask_values(self, values: MaskValues = "255") -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Return the masks as one picture (H, W); see ``mask_values`` of ``save``.

        Raises
        ------
        DataError
            If ``values`` is another word.
        """
        if values not in get_args(MaskValues):
            raise DataError(f"mask values {values!r}: give {' or '.join(get_args(MaskValues))}")
        if values == "255":
            return np.where(self.mask, np.uint8(255), np.uint8(0))
        picture = np.zeros(self.masks.shape[1:], np.uint8 if len(self.masks) < 256 else np.uint16)
        for number, mask in enumerate(self.masks, start=1):
            picture[mask] = number
        return picture

    def to_json(self) -> dict[str, Any]:
        """Return the content of the JSON file: plain values.

        ``image_sha256`` is the hash of the file, or of the pixels (dtype, shape and bytes) of
        an image in memory. Areas are in pixels, and in mm² where the spacing is known and
        makes a chest of possible size.
        """
        boxes = self.boxes.astype(float)
        objects = [
            {"box": box.tolist(), "score": round(float(score), 5), **self._areas(mask)}
            for box, score, mask in zip(boxes, self.scores, self.masks, strict=True)
        ]
        for entry, structure in zip(objects, self.structures, strict=False):
            entry["structure"] = structure
        measures = {name: one.to_json() for name, one in self.measures.items()}
        return {
            # JSON is UTF-8, which a file's name need not be.
            "image": printable(self.name),
            "image_sha256": self.file_sha256 or _pixels_sha256(self.image),
            "width": self.image.shape[1],
            "height": self.image.shape[0],
            "box": [*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist()],
            "score": round(float(self.scores.mean()), 5),
            **self._areas(self.mask),
            "objects": objects,
            **({"measures": measures} if measures else {}),
            "confidence": self.confidence,
            "confidence_means": self.confidence_means,
            "warnings": [caution.to_json() for caution in self.warnings],
            "prompt": self.prompt,
            "seconds": {key: round(value, 4) for key, value in self.seconds.items()},
            "model": dict(self.model),
            **({"options": dict(self.options)} if self.options else {}),
        }

    def _areas(self, mask: NDArray[np.bool_]) -> dict[str, Any]:
        pixels = int(mask.sum())
        if self.spacing_mm is None or any(caution.code == SPACING for caution in self.warnings):
            return {"area_px": pixels, "area_mm2": None}
        row, column = self.spacing_mm
        return {"area_px": pixels, "area_mm2": round(pixels * (row * column), 3)}

    def _repr_png_(self) -> bytes:
        """Return the overlay as PNG, for notebooks."""
        drawn, buffer = self.overlay(), io.BytesIO()
        drawn.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
        drawn.save(buffer, "PNG")
        return buffer.getvalue()

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        count = f"{len(self.masks)} mask{'s' * (len(self.masks) != 1)}"
        codes = ", ".join(caution.code for caution in self.warnings) or "none"
        return (
            f"<Result {printable(self.name)}: {count} of "
            f"{width}x{height} pixels, confidence {self.confidence}, warnings: {codes}>"
        )


@dataclass(frozen=True)
class Failure:
    """What ``Model.map`` gives, if it is asked to, for an image that cannot be used.

    Attributes
    ----------
    source : the image's path as it was given; None for an image that was in memory.
    place : in the sequence of images, counted from 0.
    error : why, in words that name the image and the remedy.
    cause : what ``Model.__call__`` raises for it.
    """

    source: str | None
    place: int
    error: str
    cause: DataError = field(repr=False, compare=False)


def is_result(path: Path) -> bool:
    """Return whether a file starts as the JSON file of a result does."""
    try:
        with path.open("rb") as handle:
            head = handle.read(4096)
    except OSError:
        return False
    return head.startswith(_JSON_STARTS) and b'\n  "image_sha256": "' in head


def check_earlier(json_path: Path, image_sha256: str) -> dict[str, Any] | None:
    """Refuse to replace the result of another image.

    Parameters
    ----------
    json_path : where the new result's JSON is to go.
    image_sha256 : of the new result's image.

    Returns
    -------
    The earlier result of the same image, if there is one: the content of its JSON file.

    Raises
    ------
    DataError
        If a file lies there that is no result, or is the result of another image.
    """
    try:
        facts: dict[str, Any] = json.loads(json_path.read_text(encoding="utf-8"))
        earlier = facts["image_sha256"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DataError(
            f"{printable(json_path)} exists and is not a result of adalora-qat; choose another "
            "folder"
        ) from None
    if earlier != image_sha256:
        raise DataError(
            f"{printable(json_path.parent)} holds the result of another image named "
            f"{printable(json_path.stem)}; choose another folder"
        )
    return facts


def _remove(path: Path) -> None:
    # What cannot be removed cannot be written either, and writing says so.
    with suppress(OSError):
        path.unlink()


def _checked(write: Collection[str]) -> list[str]:
    """Return what to write, each once, the JSON file among it."""
    unknown = [kind for kind in write if kind not in ENDINGS]
    if unknown or isinstance(write, str):
        raise DataError(f"cannot write {write!r}: give some of {', '.join(ENDINGS)}")
    return list(dict.fromkeys([*write, "json"]))


def _pixels_sha256(pixels: NDArray[Any]) -> str:
    digest = hashlib.sha256(f"{pixels.dtype.str} {pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()
