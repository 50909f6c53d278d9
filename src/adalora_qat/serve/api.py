"""The HTTP interface: one image in one request, or a session of many prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from adalora_qat.dicom.source import Source
from adalora_qat.imaging.geometry import FrameMap, resize_grey, to_grey
from adalora_qat.imaging.memory_file import MemoryFile
from adalora_qat.runtime.model import Model
from adalora_qat.runtime.opened import OpenImage
from adalora_qat.runtime.result import Result
from adalora_qat.serve.answers import FILES, file_of, to_json
from adalora_qat.serve.asked import Asked, spacing_of
from adalora_qat.serve.dicom_files import source_of
from adalora_qat.serve.line import Line
from adalora_qat.serve.refusal import Refusal
from adalora_qat.serve.sessions import Session, Sessions
from adalora_qat.serve.settings import Settings
from adalora_qat.serve.uploads import Form, Intake

_PROMPT: Mapping[str, Mapping[str, Any]] = {
    "boxes": {"description": "[[x0, y0, x1, y1], …] in pixels of the image, as JSON"},
    "points": {"description": "[[x, y], …] on one object or beside it, as JSON"},
    "labels": {"description": "[1, 0, …]: 1 on the object, 0 beside it; all 1 if left out"},
    "masks": {"enum": ["rle", "png", "none"], "default": "rle"},
}
_FORM = {
    "image": {"type": "string", "format": "binary", "description": "PNG, JPEG, TIFF, DICOM …"},
    "spacing": {"type": "string", "description": "[row, column] size of a pixel in mm, as JSON"},
}


def _documented(kind: str, properties: Mapping[str, Any], required: list[str]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": required}
    return {"requestBody": {"content": {kind: {"schema": schema}}}}


_TEXT = {name: {"type": "string", **one} for name, one in _PROMPT.items()}
_ARRAYS = {
    name: one if name == "masks" else {"type": "array", **one} for name, one in _PROMPT.items()
}
_ANSWER = {"answer": {"type": "string", "enum": [*FILES], "default": "json"}}
SEGMENT_FORM = _documented("multipart/form-data", {**_FORM, **_TEXT, **_ANSWER}, ["image"])
SESSION_FORM = _documented("multipart/form-data", _FORM, ["image"])
PROMPT_BODY = _documented("application/json", _ARRAYS, [])


class Service:
    """What the routes share: the model, the line before it, and the open images.

    Parameters
    ----------
    model : what segments.
    settings : limits.
    """

    def __init__(self, model: Model, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.line, self.sessions, self.intake = Line(settings), Sessions(settings), Intake(settings)

    def image_of(self, form: Form, name: str = "image") -> MemoryFile:
        """Return the image of a form.

        Raises
        ------
        Refusal
            422 if there is none.
        """
        file = form.files.get(name)
        if file is None or not file.data:
            raise Refusal(422, "no_image", f"the form has no file in its field {name!r}")
        return file

    def opened(self, file: MemoryFile, spacing_mm: tuple[float, float] | None = None) -> OpenImage:
        """Read an image within the limit of pixels."""
        limit = self.settings.max_pixels
        return self.model.open(file, spacing_mm=spacing_mm, max_pixels=limit)

    def described(self) -> dict[str, Any]:
        """Return what the model is, for a client."""
        metadata = self.model.metadata
        return {
            "name": self.model.name,
            **self.model.described(),
            "structures": list(metadata.structures),
            "takes": ["boxes", "points"] if self.model.takes_points else ["boxes"],
            "automatic_prompt": metadata.automatic_prompt is not False,
            "limits": {
                name: getattr(self.settings, name)
                for name in ("max_bytes", "max_pixels", "max_boxes", "seconds")
            },
        }


def routes(service: Service) -> APIRouter:
    """Return the routes of ``/v1``."""
    router = APIRouter(prefix="/v1", tags=["segmentation"])
    line, sessions, intake = service.line, service.sessions, service.intake

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """Say which model is served, its structures, prompts and limits."""
        return {"models": [service.described()]}

    @router.post("/segment", openapi_extra=SEGMENT_FORM)
    async def segment(request: Request) -> Response:
        """Segment one image; the answer is JSON, or the file that ``answer`` names."""
        line.check()
        async with intake.form(request) as form:
            file, asked = service.image_of(form), Asked.of_form(form, service.settings)
            spacing, kind = spacing_of(form), form.fields.get("answer") or "json"
            if kind not in FILES:
                raise Refusal(422, "bad_field", f"answer={kind!r}: give one of {', '.join(FILES)}")

            def work() -> Response:
                result = asked.answered(service.opened(file, spacing))
                if kind == "json":
                    return _json(result, asked.masks)
                return _file(result, kind, source_of(file) if kind == "dicom" else None)

            return await line.run(work)

    @router.post("/sessions", status_code=201, openapi_extra=SESSION_FORM)
    async def open_session(request: Request) -> Response:
        """Keep an image open, so that prompts after the first cost little."""
        line.check()
        async with intake.form(request) as form:
            file, spacing = service.image_of(form), spacing_of(form)
            image, source = await line.run(lambda: (service.opened(file, spacing), source_of(file)))
            session = sessions.add(file.name, image)
            session.source = source
        place = {"Location": f"/v1/sessions/{session.id}"}
        return Response(
            json.dumps(_described(session, service.settings)), 201, place, "application/json"
        )

    @router.get("/sessions/{key}")
    async def get_session(key: str) -> dict[str, Any]:
        """Say what an open image is."""
        return _described(sessions.get(key), service.settings)

    @router.delete("/sessions/{key}", status_code=204)
    async def end_session(key: str) -> Response:
        """Forget an image."""
        sessions.remove(key)
        return Response(status_code=204)

    @router.post("/sessions/{key}/segment", openapi_extra=PROMPT_BODY)
    async def prompt(key: str, request: Request) -> Response:
        """Segment an open image; an empty object asks for what the model finds itself."""
        line.check()
        session = sessions.get(key)
        async with intake.json(request) as given:
            asked = Asked.of_json(given, service.settings)
        return await line.run(
            lambda: _json(session.remembered(asked.answered(session.image)), asked.masks)
        )

    @router.get("/sessions/{key}/files/{kind}")
    async def file(key: str, kind: str) -> Response:
        """Give a file of the last result, as the command line would have written it."""
        session = sessions.get(key)
        if session.last is None:
            raise Refusal(409, "no_result", "segment the image first")
        result = session.last
        return await line.run(lambda: _file(result, kind, session.source))

    @router.get("/sessions/{key}/pixels")
    async def pixels(key: str, side: Annotated[int, Query(ge=16, le=4096)] = 2048) -> Response:
        """Give the image in grey, row by row, 8 or 16 bits a pixel, little-endian.

        ``X-Image`` says width, height and bits; no side is longer than ``side``.
        """
        session = sessions.get(key)
        return await line.run(lambda: _pixels(session.image, side))

    return router


def _described(session: Session, settings: Settings) -> dict[str, Any]:
    height, width = session.image.pixels.shape[:2]
    spacing = session.image.spacing_mm
    return {
        "id": session.id,
        "name": session.name,
        "width": width,
        "height": height,
        "spacing_mm": None if spacing is None else list(spacing),
        "files": [kind for kind in FILES if kind != "dicom" or session.source is not None],
        "seconds_kept": settings.session_seconds,
    }


def _json(result: Result, masks: str) -> Response:
    return Response(json.dumps(to_json(result, masks)), media_type="application/json")


def _file(result: Result, kind: str, source: Source | None) -> Response:
    data, name = file_of(result, kind, source)
    # Names hold printable characters only; those beyond ASCII go as RFC 6266 says.
    plain = "".join(c if (c.isascii() and c.isalnum()) or c in "._-" else "_" for c in name)
    return Response(
        data,
        media_type=FILES[kind],
        headers={"Content-Disposition": f'attachment; filename="{plain}"'},
    )


def _pixels(image: OpenImage, side: int) -> Response:
    grey = to_grey(image.pixels)
    height, width = grey.shape
    if max(height, width) > side:
        grey = resize_grey(grey, FrameMap(height, width, side))
    small = grey.astype(grey.dtype.newbyteorder("<"), copy=False)
    shape = f"{grey.shape[1]},{grey.shape[0]},{8 * grey.dtype.itemsize}"
    return Response(
        np.ascontiguousarray(small).tobytes(),
        media_type="application/octet-stream",
        headers={"X-Image": shape},
    )
