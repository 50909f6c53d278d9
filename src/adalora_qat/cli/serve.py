"""Commands that put the model where people look: a server with a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adalora_qat.cli.app import app, err_console, out_console
from adalora_qat.errors import ConfigError


@app.command()
def serve(
    model: Annotated[
        Path | None,
        typer.Option("--model", help="An exported ONNX file; the packaged model if left."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than loopback need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes any that is free.")] = 8765,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with the token that requests must carry.")
    ] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="Another web page that may ask; may be repeated.")
    ] = None,
    max_bytes: Annotated[int, typer.Option(help="Largest body of a request.")] = 64_000_000,
    max_pixels: Annotated[int, typer.Option(help="Largest image.")] = 40_000_000,
    seconds: Annotated[float, typer.Option(help="Longest time of a request.")] = 60,
    waiting: Annotated[
        int, typer.Option(help="Requests that may wait; further ones are told 503.")
    ] = 16,
    workers: Annotated[int, typer.Option(help="Requests worked on at once.")] = 2,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all by default.")] = None,
) -> None:
    """Serve the model: a page at /, an HTTP interface at /v1, listed at /docs.

    Nothing of an image is written to a disk or a log. Ctrl+C, or the signal TERM, ends the server
    when what it accepted is done.
    """
    from adalora_qat.runtime.model import load
    from adalora_qat.serve.run import serve as run
    from adalora_qat.serve.settings import Settings

    settings = Settings(
        host=host,
        port=port,
        token=None if token_file is None else _token(token_file),
        origins=tuple(one.rstrip("/") for one in origin or ()),
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        seconds=seconds,
        waiting=waiting,
        workers=workers,
    )
    loaded = load(model, threads=threads)

    def started(address: str) -> None:
        out_console.print(f"{loaded.name} at {address}", markup=False, highlight=False)
        err_console.print("research software, not a medical device", style="dim")

    run(loaded, settings, started)


def _token(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token's file {file} cannot be read ({error})") from error


@app.command()
def web(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the site.")],
    model: Annotated[
        Path | None,
        typer.Option("--model", help="An exported ONNX file; the packaged model if left."),
    ] = None,
) -> None:
    """Write the page as a static site: the model runs in the browser, and no image leaves it.

    Open index.html from the disk, or put the folder on any host.
    """
    from adalora_qat.runtime.model import load
    from adalora_qat.runtime.packaged import MODEL, weights_folder
    from adalora_qat.serve.static_site import site_bytes, write_site

    loaded = load(model)
    files = write_site(loaded, model or weights_folder() / MODEL, out)
    size = site_bytes(files) / 1e6
    out_console.print(
        f"{out / 'index.html'}: {loaded.name}, {size:.1f} MB to load (compressed)",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
