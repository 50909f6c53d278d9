"""The data card, not written yet."""

from typing import Any


def write_card(*_: Any) -> None:
    """Write nothing yet."""
