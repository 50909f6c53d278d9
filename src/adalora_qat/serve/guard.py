"""Who may ask: token, host and origin; and the headers of every answer.

A page of another site can make a browser send requests to this machine, and with a name of its
own that resolves here it could even read the answers. Hence the checks of Origin and Host.
"""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adalora_qat.serve.refusal import Refusal
from adalora_qat.serve.settings import Settings

# The page itself, without which nobody could enter a token, and what watches the process.
OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/favicon.ico"})
_OPEN_FOLDERS = ("/assets/",)
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_LONGEST_AGE = "600"


class Guard:
    """Middleware: refuses whoever may not ask, answers preflights, sets headers.

    Parameters
    ----------
    app : what is guarded.
    settings : ``token``, ``origins`` and ``host``.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; see ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        foreign = origin is not None and not self._is_own(origin, headers.get("host", ""))
        allowed = origin is not None and origin in self._settings.origins

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                made = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    made.setdefault(name, value)
                made.setdefault("Cache-Control", "no-store")
                if allowed and origin is not None:
                    made["Access-Control-Allow-Origin"] = origin
                    made["Access-Control-Expose-Headers"] = "Location, Retry-After"
                    made["Cross-Origin-Resource-Policy"] = "cross-origin"
                made.add_vary_header("Origin")
            await send(message)

        try:
            self._check_host(headers.get("host", ""))
            if foreign and not allowed:
                self._refuse_origin(scope["method"])
            elif allowed and scope["method"] == "OPTIONS":
                await _preflight()(scope, receive, guarded)
                return
            self._check_token(scope["path"], headers.get("authorization", ""))
        except Refusal as refusal:
            await refusal.response()(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)

    def _is_own(self, origin: str, host: str) -> bool:
        return urlsplit(origin).netloc.lower() == host.lower() != ""

    def _check_host(self, host: str) -> None:
        """Refuse names that a stranger made resolve to this machine."""
        if self._settings.is_local and not _is_loopback(host):
            raise Refusal(421, "wrong_host", "this server answers to localhost only")

    def _refuse_origin(self, method: str) -> None:
        # Reading is refused by the browser, for want of a header that allows it.
        if method not in _SAFE:
            raise Refusal(403, "foreign_origin", "pages of this origin may not ask; see --origin")

    def _check_token(self, path: str, authorization: str) -> None:
        token = self._settings.token
        if token is None or path in OPEN_PATHS or path.startswith(_OPEN_FOLDERS):
            return
        scheme, _, given = authorization.partition(" ")
        same = hmac.compare_digest(given.strip().encode(), token.encode())
        if scheme.lower() != "bearer" or not same:
            raise Refusal(
                401,
                "no_token",
                "send the server's token as `Authorization: Bearer …`",
                {"WWW-Authenticate": "Bearer"},
            )


def _preflight() -> Response:
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE",
            "Access-Control-Allow-Headers": "Authorization, Content-Type",
            "Access-Control-Max-Age": _LONGEST_AGE,
        },
    )


def _is_loopback(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
