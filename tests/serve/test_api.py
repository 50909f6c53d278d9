"""The HTTP interface, by requests to a server that runs."""

import base64
import io
import json
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from adalora_qat.imaging.memory_file import MemoryFile
from adalora_qat.runtime.model import Model

BOX = [20.0, 20.0, 230.0, 230.0]


def mask_of(rle: dict[str, list[int]]) -> np.ndarray:
    """Decode COCO's runs."""
    counts = rle["counts"]
    values = np.repeat(np.arange(len(counts)) % 2, counts)
    return values.reshape(rle["size"], order="F").astype(bool)


def post(
    client: httpx.Client, data: bytes, name: str = "a.png", **fields: object
) -> httpx.Response:
    texts = {key: v if isinstance(v, str) else json.dumps(v) for key, v in fields.items()}
    return client.post("/v1/segment", files={"image": (name, data)}, data=texts)


@pytest.mark.parametrize("fields", [{}, {"boxes": [BOX]}, {"boxes": [BOX, [0, 0, 128, 256]]}])
def test_masks_are_the_librarys(
    client: httpx.Client, model: Model, png: bytes, fields: dict[str, object]
) -> None:
    answer = post(client, png, **fields)
    assert answer.status_code == 200
    expected = model(MemoryFile("a.png", png), **fields)
    given = answer.json()
    masks = np.stack([mask_of(one["rle"]) for one in given.pop("masks")])
    assert np.array_equal(masks, expected.masks)
    assert {**given, "seconds": 0} == {**json.loads(json.dumps(expected.to_json())), "seconds": 0}


def test_points(client: httpx.Client, model: Model, png: bytes) -> None:
    answer = post(client, png, points=[[80, 120], [128, 128]], labels=[1, 0])
    if model.takes_points:
        expected = model(MemoryFile("a.png", png), points=[[80, 120], [128, 128]], labels=[1, 0])
        assert np.array_equal(mask_of(answer.json()["masks"][0]["rle"]), expected.masks[0])
    else:
        assert (answer.status_code, answer.json()["error"]) == (422, "unusable")


def test_masks_as_png(client: httpx.Client, model: Model, png: bytes) -> None:
    (mask,) = post(client, png, boxes=[BOX], masks="png").json()["masks"]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(mask["png"]))))
    assert np.array_equal(pixels > 0, model(MemoryFile("a.png", png), box=BOX).mask)


def test_files_are_those_that_the_library_saves(
    client: httpx.Client, model: Model, png: bytes, tmp_path: Path
) -> None:
    model(MemoryFile("a.png", png)).save(tmp_path, write=("mask", "overlay", "contours", "json"))
    for kind, name in (
        ("mask", "a_mask.png"),
        ("overlay", "a_overlay.png"),
        ("contours", "a.geojson"),
    ):
        answer = post(client, png, answer=kind)
        assert answer.content == (tmp_path / name).read_bytes()
        assert f'filename="{name}"' in answer.headers["content-disposition"]
    packed = zipfile.ZipFile(io.BytesIO(post(client, png, answer="zip").content))
    assert {"a_mask.png", "a_overlay.png", "a.geojson", "a.json"} <= set(packed.namelist())


def test_dicom_and_its_spacing(client: httpx.Client, model: Model, dicom: Path) -> None:
    answer = post(client, dicom.read_bytes(), "anything")
    assert np.array_equal(mask_of(answer.json()["masks"][0]["rle"]), model(dicom).masks[0])
    opened = client.post("/v1/sessions", files={"image": ("p.dcm", dicom.read_bytes())}).json()
    assert opened["spacing_mm"] == [1.1, 1.1]


def test_dicom_objects(client: httpx.Client, dicom: Path, png: bytes) -> None:
    pydicom = pytest.importorskip("pydicom")
    answer = post(client, dicom.read_bytes(), "p.dcm", answer="dicom")
    assert answer.status_code == 200
    packed = zipfile.ZipFile(io.BytesIO(answer.content))
    made = {name: pydicom.dcmread(io.BytesIO(packed.read(name))) for name in packed.namelist()}
    assert made["SEG.dcm"].Modality == "SEG"
    study = pydicom.dcmread(dicom).StudyInstanceUID
    assert all(each.StudyInstanceUID == study for each in made.values())
    assert post(client, png, answer="dicom").json()["error"] == "no_dicom"


def test_a_session(client: httpx.Client, model: Model, png: bytes) -> None:
    opened = client.post("/v1/sessions", files={"image": ("b.png", png)})
    assert opened.status_code == 201
    place = opened.headers["location"]
    assert client.get(f"{place}/files/mask").status_code == 409
    answer = client.post(f"{place}/segment", json={"box": BOX})
    expected = model(MemoryFile("b.png", png), box=BOX)
    assert np.array_equal(mask_of(answer.json()["masks"][0]["rle"]), expected.masks[0])
    assert client.get(f"{place}/files/json").json()["box"] == expected.to_json()["box"]
    pixels = client.get(f"{place}/pixels?side=256")
    width, height, bits = map(int, pixels.headers["x-image"].split(","))
    assert (width, height, bits) == (256, 256, 8)
    given = np.frombuffer(pixels.content, np.uint8).reshape(height, width)
    assert np.array_equal(given, np.asarray(Image.open(io.BytesIO(png))))
    assert client.delete(place).status_code == 204
    assert client.post(f"{place}/segment", json={}).json()["error"] == "no_such_session"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"boxes": "[[1,2"}, "not JSON"),
        ({"boxes": [[1, 2, 3]]}, "4 finite numbers"),
        ({"boxes": "[[NaN,0,1,1]]"}, "finite numbers"),
        ({"boxes": [[200, 0, 100, 10]]}, "reversed"),
        ({"boxes": [BOX] * 65}, "at most 64"),
        ({"points": [[1]]}, "2 finite numbers"),
        ({"masks": "svg"}, "rle, png, none"),
        ({"answer": "exe"}, "give one of"),
        ({"spacing": [0, 0]}, "two positive numbers"),
    ],
)
def test_what_cannot_be_asked(
    client: httpx.Client, png: bytes, fields: dict[str, object], words: str
) -> None:
    answer = post(client, png, **fields)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]


def test_what_is_no_image(client: httpx.Client, png: bytes) -> None:
    for data, words in ((b"", "no file"), (b"hello", "not an image"), (png[:300], "a.png")):
        answer = post(client, data)
        assert answer.status_code == 422
        assert words in answer.json()["detail"]
    assert client.post("/v1/segment", content=b"{}").status_code == 415
    assert client.post(
        "/v1/segment", content=b"x", headers={"content-type": "multipart/form-data; boundary=b"}
    ).status_code in (400, 422)


def test_what_it_says_of_itself(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").status_code == 200
    (model,) = client.get("/v1/models").json()["models"]
    assert model["limits"]["max_boxes"] == 64
    text = client.get("/metrics").text
    assert 'adalora_qat_requests_total{method="GET",route="/healthz",status="200"}' in text
    paths = client.get("/openapi.json").json()["paths"]
    assert "image" in json.dumps(paths["/v1/segment"]["post"]["requestBody"])
    assert "/v1/segment" in client.get("/docs").text
