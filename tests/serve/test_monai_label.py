"""The requests of MONAI Label's clients, as they send them, and the answers that they read."""

import gzip
import io
import json
import struct
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from adalora_qat.errors import DataError
from adalora_qat.imaging.memory_file import MemoryFile
from adalora_qat.runtime.model import Model
from adalora_qat.serve.volumes import mask_like, read_plane

LIMIT = "----------lImIt_of_THE_fIle_eW_$"


def multipart(client: httpx.Client, method: str, path: str, fields, files) -> httpx.Response:
    """Send a form as MONAI Label's client builds it: fields, then files."""
    body = b""
    for name, text in fields.items():
        body += (
            f'--{LIMIT}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode()
        )
    for name, (file, data) in files.items():
        head = f'--{LIMIT}\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n'
        body += f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + data + b"\r\n"
    body += f"--{LIMIT}--\r\n\r\n".encode()
    headers = {"content-type": f"multipart/form-data; boundary={LIMIT}"}
    return client.request(method, path, content=body, headers=headers)


def parts(answer: httpx.Response) -> dict[str, bytes]:
    """Read a form that was answered."""
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head + answer.content)
    return {
        str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True)
        for part in message.iter_parts()  # type: ignore[attr-defined]
    }


@pytest.fixture(scope="module")
def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.fixture(scope="module")
def nifti(pixels: np.ndarray) -> bytes:
    """Give the phantom as 3D Slicer saves it: one slice, an affine of its own, 16 bits."""
    image = bytearray(mask_like(pixels, None, ".nii"))
    struct.pack_into("<2h", image, 70, 512, 16)
    struct.pack_into("<12f", image, 280, -0.5, 0, 0, 7, 0, -0.5, 0, 9, 0, 0, 1, 3)
    return gzip.compress(bytes(image[:352]) + pixels.astype("<u2").tobytes())


def test_info_names_the_model(client: httpx.Client, model: Model) -> None:
    info = client.get("/info/").json()
    about = info["models"][model.name]
    assert (about["type"], about["dimension"]) == ("segmentation", 2)
    assert info["labels"] == [*about["labels"]]


@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd"])
def test_an_upload_and_its_label(
    client: httpx.Client, model: Model, nifti: bytes, pixels: np.ndarray, extension: str
) -> None:
    files = {"file": ("/tmp/Slicer/case 1.nii.gz", nifti)}
    stored = multipart(client, "PUT", "/datastore/?image=case+1", {"params": "{}"}, files)
    assert stored.json() == {"image": "case 1"}
    fields = {"params": json.dumps({"result_extension": extension})}
    answer = multipart(client, "POST", f"/infer/{model.name}?image=case+1", fields, {})
    assert answer.status_code == 200
    given = parts(answer)
    label = read_plane(given["image"], 10**6)
    expected = model(pixels.astype(np.uint16))
    assert np.array_equal(label > 0, expected.mask)
    assert json.loads(given["params"])["confidence"] == expected.confidence
    if extension == ".nii.gz":  # lies where the image lies
        assert gzip.decompress(given["image"])[280:328] == gzip.decompress(nifti)[280:328]


def test_labels_that_come_back(client: httpx.Client, nifti: bytes) -> None:
    multipart(client, "PUT", "/datastore/?image=two", {}, {"file": ("two.nii.gz", nifti)})
    chosen = client.post("/activelearning/first", json={}).json()["id"]
    assert chosen
    sent = multipart(
        client, "PUT", "/datastore/label?image=two&tag=final", {"params": "{}"},
        {"label": ("two.nii.gz", nifti)},
    )  # fmt: skip
    assert sent.status_code == 200
    assert client.get("/datastore/label?label=two&tag=final").content == nifti
    assert "two" in client.get("/datastore/?output=all").json()["objects"]
    assert client.post("/activelearning/first", json={}).json().get("id") != "two"


def test_a_session_from_a_picture(client: httpx.Client, model: Model, png: bytes) -> None:
    opened = client.put("/session/", files=[("files", ("a.png", png))], data={"params": "{}"})
    key = opened.json()["session_id"]
    assert client.get(f"/session/{key}").json()["image"] == "a.png"
    answer = multipart(
        client, "POST", f"/infer/{model.name}?image=&session_id={key}", {"params": "{}"}, {}
    )
    label = read_plane(parts(answer)["image"], 10**6)
    assert np.array_equal(label > 0, model(MemoryFile("a.png", png)).mask)
    plain = client.post(
        f"/infer/{model.name}?session_id={key}&output=json", data={"params": "{}"}
    ).json()
    assert plain["image"] == "a.png"
    assert client.delete(f"/session/{key}").status_code == 200
    assert client.get(f"/session/{key}").status_code == 404


def test_what_there_is_not(client: httpx.Client, model: Model) -> None:
    assert client.get("/train/?check_if_running=true").status_code == 404
    answers = [
        client.post("/infer/other", data={"params": "{}"}),
        client.post(f"/infer/{model.name}?image=none", data={"params": "{}"}),
        client.post(f"/infer/{model.name}?image=none", data={"params": "[]"}),
        client.post(f"/infer/{model.name}?image=none", data={"params": "{"}),
    ]
    assert [answer.status_code for answer in answers] == [404, 404, 422, 422]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x1f\x8b" + bytes(20), "damaged"),
        (b"NRRD0004\nsizes: 2 2 5\ntype: uint8\nencoding: raw\n\n", "several slices"),
        (b"NRRD0004\nsizes: 90000 90000 1\ntype: uint8\nencoding: raw\n\n", "limit"),
        (b"NRRD0004\ntype: uint8\n\n", "damaged"),
    ],
)
def test_volumes_that_are_none(data: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_plane(data, 10**6)


def test_the_published_client(
    client: httpx.Client, model: Model, png: bytes, tmp_path: Path
) -> None:
    published = pytest.importorskip(
        "monailabel.client.client", reason="monailabel's client is not installed"
    )
    path = tmp_path / "a.png"
    path.write_bytes(png)
    theirs = published.MONAILabelClient(str(client.base_url), str(tmp_path))
    assert model.name in theirs.info()["models"]
    assert theirs.upload_image(str(path), "theirs")
    file, params = theirs.infer(model.name, "theirs", {})
    label = read_plane(Path(file).read_bytes(), 10**6)
    expected = model(path)
    assert np.array_equal(label > 0, expected.mask)
    assert params["confidence"] == expected.confidence
    key = theirs.create_session(str(path))["session_id"]
    file, _ = theirs.infer(model.name, "", {}, session_id=key)
    assert np.array_equal(read_plane(Path(file).read_bytes(), 10**6) > 0, expected.mask)
    theirs.remove_session(key)
    theirs.save_label("theirs", file, "final")
    assert theirs.train_status(check_if_running=True) is False
