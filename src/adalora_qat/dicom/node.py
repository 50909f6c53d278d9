"""A DICOM node: takes radiographs by C-STORE, answers them, sends the answers on.

An image is acknowledged only when it is on the disk. Answering and sending run in threads of
their own and take from the journal, so that they go on after a crash where they were.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pydicom import uid
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt

from adalora_qat.dicom.answer import Answering
from adalora_qat.dicom.journal import Journal
from adalora_qat.dicom.send import Destination, NotSentError, send
from adalora_qat.errors import UserError

log = logging.getLogger("adalora_qat.node")

TAKEN = (
    uid.ComputedRadiographyImageStorage,
    uid.DigitalXRayImageStorageForPresentation,
    uid.DigitalXRayImageStorageForProcessing,
    uid.SecondaryCaptureImageStorage,
)
VERIFICATION = "1.2.840.10008.1.1"
# C-STORE statuses (PS3.4 B.2.3).
_SUCCESS, _OUT_OF_RESOURCES, _CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
# Seconds between attempts to send: doubled from the first to the longest.
_FIRST, _LONGEST = 2.0, 300.0
_IDLE = 0.2
# Bytes of a protocol data unit: callers are told 16 KiB, and a request to associate is not longer.
_LONGEST_UNIT = 1 << 20


@dataclass(frozen=True)
class Listening:
    """How a node listens.

    Attributes
    ----------
    host, port : 127.0.0.1 is reached from this machine alone.
    title : the node's own AE title.
    allowed : AE titles that may call; anybody if empty.
    most : associations at a time; more are told to come again.
    patience_s : until a caller that says nothing is dropped.
    tls, forward_tls : of the listener and of sending; None for plain TCP.
    """

    host: str = "127.0.0.1"
    port: int = 11112
    title: str = "ADALORA_QAT"
    allowed: tuple[str, ...] = ()
    most: int = 25
    patience_s: float = 30.0
    tls: ssl.SSLContext | None = None
    forward_tls: ssl.SSLContext | None = None


class Node:
    """A running node; ``with Node(…).running():``."""

    def __init__(
        self, answering: Answering, folder: Path, forward: Destination | None, how: Listening
    ) -> None:
        self._answering, self._forward, self._how = answering, forward, how
        self._journal = Journal(folder, answering.model_sha256)
        self._counts: Counter[str] = Counter()
        self._stop, self._news, self._results = (threading.Event() for _ in range(3))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Listen and work until the block ends; images at hand are finished first.

        Raises
        ------
        UserError
            If the port cannot be listened on.
        """
        how = self._how
        entity = AE(ae_title=how.title)
        entity.maximum_associations = how.most
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = how.patience_s
        entity.require_called_aet = True
        entity.require_calling_aet = list(how.allowed)
        for sop_class in TAKEN:
            entity.add_supported_context(sop_class, ALL_TRANSFER_SYNTAXES)
        entity.add_supported_context(VERIFICATION)
        handlers = [(evt.EVT_CONN_OPEN, self._bound), (evt.EVT_C_STORE, self._store)]
        try:
            server = entity.start_server(
                (how.host, how.port), block=False, evt_handlers=handlers, ssl_context=how.tls
            )
        except OSError as error:
            raise UserError(
                f"cannot listen on {how.host}:{how.port} ({error.strerror}); choose another port"
            ) from error
        threads = [threading.Thread(target=each) for each in (self._answer_all, self._send_all)]
        for each in threads:
            each.start()
        try:
            yield
        finally:
            server.shutdown()
            self._stop.set()
            self._news.set()
            self._results.set()
            for each in threads:
                each.join()

    def counts(self) -> dict[str, int]:
        """Return what was received, answered, refused, sent and failed, and what waits."""
        waiting = {
            "waiting_to_answer": len(self._journal.waiting()),
            "waiting_to_send": len(self._journal.answered()),
        }
        names = ("received", "repeated", "answered", "refused", "sent", "send_failures")
        return {**{name: self._counts[name] for name in names}, **waiting}

    def metrics(self) -> str:
        """Return the counts as Prometheus reads them."""
        return "".join(f"adalora_qat_node_{k} {v}\n" for k, v in self.counts().items())

    def _bound(self, event: Any) -> None:
        """Bound how long and how much a caller may keep us reading: pynetdicom does not."""
        upper_layer = event.assoc.dul
        upper_layer.artim_timer.timeout = self._how.patience_s
        connection = upper_layer.socket
        connection.socket.settimeout(self._how.patience_s)
        read = connection.recv

        def bounded(count: int) -> bytearray:
            if count > _LONGEST_UNIT:
                raise OSError("a length that nobody was allowed")
            received: bytearray = read(count)
            return received

        connection.recv = bounded

    def _store(self, event: Any) -> int:
        """Take one image: the C-STORE handler."""
        try:
            key = self._journal.key(str(event.request.AffectedSOPInstanceUID))
            data = event.encoded_dataset()
        except Exception:  # a caller can send anything
            self._counts["rubbish"] += 1
            log.warning("refused: what was sent is no data set")
            return _CANNOT_UNDERSTAND
        try:
            new = self._journal.receive(key, data)
        except UserError:
            log.error("the journal cannot be written; is its disk full?")
            return _OUT_OF_RESOURCES
        self._counts["received" if new else "repeated"] += 1
        self._news.set()
        return _SUCCESS

    def _answer_all(self) -> None:
        while not self._stop.is_set():
            self._news.clear()
            keys = self._journal.waiting()
            for key in keys:
                if self._stop.is_set():
                    return
                self._answer(key)
            if not keys:
                self._news.wait(_IDLE * 5)

    def _answer(self, key: str) -> None:
        try:
            answer = self._answering(self._journal.image(key))
            if answer.objects:
                self._journal.keep(key, answer.objects)
                self._counts["answered"] += 1
                self._results.set()
                return
            reason = answer.refusal
        except UserError:
            log.error("results cannot be written; is the disk full?")
            self._stop.wait(_FIRST)
            return
        except Exception as error:  # one image must not stop the node
            reason = f"it could not be answered ({type(error).__name__})"
        self._counts["refused"] += 1
        log.warning("refused: image %s: %s", key[:12], reason)
        self._journal.finish(key, {"refused": reason})

    def _send_all(self) -> None:
        wait = _FIRST
        while not self._stop.is_set():
            self._results.clear()
            keys = self._journal.answered() if self._forward is not None else []
            failed = False
            for key in keys:
                if self._stop.is_set():
                    return
                if failed := not self._sent(key):
                    break
            if failed:
                self._stop.wait(wait)
                wait = min(2 * wait, _LONGEST)
                continue
            wait = _FIRST
            if not keys:
                self._results.wait(_IDLE * 5)

    def _sent(self, key: str) -> bool:
        if self._forward is None:
            return False
        how, paths = self._how, self._journal.objects(key)
        try:
            send(paths, self._forward, how.title, how.forward_tls)
        except NotSentError as error:
            self._counts["send_failures"] += 1
            log.warning("kept: image %s: %s", key[:12], error)
            return False
        self._counts["sent"] += 1
        names = [path.stem for path in paths]
        self._journal.finish(key, {"sent": names, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
        return True


@contextmanager
def metrics_server(node: Node, host: str, port: int) -> Iterator[None]:
    """Answer ``GET /metrics`` with the counts of a node.

    Raises
    ------
    UserError
        If the port cannot be listened on.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            body = node.metrics().encode() if self.path == "/metrics" else b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Write nothing: requests are no news."""

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port} ({error.strerror})") from error
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
