"""Errors that a user can act on.

Every message says what was given and what to change. The command line turns
them into one plain line and exit code 2; anything else is a bug and keeps its
traceback.
"""

from __future__ import annotations


def printable(value: object) -> str:
    """Return text that any terminal can show: a name that is not UTF-8, or holds ESC, escaped."""
    text = str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UserError(Exception):
    """Something in the user's input, or on their machine, makes the task impossible."""


class ConfigError(UserError, ValueError):
    """A configuration that does not hold together."""


class DataError(UserError, ValueError):
    """An image, mask, box, manifest or data set that cannot be used."""


class CheckpointError(UserError, ValueError):
    """Weights or a run folder that do not fit, or that are not safe to load."""


class TrainingError(UserError, ArithmeticError):
    """Training stopped before harm: a non-finite loss or gradient."""


class ExportError(UserError, RuntimeError):
    """An exported model that does not do what the trained one does."""
