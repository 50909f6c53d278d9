"""Hostile requests to `adalora-qat serve`: what was tried, and what came of it.

python benchmarks/serve_hostile.py --out results/serve/hostile.json
"""

from __future__ import annotations

import argparse
import io
import random
import socket
import struct
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from _machine import describe_machine
from _server import png, resident_mb, served
from adalora_qat.files import write_json

TOKEN = "a-token-for-hostile-requests"
SECRET = "PatientZero^Secret"


def main() -> None:
    """Attack a server of one's own, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="mutated uploads")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    token = folder / "token"
    token.write_text(TOKEN)
    options = ("--token-file", str(token), "--max-bytes", "4000000", "--max-pixels", "2000000")
    with served(*options, log=folder / "log") as (address, process):
        before = resident_mb(process)
        client = httpx.Client(
            base_url=address, timeout=120, headers={"Authorization": f"Bearer {TOKEN}"}
        )
        mutated = _mutations(client, given.count)
        rows = [_row(name, attack, client, address) for name, attack in ATTACKS.items()]
        alive = client.get("/readyz").status_code == 200
        memory = [round(before), round(resident_mb(process))]
    log = (folder / "log").read_text()
    write_json(
        given.out,
        {
            "machine": describe_machine(),
            "mutated": mutated,
            "attacks": rows,
            "alive_after": alive,
            "ended_with": process.returncode,
            "resident_mb_before_after": memory,
            "log_holds_a_traceback": "Traceback" in log,
            "log_holds_a_name_or_token": SECRET in log or TOKEN in log,
        },
    )


def _mutations(client: httpx.Client, count: int) -> dict[str, object]:
    rng = random.Random(0)
    picture = Image.open(io.BytesIO(png(1, side=128)))
    seeds = {}
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "WEBP"):
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        seeds[kind] = buffer.getvalue()
    seeds["DICOM"] = _dicom()
    statuses: Counter[str] = Counter()
    slowest = 0.0
    for index in range(count):
        kind = list(seeds)[index % len(seeds)]
        data = bytearray(seeds[kind])
        for _ in range(rng.choice((1, 2, 8, 64))):
            action, place = rng.randrange(4), rng.randrange(len(data))
            if action == 0:
                data[place] = rng.randrange(256)
            elif action == 1:
                data[place : place + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"))
            elif action == 2:
                del data[place : place + rng.randrange(1, 40)]
            else:
                data[place:place] = rng.randbytes(rng.randrange(1, 40))
            data = data or bytearray(b"\0")
        started = time.perf_counter()
        answer = _send(client, bytes(data))
        slowest = max(slowest, time.perf_counter() - started)
        statuses[str(answer.status_code)] += 1
    return {
        "uploads": count,
        "statuses": dict(sorted(statuses.items())),
        "slowest_seconds": round(slowest, 2),
    }


def _send(client: httpx.Client, image: bytes, name: str = "a.png", **more: Any) -> httpx.Response:
    fields = more.pop("data", {"masks": "none"})
    return client.post("/v1/segment", files={"image": (name, image)}, data=fields, **more)


def _row(
    name: str, attack: Callable[[httpx.Client, str], str], client: httpx.Client, address: str
) -> dict[str, str]:
    return {"tried": name, "came": attack(client, address)}


def _said(answer: httpx.Response) -> str:
    try:
        detail = answer.json().get("detail", "answered")
    except ValueError:
        detail = answer.text[:80] or "answered"
    return f"{answer.status_code}: {detail[:110]}"


def _bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(60)))


def _dicom() -> bytes:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    made.SOPClassUID, made.SOPInstanceUID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
    )
    made.StudyInstanceUID, made.SeriesInstanceUID = generate_uid(), generate_uid()
    made.Modality, made.PatientName = "CR", SECRET
    picture = Image.open(io.BytesIO(png(1, side=128)))
    made.Rows, made.Columns = picture.height, picture.width
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.PixelRepresentation = 7, 0
    made.PixelData = picture.tobytes()
    buffer = io.BytesIO()
    made.save_as(buffer)
    return buffer.getvalue()


def _slow(client: httpx.Client, address: str) -> str:
    place = httpx.URL(address)
    head = (
        f"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Length: 100000\r\n\r\n"
    ).encode()
    sockets = [socket.create_connection((place.host, place.port)) for _ in range(100)]
    for each in sockets:
        each.sendall(head + b"x")
    answer = _send(client, png(2, side=128))
    served_meanwhile = answer.status_code
    said = sockets[0].recv(100).split(b"\r\n")[0].decode()
    for each in sockets:
        each.close()
    return f"{said} after 30 s; meanwhile another client was answered {served_meanwhile}"


def _silent(client: httpx.Client, address: str) -> str:
    place = httpx.URL(address)
    started = time.perf_counter()
    with socket.create_connection((place.host, place.port)) as silent:
        silent.sendall(b"GET / HT")
        silent.settimeout(30)
        closed = silent.recv(10) == b""
    return f"connection closed: {closed}, after {time.perf_counter() - started:.0f} s"


def _without(client: httpx.Client, address: str, headers: dict[str, str]) -> httpx.Response:
    with httpx.Client(base_url=address, headers=headers) as other:
        return _send(other, png(2, side=128))


HUGE_NRRD = b"NRRD0004\nsizes: 90000 90000 1\ntype: uint8\nencoding: raw\n\n"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ATTACKS: dict[str, Callable[[httpx.Client, str], str]] = {
    "PNG of 100 bytes that says 60,000 × 60,000": lambda c, a: _said(_send(c, _bomb())),
    "body longer than allowed": lambda c, a: _said(_send(c, bytes(5_000_000))),
    "body of unknown length, longer than allowed": lambda c, a: _said(
        c.post("/v1/segment", content=(bytes(100_000) for _ in range(60)))
    ),
    "100 bodies that never end": _slow,
    "a request that never begins": _silent,
    "name ../../etc/passwd": lambda c, a: _said(_send(c, b"x", "../../etc/passwd")),
    "name with HTML": lambda c, a: _said(_send(c, b"x", "<img src=x onerror=alert(1)>.png")),
    "asset /assets/../app.py": lambda c, a: _said(c.get("/assets/%2e%2e%2fapp.py")),
    "no token": lambda c, a: _said(_without(c, a, {})),
    "wrong token": lambda c, a: _said(_without(c, a, {"Authorization": f"Bearer {TOKEN}x"})),
    "post from a page of another origin": lambda c, a: _said(
        _without(c, a, {**BEARER, "Origin": "https://evil.example"})
    ),
    "post from a page without origin (null)": lambda c, a: _said(
        _without(c, a, {**BEARER, "Origin": "null"})
    ),
    "a name that resolves to this machine (rebinding)": lambda c, a: _said(
        _without(c, a, {**BEARER, "Host": "evil.example"})
    ),
    "session of another client, guessed": lambda c, a: _said(
        c.post("/v1/sessions/AAAAAAAAAAAAAAAAAAAAAAAA/segment", json={})
    ),
    "10,000 boxes": lambda c, a: _said(
        _send(c, png(2, side=128), data={"boxes": str([[0, 0, 9, 9]] * 10_000)})
    ),
    "box of NaN": lambda c, a: _said(
        _send(c, png(2, side=128), data={"boxes": "[[NaN, 0, 9, 9]]"})
    ),
    "JSON nested 100,000 deep": lambda c, a: _said(
        _send(c, png(2, side=128), data={"boxes": "[" * 100_000})
    ),
    "form of 1,000 fields": lambda c, a: _said(
        c.post(
            "/v1/segment", data={f"f{i}": "x" for i in range(1000)}, files={"image": ("a", b"x")}
        )
    ),
    "form without its boundary": lambda c, a: _said(
        c.post("/v1/segment", content=b"x", headers={"content-type": "multipart/form-data"})
    ),
    "NRRD volume of 90,000 × 90,000": lambda c, a: _said(
        c.put(
            "/datastore/?image=x",
            files={
                "file": (
                    "x.nrrd",
                    b"NRRD0004\nsizes: 90000 90000 1\ntype: uint8\nencoding: raw\n\n",
                )
            },
        )
    ),
}


if __name__ == "__main__":
    main()
