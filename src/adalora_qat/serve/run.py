"""Running the application: one process that ends in order."""

from __future__ import annotations

import logging
import socket
import warnings
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from adalora_qat.errors import UserError
from adalora_qat.runtime.model import Model
from adalora_qat.serve.app import create_app
from adalora_qat.serve.settings import Settings

# In which a new connection must have sent the head of its first request.
_HEAD_SECONDS = 10


class _Hurried(H11Protocol):
    """Closes connections that open and then say nothing."""

    def connection_made(self, transport: Any) -> None:
        """Start the clock of a new connection."""
        super().connection_made(transport)
        self._hurry = self.loop.call_later(_HEAD_SECONDS, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop its clock."""
        self._hurry.cancel()
        super().connection_lost(exc)

    def _close_if_silent(self) -> None:
        if self.cycle is None:
            self.transport.close()


def serve(model: Model, settings: Settings, started: Callable[[str], None]) -> None:
    """Serve until a signal; what was accepted by then is finished.

    Parameters
    ----------
    started : called with the address once the server listens.

    Raises
    ------
    UserError
        If the address cannot be listened at.
    """
    _keep_quiet()
    listening = _listen(settings)
    host, port = listening.getsockname()[:2]
    config = uvicorn.Config(
        create_app(model, settings),
        http=_Hurried,
        log_level="warning",
        # Paths may hold what a client calls its image.
        access_log=False,
        server_header=False,
        date_header=False,
        limit_concurrency=settings.connections,
        timeout_graceful_shutdown=int(settings.seconds) + 1,
        timeout_keep_alive=5,
        lifespan="on",
        ws="none",
    )
    name = f"[{host}]" if ":" in host else host
    server = _Announcing(config, lambda: started(f"http://{name}:{port}/"))
    with listening:
        server.run(sockets=[listening])


def _keep_quiet() -> None:
    """Silence readers of files, whose warnings may quote what a file holds: a name, say."""
    warnings.simplefilter("ignore")
    for name in ("pydicom", "highdicom", "PIL"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class _Announcing(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._started_callback = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then tell."""
        await super().startup(sockets)
        if self.started:
            self._started_callback()


def _listen(settings: Settings) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host, settings.port))
    except OSError as error:
        raise UserError(
            f"cannot listen at {settings.host}, port {settings.port}: {error.strerror or error}; "
            "choose another --port or --host"
        ) from error
    return listening
