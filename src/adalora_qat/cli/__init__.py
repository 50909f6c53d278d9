"""The command line: the composition root, and the only room that prints.

Heavy rooms are imported inside the commands that need them, so that ``segment`` starts fast
and works without torch.
"""

from __future__ import annotations

import io
import os
import sys
from typing import NoReturn

from adalora_qat.cli import data, deployment, dicom, evaluation, segment, serve, training
from adalora_qat.cli.app import app, err_console
from adalora_qat.errors import UserError, printable

__all__ = [
    "app",
    "data",
    "deployment",
    "dicom",
    "evaluation",
    "main",
    "segment",
    "serve",
    "training",
]


def main() -> None:
    """Run the command line: a user's mistake is one plain line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        # Under LC_ALL=C a terminal may take ASCII only; no name is worth a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except UserError as error:
        _refuse("\n".join(map(printable, str(error).splitlines())))
    except OSError as error:
        # Those of files name the file; what is left is the stream that results go to.
        if error.filename is not None:
            raise
        # Python would try again at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _refuse(f"standard output cannot be written ({error.strerror}); is its disk full?")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "adalora_qat":
            raise
        err_console.print(
            f"[bold red]error:[/] this command needs {error.name}, which is not installed; run "
            "pip install 'adalora-qat\\[train]'",
            soft_wrap=True,
        )
        sys.exit(2)


def _refuse(message: str) -> NoReturn:
    text = message.replace("[", "\\[")
    err_console.print(f"[bold red]error:[/] {text}", soft_wrap=True, highlight=False)
    sys.exit(2)
