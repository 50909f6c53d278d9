"""Commands that take and give DICOM: a folder, a node, an archive's web interface."""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adalora_qat.cli.app import Json, app, err_console, out_console, print_json
from adalora_qat.cli.log_lines import watching_or_logging
from adalora_qat.cli.segment import stopping
from adalora_qat.errors import ConfigError

if TYPE_CHECKING:
    from adalora_qat.dicom.folder import Outcome

Objects = Annotated[str, typer.Option("--objects", help="Of SEG, SR, SC and GSPS.")]
ModelFile = Annotated[
    Path | None, typer.Option("--model", help="An exported ONNX file; the packaged one if left.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; all by default.")]


@app.command()
def dicom(
    source: Annotated[
        Path | None,
        typer.Argument(metavar="IN", help="Folder, DICOMDIR, zip or file; else MERCURE_IN_DIR."),
    ] = None,
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="Folder to write; else MERCURE_OUT_DIR.")
    ] = None,
    objects: Objects = "SEG,SR,SC",
    model: ModelFile = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Segment DICOM radiographs: SEG, SR, SC and GSPS objects for each, and result.json.

    Images that are no frontal chest radiographs are refused with a reason; the exit code is then
    still 0, as they were answered. Without arguments the folders are those that mercure names.
    """
    from adalora_qat.dicom.answer import Answering
    from adalora_qat.dicom.folder import answer_folder
    from adalora_qat.dicom.objects import checked_kinds
    from adalora_qat.runtime.model import load

    mercure = source is None
    source, out = source or _folder("MERCURE_IN_DIR"), out or _folder("MERCURE_OUT_DIR")
    kinds = checked_kinds(objects.split(","))
    loaded = load(model, threads=threads)
    with stopping() as signals, watching_or_logging() as watch:
        outcome = answer_folder(
            source,
            out,
            lambda reports: Answering(loaded, kinds, reports),
            mercure_names=mercure,
            progress=watch.progress,
            stop=lambda: bool(signals),
        )
    _say(outcome, out, as_json)
    if outcome.stopped:
        raise typer.Exit(128 + signals[0])


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        raise ConfigError(f"give the folders IN and OUT, or set {variable}")
    return Path(value)


def _say(outcome: Outcome, out: Path, as_json: bool) -> None:
    for one in outcome.refused:
        err_console.print(f"refused: {one['image']}: {one['reason']}", style="yellow", markup=False)
    if as_json:
        print_json({"images": outcome.images, "refused": outcome.refused})
        return
    line = f"{len(outcome.images)} images answered into {out}, {len(outcome.refused)} refused"
    out_console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def node(
    folder: Annotated[Path, typer.Option("--journal", help="Folder that survives restarts.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 11112,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    title: Annotated[str, typer.Option(help="The node's own AE title.")] = "ADALORA_QAT",
    forward: Annotated[
        str | None, typer.Option(help="AET@host:port to send results to; kept if left.")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="AE title that may call; anybody if left. Repeatable.")
    ] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of GET /metrics.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain: listen by TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Key of the certificate.")] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(help="Who signs callers, who must show a certificate, and whom is sent to."),
    ] = None,
    forward_tls: Annotated[bool, typer.Option("--forward-tls", help="Send by TLS.")] = False,
    objects: Objects = "SEG,SR,SC",
    model: ModelFile = None,
    threads: Threads = None,
) -> None:
    """Run a DICOM node: C-STORE of radiographs in, result objects out.

    An image is acknowledged once it is on the disk. What cannot be sent is kept and tried again,
    later and later; what was answered before is not answered again. Stop it with Ctrl-C or SIGTERM.
    """
    from adalora_qat.dicom.answer import Answering
    from adalora_qat.dicom.node import Listening, Node, metrics_server
    from adalora_qat.dicom.objects import checked_kinds
    from adalora_qat.dicom.send import Destination
    from adalora_qat.runtime.model import load

    kinds = checked_kinds(objects.split(","))
    destination = None if forward is None else Destination.parse(forward)
    how = Listening(
        host=host,
        port=port,
        title=title,
        allowed=tuple(allow or ()),
        tls=_listening_tls(tls_cert, tls_key, tls_ca),
        forward_tls=ssl.create_default_context(cafile=tls_ca) if forward_tls else None,
    )
    _log_own_lines()
    running = Node(Answering(load(model, threads=threads), kinds), folder, destination, how)
    with stopping() as signals, running.running(), contextlib.ExitStack() as stack:
        if metrics_port is not None:
            stack.enter_context(metrics_server(running, host, metrics_port))
        out_console.print(f"{title} listens on {host}:{port}", markup=False, highlight=False)
        said: dict[str, int] = {}
        while not signals:
            time.sleep(0.5)
            if (counts := running.counts()) != said:
                said = counts
                words = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in counts.items())
                err_console.print(words, markup=False, highlight=False, soft_wrap=True)


def _listening_tls(cert: Path | None, key: Path | None, ca: Path | None) -> ssl.SSLContext | None:
    if cert is None:
        return None
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca)
        context.load_cert_chain(cert, key)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"--tls-cert {cert}: {error}; give PEM files of a pair") from error
    if ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _log_own_lines() -> None:
    """Show this package's log; the libraries' lines and warnings hold names of patients."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    for name in ("pydicom", "pynetdicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    logging.getLogger("adalora_qat.node").setLevel(logging.INFO)
