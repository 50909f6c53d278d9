"""What the server tells a monitoring system: counts and times, nothing of any image."""

from __future__ import annotations

from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adalora_qat.serve.line import Line
from adalora_qat.serve.sessions import Sessions
from adalora_qat.serve.uploads import Intake

_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


class Measured:
    """Counters of one server, in a registry of their own.

    Parameters
    ----------
    line, sessions, intake : whose sizes are told.
    """

    def __init__(self, line: Line, sessions: Sessions, intake: Intake) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        name = "adalora_qat"
        self.requests = Counter(
            f"{name}_requests", "Requests answered.", labels, registry=self.registry
        )
        self.seconds = Histogram(
            f"{name}_request_seconds",
            "From a request's head to the end of its answer.",
            ("route",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        for what, words, value in (
            ("accepted", "Requests worked on or waiting.", lambda: line.accepted),
            ("sessions", "Images kept open.", lambda: len(sessions)),
            ("held_bytes", "Bytes of bodies held.", lambda: intake.held),
        ):
            Gauge(f"{name}_{what}", words, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """Return the counters as Prometheus reads them."""
        return generate_latest(self.registry)

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Return an app whose requests are counted."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            started, status = perf_counter(), 500

            async def noting(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await app(scope, receive, noting)
            finally:
                route = getattr(scope.get("route"), "path", "none")
                self.requests.labels(scope["method"][:10], route, str(status)).inc()
                self.seconds.labels(route).observe(perf_counter() - started)

        return counted
