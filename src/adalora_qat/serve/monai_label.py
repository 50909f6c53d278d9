"""The dialect of MONAI Label, so that its clients (3D Slicer's module among them) work unchanged.

Images and labels that clients send are kept in memory, as sessions are; there is no training.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from adalora_qat import __version__
from adalora_qat.imaging.memory_file import MemoryFile
from adalora_qat.runtime.opened import OpenImage
from adalora_qat.runtime.result import Result
from adalora_qat.serve.answers import to_json
from adalora_qat.serve.api import Service
from adalora_qat.serve.asked import Asked
from adalora_qat.serve.refusal import Refusal
from adalora_qat.serve.sessions import Session
from adalora_qat.serve.uploads import Form
from adalora_qat.serve.volumes import is_volume, mask_like, read_plane

_STORED = "stored:"
_POINTS = "-points"
_MOST_LABELS = 64


class _Store:
    """Images by the names that clients give them, and the labels that they sent back."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.volumes: dict[str, bytes] = {}
        self.labels: dict[tuple[str, str], MemoryFile] = {}

    def opened(self, file: MemoryFile) -> OpenImage:
        """Open an image: a picture, DICOM, or a volume of one slice."""
        if not is_volume(file.data):
            return self.service.opened(file)
        limit = self.service.settings.max_pixels
        return self.service.model.open(read_plane(file.data, limit), max_pixels=limit)

    def keep(self, key: str, file: MemoryFile, image: OpenImage) -> Session:
        """Keep an image open under a key, and of a volume where in space it lies."""
        session = self.service.sessions.add(file.name, image, key)
        self.volumes = {k: v for k, v in self.volumes.items() if k in self.service.sessions}
        if is_volume(file.data):
            self.volumes[session.id] = file.data
        return session

    def find(self, image: str, session: str) -> Session:
        """Return an open image by a client's name for it, or by its session."""
        return self.service.sessions.get(session or _STORED + image)


def monai_routes(service: Service) -> APIRouter:
    """Return the routes that MONAI Label's clients call."""
    router = APIRouter(tags=["MONAI Label"])
    store, line, intake = _Store(service), service.line, service.intake
    name = service.model.name

    @router.get("/info/")
    async def info() -> dict[str, Any]:
        """Say what there is: models, labels, strategies."""
        return _info(service)

    @router.put("/session/")
    async def open_session(request: Request) -> dict[str, Any]:
        """Keep an image open."""
        line.check()
        async with intake.form(request) as form:
            file = _file_of(form, "files", "file")
            image = await line.run(lambda: store.opened(file))
            session = store.keep(secrets.token_urlsafe(18), file, image)
        return _session(session, service)

    @router.get("/session/{key}")
    async def get_session(key: str) -> dict[str, Any]:
        """Say what an open image is."""
        return _session(service.sessions.get(key), service)

    @router.delete("/session/{key}")
    async def end_session(key: str) -> dict[str, Any]:
        """Forget an image."""
        service.sessions.remove(key)
        return {}

    @router.put("/datastore/")
    async def store_image(request: Request, image: str = "") -> dict[str, str]:
        """Keep an image open under a client's name for it."""
        line.check()
        async with intake.form(request) as form:
            file = _file_of(form, "file", "files")
            key = image or file.name
            opened = await line.run(lambda: store.opened(file))
            store.keep(_STORED + key, file, opened)
        return {"image": key}

    @router.get("/datastore/")
    async def stored(output: str = "") -> dict[str, Any]:
        """List the images that are open, and the labels that were sent for them."""
        keys = [key.removeprefix(_STORED) for key in service.sessions.keys(_STORED)]
        if output != "all":
            done = sum(any(image == key for image, _ in store.labels) for key in keys)
            return {"total": len(keys), "completed": done}
        labels: dict[str, dict[str, Any]] = {
            key: {tag: {} for image, tag in store.labels if image == key} for key in keys
        }
        return {"objects": {key: {"labels": labels[key]} for key in keys}}

    @router.put("/datastore/label")
    async def store_label(request: Request, image: str = "", tag: str = "") -> dict[str, str]:
        """Keep a corrected label, until the server ends."""
        service.sessions.get(_STORED + image)
        async with intake.form(request) as form:
            file = _file_of(form, "label", "file")
        store.labels.pop((image, tag), None)
        store.labels[image, tag or "final"] = file
        while len(store.labels) > _MOST_LABELS:
            store.labels.pop(next(iter(store.labels)))
        return {"label": image}

    @router.get("/datastore/label")
    async def stored_label(label: str, tag: str = "") -> Response:
        """Give a corrected label back."""
        file = store.labels.get((label, tag or "final"))
        if file is None:
            raise Refusal(404, "no_such_label", "no label was sent for this image")
        return Response(file.data, media_type="application/octet-stream")

    @router.post("/activelearning/{strategy}")
    async def next_image(strategy: str) -> dict[str, str]:
        """Name an image without a label; nothing if there is none."""
        del strategy  # one order serves all
        keys = [key.removeprefix(_STORED) for key in service.sessions.keys(_STORED)]
        waiting = [key for key in keys if not any(image == key for image, _ in store.labels)]
        return {"id": waiting[0], "weight": "1"} if waiting else {}

    @router.get("/train/")
    @router.post("/train/", include_in_schema=False)
    @router.delete("/train/", include_in_schema=False)
    async def train() -> Response:
        """Say that nothing is trained here."""
        raise Refusal(404, "no_training", "this server trains nothing; see `adalora-qat train`")

    @router.post("/infer/{model}")
    async def infer(
        model: str, request: Request, image: str = "", session_id: str = "", output: str = ""
    ) -> Response:
        """Segment an image: a form with ``params`` and the label as a volume, or JSON."""
        if model not in (name, name + _POINTS):
            raise Refusal(404, "no_such_model", f"there is no model {model!r}; see /info/")
        line.check()
        async with intake.form(request) as form:
            given, file = form.json("params"), form.files.get("file")
            params = {} if given is None else given
            if not isinstance(params, dict):
                raise Refusal(422, "bad_field", "params: give a JSON object")
            asked = _asked(params, service) if model.endswith(_POINTS) else Asked()

            def work() -> Response:
                if file is None:
                    session = store.find(image, session_id)
                    opened, volume = session.image, store.volumes.get(session.id)
                else:
                    opened = store.opened(file)
                    volume = file.data if is_volume(file.data) else None
                return _answer(asked.answered(opened), params, output, volume)

            return await line.run(work)

    return router


def _info(service: Service) -> dict[str, Any]:
    model = service.model
    labels = {name: number for number, name in enumerate(_labels(service), start=1)}
    about = {"labels": labels, "dimension": 2, "config": {"result_extension": ".nii.gz"}}
    words = f"{model.metadata.variant}, {model.metadata.policy}"
    models = {model.name: {**about, "type": "segmentation", "description": words}}
    if model.takes_points:
        prompts = {**about, "type": "deepgrow", "description": f"{words}, by points or a box"}
        models[model.name + _POINTS] = prompts
    return {
        "name": "adalora-qat",
        "description": "Chest radiographs. Research software, not a medical device.",
        "version": __version__,
        "labels": [*labels],
        "models": models,
        "trainers": {},
        "strategies": {"first": {"description": "the first image without a label"}},
        "scoring": {},
        "train_stats": {},
        "datastore": {"total": len(service.sessions.keys(_STORED)), "completed": 0},
        "config": {},
    }


def _labels(service: Service) -> list[str]:
    return list(service.model.metadata.structures) or ["object"]


def _session(session: Session, service: Service) -> dict[str, Any]:
    return {
        "session_id": session.id,
        "image": session.name,
        "name": session.name,
        "expiry": int(service.settings.session_seconds),
        "meta": {},
    }


def _file_of(form: Form, *names: str) -> MemoryFile:
    for name in names:
        if name in form.files and form.files[name].data:
            return form.files[name]
    raise Refusal(422, "no_image", f"the form has no file in its field {names[0]!r}")


def _asked(params: dict[str, Any], service: Service) -> Asked:
    """Read points as lists of [x, y, z], and a box as [x0, x1, y0, y1, z0, z1]."""
    points, labels = [], []
    for key, label in (("foreground", 1), ("background", 0)):
        for place in params.get(key) or []:
            if not isinstance(place, list) or len(place) < 2:
                raise Refusal(422, "bad_field", f"{key}: give a list of [x, y, z]")
            points.append(place[:2])
            labels.append(label)
    given: dict[str, Any] = {}
    if points:
        given = {"points": points, "labels": labels}
    roi = params.get("roi")
    if isinstance(roi, list) and len(roi) >= 4:
        given["box"] = [roi[0], roi[2], roi[1], roi[3]]
    return Asked.of_json(given, service.settings)


def _answer(result: Result, params: dict[str, Any], output: str, volume: bytes | None) -> Response:
    values = label_values(result)
    facts = {**to_json(result, "none"), "label_names": _names(result)}
    if output == "json":
        return Response(json.dumps(facts), media_type="application/json")
    extension = str(params.get("result_extension") or ".nii.gz")
    data = mask_like(values, volume, extension)
    if output == "image":
        return Response(data, media_type="application/octet-stream")
    boundary = secrets.token_hex(16)
    parts = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\n'
        f"Content-Type: application/json\r\n\r\n{json.dumps(facts)}\r\n"
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; '
        f'filename="label{extension}"\r\nContent-Type: application/octet-stream\r\n\r\n'
    )
    body = parts.encode() + data + f"\r\n--{boundary}--\r\n".encode()
    return Response(body, media_type=f"multipart/form-data; boundary={boundary}")


def label_values(result: Result) -> NDArray[np.uint8]:
    """Return (H, W): k in the k-th structure, the last where they overlap."""
    values = np.zeros(result.mask.shape, np.uint8)
    names = list(_names(result))
    for index, mask in enumerate(result.masks):
        structure = result.structures[index] if result.structures else "object"
        values[mask] = names.index(structure) + 1
    return values


def _names(result: Result) -> dict[str, int]:
    names = dict.fromkeys(result.structures or ("object",))
    return {name: number for number, name in enumerate(names, start=1)}
