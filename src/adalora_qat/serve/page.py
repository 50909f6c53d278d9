"""The page and what it loads, and a page that lists the interface."""

from __future__ import annotations

from html import escape
from importlib import resources
from pathlib import Path

from fastapi import APIRouter, FastAPI, Response

from adalora_qat.serve.refusal import Refusal

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_ABSENT = (
    "the page is not built: run `make web` (it needs npm), or install a wheel, which holds it; "
    "the interface works without it"
)
_LIST = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>adalora-qat: interface</title><link rel="stylesheet" href="/assets/docs.css">
<main><h1>Interface</h1><p>{about} The same as data: <a href="/openapi.json">openapi.json</a>.</p>
{rows}</main></html>"""
_ROW = (
    '<section><h2><span class="verb">{verb}</span> <code>{path}</code></h2>'
    "<p>{words}</p>{fields}</section>"
)


def built_page() -> Path:
    """Return the folder of the built page, there or not."""
    return Path(str(resources.files("adalora_qat").joinpath("serve", "built")))


def page_routes(app: FastAPI) -> APIRouter:
    """Return the routes of the page: ``/``, its assets, and ``/docs``."""
    router = APIRouter(include_in_schema=False)
    folder = built_page()
    # Listed once: what a request names is looked up, never opened.
    files = {file.name: file for file in folder.glob("*") if file.suffix in TYPES}

    @router.get("/")
    async def page() -> Response:
        return _file("index.html")

    @router.get("/assets/{name}")
    async def asset(name: str) -> Response:
        return _file(name)

    @router.get("/docs")
    async def docs() -> Response:
        return Response(_listed(app), media_type=TYPES[".html"])

    @router.get("/favicon.ico")
    async def icon() -> Response:
        return _file("icon.svg")

    def _file(name: str) -> Response:
        file = files.get(name)
        if file is None:
            raise Refusal(
                404, "no_page" if not files else "not_found", _ABSENT if not files else name
            )
        return Response(file.read_bytes(), media_type=TYPES[file.suffix])

    return router


def _listed(app: FastAPI) -> str:
    schema = app.openapi()
    rows = []
    for path, verbs in schema["paths"].items():
        for verb, what in verbs.items():
            content = what.get("requestBody", {}).get("content", {})
            fields = [
                f"<dt><code>{escape(name)}</code></dt><dd>{escape(_words(one))}</dd>"
                for kind in content.values()
                for name, one in kind["schema"].get("properties", {}).items()
            ]
            listed = f"<dl>{''.join(fields)}</dl>" if fields else ""
            words = escape(what.get("description", what.get("summary", "")))
            rows.append(
                _ROW.format(verb=verb.upper(), path=escape(path), words=words, fields=listed)
            )
    return _LIST.format(about=escape(schema["info"]["description"]), rows="\n".join(rows))


def _words(field: dict[str, object]) -> str:
    choices = field.get("enum")
    return (
        f"one of {', '.join(choices)}"
        if isinstance(choices, list)
        else str(field.get("description", ""))
    )
