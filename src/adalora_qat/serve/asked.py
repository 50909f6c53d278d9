"""What a request asks of an image: boxes, points, the size of a pixel; checked as far as can be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adalora_qat.runtime.opened import OpenImage
from adalora_qat.runtime.result import Result
from adalora_qat.serve.refusal import Refusal
from adalora_qat.serve.settings import Settings
from adalora_qat.serve.uploads import Form

# Of the masks of one answer, all together: each pixel is a byte while they are made.
_MOST_MASK_PIXELS = 640_000_000
_MOST_POINTS = 256


@dataclass(frozen=True)
class Asked:
    """A prompt, as it came.

    Attributes
    ----------
    boxes : (N, 4) in pixels of the image, or None.
    points : (T, 2), or None.
    labels : (T,) 1 on the object, 0 beside it, or None.
    masks : how the answer holds masks.
    """

    boxes: list[list[float]] | None = None
    points: list[list[float]] | None = None
    labels: list[int] | None = None
    masks: str = "rle"

    @classmethod
    def of_json(cls, given: Mapping[str, Any], settings: Settings) -> Asked:
        """Read ``box``, ``boxes``, ``points``, ``labels`` and ``masks``.

        Raises
        ------
        Refusal
            422 if one is not of numbers, or there are too many.
        """
        boxes = given.get("boxes")
        if boxes is None and given.get("box") is not None:
            boxes = [given["box"]]
        rows = _rows(boxes, "boxes", 4, settings.max_boxes)
        points = _rows(given.get("points"), "points", 2, _MOST_POINTS)
        labels = given.get("labels")
        if labels is not None and (
            not isinstance(labels, list) or not all(type(one) is int for one in labels)
        ):
            raise Refusal(422, "bad_field", "labels: give a list of 1 and 0")
        return cls(rows, points, labels, str(given.get("masks") or "rle"))

    @classmethod
    def of_form(cls, form: Form, settings: Settings) -> Asked:
        """Read the same from a form, whose fields hold JSON."""
        names = ("box", "boxes", "points", "labels")
        fields = {name: form.json(name) for name in names}
        return cls.of_json({**fields, "masks": form.fields.get("masks")}, settings)

    def answered(self, image: OpenImage) -> Result:
        """Ask an image.

        Raises
        ------
        Refusal
            422 if the masks would not fit in memory.
        DataError
            If the image cannot be asked so.
        """
        pixels = image.pixels.shape[0] * image.pixels.shape[1]
        most = max(1, _MOST_MASK_PIXELS // pixels)
        if self.boxes is not None and len(self.boxes) > most:
            raise Refusal(422, "too_many", f"at most {most} boxes for an image of this size")
        box = boxes = None
        if self.points is not None and self.boxes is not None and len(self.boxes) == 1:
            box = self.boxes[0]
        else:
            boxes = self.boxes
        return image(box=box, boxes=boxes, points=self.points, labels=self.labels)


def spacing_of(form: Form) -> tuple[float, float] | None:
    """Return the field ``spacing``, [row, column] in mm, if it is there.

    Raises
    ------
    Refusal
        422 if it is not two numbers.
    """
    rows = form.json("spacing")
    if rows is None:
        return None
    (spacing,) = _rows([rows], "spacing", 2, 1) or [[]]
    return spacing[0], spacing[1]


def _rows(given: Any, name: str, length: int, most: int) -> list[list[float]] | None:
    if given is None:
        return None
    if not isinstance(given, list) or not given or not all(_is_row(one, length) for one in given):
        raise Refusal(
            422, "bad_field", f"{name}: give a list of lists of {length} finite numbers each"
        )
    if len(given) > most:
        raise Refusal(422, "too_many", f"{len(given)} {name}: at most {most} in one request")
    return given


def _is_row(row: Any, length: int) -> bool:
    return (
        isinstance(row, list)
        and len(row) == length
        and all(type(one) in (int, float) and abs(one) < 1e9 and math.isfinite(one) for one in row)
    )
