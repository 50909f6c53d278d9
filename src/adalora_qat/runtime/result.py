"""What segmenting one radiograph gives: masks, how far to trust them, and the files of both."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from adalora_qat.errors import DataError
from adalora_qat.files import atomic_write, write_json
from adalora_qat.imaging.geometry import last_pixels, to_grey_uint8
from adalora_qat.runtime.input_check import Caution

PromptKind = Literal["automatic", "box", "points"]

_MASK_COLOUR = np.array([230, 70, 40], dtype=np.float32)
_MASK_OPACITY = 0.4
_BOX_COLOUR = (70, 160, 255)
# A notebook shows a picture at this size at most; a detector's image would make it crawl.
_SHOWN_SIDE = 1024


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The segmentation of one radiograph of (H, W) pixels, with N objects.

    Attributes
    ----------
    name : of the image file; ``image`` for an image that was in memory.
    image : (H, W) or (H, W, 3), the pixels as they were read; not copied.
    masks : (N, H, W) bool, one per box, in their order; N is 1 without a box.
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
    """

    name: str
    image: NDArray[Any]
    masks: NDArray[np.bool_]
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

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool, the union of the masks."""
        return np.asarray(self.masks.any(axis=0))

    def overlay(self) -> Image.Image:
        """Draw the masks and boxes over the image.

        Returns
        -------
        An RGB picture of the image's own size, W × H.
        """
        grey = to_grey_uint8(self.image)
        picture = np.repeat(grey[:, :, None], 3, axis=2).astype(np.float32)
        inside = self.mask
        picture[inside] += _MASK_OPACITY * (_MASK_COLOUR - picture[inside])
        drawn = Image.fromarray(picture.astype(np.uint8))
        pen = ImageDraw.Draw(drawn)
        width = max(1, round(max(drawn.size) / 400))
        for box in self.boxes:
            x0, y0, x1, y1 = last_pixels(box).tolist()
            pen.rectangle((x0, y0, x1, y1), outline=_BOX_COLOUR, width=width)
        return drawn

    def save(self, folder: Path | str, stem: str | None = None) -> tuple[Path, Path, Path]:
        """Write the files of the command line into a folder, which is made if need be.

        They are ``<stem>_mask.png`` (the union of the masks: 0 or 255, H × W),
        ``<stem>_overlay.png`` and, last, ``<stem>.json`` (see ``to_json``).

        Parameters
        ----------
        folder : files of an earlier result of the same image are replaced.
        stem : how the names begin; that of the image file if not given, or ``image``.

        Returns
        -------
        The paths of mask, overlay and JSON.

        Raises
        ------
        DataError
            If the folder holds the result of another image under these names.
        UserError
            If the folder cannot be written.
        """
        names = result_names(Path(self.name).stem if stem is None else stem)
        mask_path, overlay_path, json_path = (Path(folder) / name for name in names)
        facts = self.to_json()
        check_earlier(json_path, facts["image_sha256"])
        with atomic_write(mask_path) as temporary:
            Image.fromarray(np.where(self.mask, np.uint8(255), np.uint8(0))).save(temporary)
        with atomic_write(overlay_path) as temporary:
            self.overlay().save(temporary)
        write_json(json_path, facts)
        return mask_path, overlay_path, json_path

    def to_json(self) -> dict[str, Any]:
        """Return the content of the JSON file: plain values.

        ``image_sha256`` is the hash of the file, or of the pixels (dtype, shape and bytes) of
        an image in memory. Areas are in pixels, and in mm² where the spacing is known.
        """
        boxes = self.boxes.astype(float)
        objects = [
            {"box": box.tolist(), "score": round(float(score), 5), **self._areas(mask)}
            for box, score, mask in zip(boxes, self.scores, self.masks, strict=True)
        ]
        for entry, structure in zip(objects, self.structures, strict=False):
            entry["structure"] = structure
        return {
            "image": self.name,
            "image_sha256": self.file_sha256 or _pixels_sha256(self.image),
            "width": self.image.shape[1],
            "height": self.image.shape[0],
            "box": [*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist()],
            "score": round(float(self.scores.mean()), 5),
            **self._areas(self.mask),
            "objects": objects,
            "confidence": self.confidence,
            "confidence_means": self.confidence_means,
            "warnings": [caution.to_json() for caution in self.warnings],
            "prompt": self.prompt,
            "seconds": {key: round(value, 4) for key, value in self.seconds.items()},
            "model": dict(self.model),
        }

    def _areas(self, mask: NDArray[np.bool_]) -> dict[str, Any]:
        pixels = int(mask.sum())
        if self.spacing_mm is None:
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
        codes = ", ".join(caution.code for caution in self.warnings) or "none"
        return (
            f"<Result {self.name}: {len(self.masks)} mask{'s' * (len(self.masks) != 1)} of "
            f"{width}x{height} pixels, confidence {self.confidence}, warnings: {codes}>"
        )


def result_names(stem: str) -> tuple[str, str, str]:
    """Return the names of the files of one result: mask, overlay and JSON."""
    return f"{stem}_mask.png", f"{stem}_overlay.png", f"{stem}.json"


def check_earlier(json_path: Path, image_sha256: str) -> None:
    """Refuse to replace the result of another image.

    Parameters
    ----------
    json_path : where the new result's JSON is to go.
    image_sha256 : of the new result's image.

    Raises
    ------
    DataError
        If a file lies there that is no result, or is the result of another image.
    """
    if not json_path.exists():
        return
    try:
        earlier = json.loads(json_path.read_text(encoding="utf-8"))["image_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{json_path} exists and is not a result of adalora-qat; choose another folder"
        ) from None
    if earlier != image_sha256:
        raise DataError(
            f"{json_path.parent} holds the result of another image named {json_path.stem}; "
            "choose another folder"
        )


def _pixels_sha256(pixels: NDArray[Any]) -> str:
    digest = hashlib.sha256(f"{pixels.dtype.str} {pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()
