"""Something to warn of in an image or its masks, as results list it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Caution(NamedTuple):
    """One warning.

    Attributes
    ----------
    code : a word for programs: those of ``runtime.input_check``, of ``runtime.plausibility`` and
        of ``chest.findings``, and ``no_box_training``.
    message : one phrase for people.
    value : the number behind it.
    limit : what the number was held against.
    """

    code: str
    message: str
    value: float
    limit: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a result file."""
        value, limit = (float(f"{number:.4g}") for number in (self.value, self.limit))
        return {**self._asdict(), "value": value, "limit": limit}
