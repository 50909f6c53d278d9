"""Masks of one image that can be asked for by the name of their structure."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adalora_qat.errors import DataError

# What the word ``lungs`` stands for.
LUNGS = ("left_lung", "right_lung", "lung")


class Masks(np.ndarray[Any, np.dtype[np.bool_]]):
    """(N, H, W) bool, an array like any other; ``masks["heart"]`` is (H, W), that structure's.

    Parameters
    ----------
    masks : (N, H, W) bool; not copied.
    structures : (N,) what each is of; empty where it is not known.
    """

    structures: tuple[str, ...]

    def __new__(cls, masks: NDArray[np.bool_], structures: tuple[str, ...] = ()) -> Masks:
        """Name masks."""
        array = np.asarray(masks, dtype=np.bool_).view(cls)
        array.structures = structures
        return array

    def __array_finalize__(self, other: Any) -> None:
        # A part of the masks, or what is computed from them, has other objects.
        self.structures = ()

    def __getitem__(self, key: Any) -> Any:
        """Return the union of a structure's masks, (H, W), or what an array gives for a key.

        Raises
        ------
        DataError
            If there is no mask of that name; says which there are.
        """
        if not isinstance(key, str):
            found = super().__getitem__(key)
            return found.view(np.ndarray) if isinstance(found, Masks) else found
        chosen = [index for index, name in enumerate(self.structures) if name == key]
        if not chosen:
            names = ", ".join(dict.fromkeys(self.structures)) or "no names: the masks are of boxes"
            raise DataError(f"no mask of {key!r}; there are {names}")
        return self.view(np.ndarray)[chosen].any(axis=0)

    def union(self) -> NDArray[np.bool_]:
        """Return (H, W): both lungs where lungs are among the structures, or else all masks."""
        lungs = [index for index, name in enumerate(self.structures) if name in LUNGS]
        plain = self.view(np.ndarray)
        return np.asarray((plain[lungs] if lungs else plain).any(axis=0))
