"""One radiograph, read and encoded once, to be prompted many times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import ArrayLike, NDArray

from adalora_qat.imaging.radiograph import Radiograph
from adalora_qat.runtime.prompts import Prompt, prompt_of
from adalora_qat.runtime.result import Result


class OpenImage:
    """A radiograph that a model has open; ``Model.open`` makes it.

    Safe to share between threads. The first prompt pays for the encoder; the decoder is what
    the others cost.

    Parameters
    ----------
    radiograph : the image as it was read.
    answer : a prompt to the result of this image.
    """

    def __init__(self, radiograph: Radiograph, answer: Callable[[Prompt], Result]) -> None:
        self._radiograph, self._answer = radiograph, answer

    @property
    def pixels(self) -> NDArray[Any]:
        """(H, W) or (H, W, 3), as they were read, at full depth."""
        return self._radiograph.pixels

    @property
    def spacing_mm(self) -> tuple[float, float] | None:
        """(row, column) size of a pixel that the file states, if it does."""
        return self._radiograph.spacing_mm

    def __call__(
        self,
        *,
        box: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
    ) -> Result:
        """Segment the image; the prompt, and what comes back, are as for ``Model.__call__``.

        Raises
        ------
        DataError
            If the prompt cannot be used, or the model takes no points.
        """
        return self._answer(prompt_of(box, boxes, points, labels))
