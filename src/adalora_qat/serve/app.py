"""The application: routes, errors, guard and page put together."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from adalora_qat import __version__
from adalora_qat.errors import DataError
from adalora_qat.runtime.model import Model
from adalora_qat.serve.api import Service, routes
from adalora_qat.serve.guard import Guard
from adalora_qat.serve.measured import Measured
from adalora_qat.serve.monai_label import monai_routes
from adalora_qat.serve.page import page_routes
from adalora_qat.serve.refusal import Refusal
from adalora_qat.serve.settings import Settings

_log = logging.getLogger(__name__)
_ABOUT = (
    "Segments chest radiographs. Research software, not a medical device. Nothing of an image is "
    "written to a disk or a log."
)


def create_app(model: Model, settings: Settings) -> FastAPI:
    """Return the application, to be run by any ASGI server.

    Parameters
    ----------
    model : what segments; it is run once at the start.
    settings : limits, and who may ask.
    """
    service = Service(model, settings)
    ready = False

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal ready
        model.warm_up()
        ready = True
        yield
        ready = False
        service.line.close()

    app = FastAPI(
        title="adalora-qat",
        version=__version__,
        description=_ABOUT,
        # The usual pages load their scripts from elsewhere; ``page`` has one of its own.
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    measured = Measured(service.line, service.sessions, service.intake)

    @app.get("/healthz", tags=["operation"])
    async def healthz() -> dict[str, str]:
        """Say that the process is alive."""
        return {"status": "alive"}

    @app.get("/readyz", tags=["operation"])
    async def readyz() -> dict[str, str]:
        """Say whether requests would be taken now."""
        if not ready:
            raise Refusal(503, "not_ready", "the model is being loaded", {"Retry-After": "1"})
        service.line.check()
        return {"status": "ready"}

    @app.get("/metrics", tags=["operation"])
    async def metrics() -> Response:
        """Give counters for Prometheus."""
        return Response(measured.text(), media_type="text/plain; version=0.0.4")

    app.include_router(routes(service))
    app.include_router(monai_routes(service))
    app.include_router(page_routes(app))
    _answer_errors(app)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(measured.middleware)
    return app


def _answer_errors(app: FastAPI) -> None:
    """Say of every error what it is, in one form."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> Response:
        return error.response()

    @app.exception_handler(DataError)
    async def unusable(_: Request, error: DataError) -> Response:
        return Refusal(422, "unusable", str(error)).response()

    @app.exception_handler(MemoryError)
    async def too_large(_: Request, __: MemoryError) -> Response:
        return Refusal(413, "too_large", "the image does not fit in memory").response()

    @app.exception_handler(HTTPException)
    async def plain(_: Request, error: HTTPException) -> Response:
        return Refusal(
            error.status_code, "http", str(error.detail), error.headers or None
        ).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return Refusal(422, "bad_field", f"{first['loc'][-1]}: {first['msg']}").response()

    @app.exception_handler(Exception)
    async def fault(_: Request, error: Exception) -> Response:
        # The kind alone: a message may hold something of the image.
        _log.error("fault: %s", type(error).__name__)
        return Refusal(500, "fault", "a fault of the server; please report it").response()
