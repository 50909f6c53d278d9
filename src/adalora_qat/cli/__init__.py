"""The command line: the composition root, and the only room that prints.

Heavy rooms are imported inside the commands that need them, so that ``segment`` starts fast
and works without torch.
"""

from __future__ import annotations

import sys

from adalora_qat.cli import data, deployment, evaluation, segment, training
from adalora_qat.cli.app import app, err_console
from adalora_qat.errors import UserError

__all__ = ["app", "data", "deployment", "evaluation", "main", "segment", "training"]


def main() -> None:
    """Run the command line: a user's mistake is one plain line and exit code 2."""
    try:
        app()
    except UserError as error:
        err_console.print(
            f"[bold red]error:[/] {_escape(str(error))}", soft_wrap=True, highlight=False
        )
        sys.exit(2)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "adalora_qat":
            raise
        err_console.print(
            f"[bold red]error:[/] this command needs {error.name}, which is not installed; run "
            "pip install 'adalora-qat\\[train]'",
            soft_wrap=True,
        )
        sys.exit(2)


def _escape(text: str) -> str:
    return text.replace("[", "\\[")
