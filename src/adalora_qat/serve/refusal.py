"""What a client is told when a request is refused."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse


class Refusal(Exception):  # noqa: N818  # an answer, not a fault
    """A request that is not served.

    Parameters
    ----------
    status : of HTTP.
    code : a word for programs.
    detail : what was given and what to change.
    headers : to send along.
    """

    def __init__(
        self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """Return the answer."""
        body = {"error": self.code, "detail": self.detail}
        return JSONResponse(body, self.status, {**self.headers, "Cache-Control": "no-store"})
