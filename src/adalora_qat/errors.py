"""Errors that a user can act on.

Every message says what was given and what to change. The command line turns
them into one plain line and exit code 2; anything else is a bug and keeps its
traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """Something the user gave, or the machine they gave it on, cannot be worked with."""


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
