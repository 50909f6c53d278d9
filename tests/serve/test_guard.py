"""Who may ask, how much, and how fast."""

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import httpx
import pytest

from adalora_qat.errors import ConfigError
from adalora_qat.serve.settings import Settings

TOKEN = "a-token-of-enough-length"


def bomb() -> bytes:
    """Return a PNG of some 100 bytes that says 60,000 × 60,000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 60)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def ask(client: httpx.Client, data: bytes, **more: object) -> httpx.Response:
    return client.post("/v1/segment", files={"image": ("a.png", data)}, **more)


def test_tokens(serving, png: bytes) -> None:
    client = serving(Settings(token=TOKEN))
    assert ask(client, png).status_code == 401
    for wrong in (
        "Bearer x",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        "Bearer é".encode().decode("latin-1"),
    ):
        assert (
            ask(client, png, headers={"Authorization": wrong.encode("latin-1")}).status_code == 401
        )
    assert ask(client, png, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert client.get("/metrics").status_code == 401
    assert client.get("/healthz").status_code == 200


def test_origins_and_hosts(serving, png: bytes) -> None:
    friend, own = "https://viewer.example", "http://127.0.0.1"
    client = serving(Settings(origins=(friend,)))
    foreign = ask(client, png, headers={"Origin": "https://evil.example"})
    assert (foreign.status_code, foreign.json()["error"]) == (403, "foreign_origin")
    assert ask(client, png, headers={"Origin": "null"}).status_code == 403
    allowed = ask(client, png, headers={"Origin": friend})
    assert allowed.headers["access-control-allow-origin"] == friend
    assert ask(client, png, headers={"Origin": str(client.base_url).rstrip("/")}).status_code == 200
    assert ask(client, png, headers={"Origin": own}).status_code == 403  # another port
    before = client.options("/v1/segment", headers={"Origin": friend})
    assert before.status_code == 204
    rebound = client.get("/v1/models", headers={"Host": "evil.example"})
    assert rebound.status_code == 421
    assert (
        "access-control-allow-origin"
        not in client.get("/v1/models", headers={"Origin": "https://evil.example"}).headers
    )


def test_limits_of_size(serving, png: bytes) -> None:
    client = serving(Settings(max_bytes=50_000, max_pixels=100_000))
    assert ask(client, bytes(60_000)).status_code == 413

    def parts():  # of unknown length
        for _ in range(20):
            yield bytes(10_000)

    chunked = client.post("/v1/segment", content=parts())
    assert chunked.status_code == 413
    refused = ask(client, bomb())
    assert refused.status_code == 422
    assert "60000x60000" in refused.json()["detail"]


def test_a_slow_body_is_given_up(serving) -> None:
    client = serving(Settings(body_seconds=0.2))
    with socket.create_connection((client.base_url.host, client.base_url.port)) as slow:
        slow.sendall(
            b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx"
        )
        assert b" 408 " in slow.recv(200)


def test_a_full_line_says_so(serving, png: bytes) -> None:
    client = serving(Settings(workers=1, waiting=1))
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(client, png))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 503}
    busy = next(answer for answer in answers if answer.status_code == 503)
    assert int(busy.headers["retry-after"]) >= 1


def test_time_is_limited(serving, png: bytes) -> None:
    client = serving(Settings(seconds=0.001))
    assert ask(client, png).status_code == 504


@pytest.mark.parametrize("name", ["../../etc/passwd", "C:\\x\\y.png", "a\0b.png", "<b>.png", ""])
def test_names_are_names(client: httpx.Client, png: bytes, name: str) -> None:
    answer = client.post("/v1/segment", files={"image": (name or "x", png)}, data={"masks": "none"})
    assert answer.status_code in (200, 400)
    if answer.status_code == 200:
        assert "/" not in answer.json()["image"]
        assert "\\x\\y" not in answer.json()["image"]


def test_headers_of_every_answer(client: httpx.Client) -> None:
    for path in ("/healthz", "/nowhere", "/v1/sessions/none", "/assets/..%2f..%2fapp.py"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert client.get("/assets/..%2f..%2fapp.py").status_code == 404


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"host": "0.0.0.0"}, "a token is needed"),
        ({"token": "short"}, "at least 16"),
        ({"origins": ("viewer",)}, "https://"),
        ({"waiting": 0}, "positive"),
        ({"port": 70000}, "65535"),
    ],
)
def test_settings_that_do_not_hold(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Settings(**change)  # type: ignore[arg-type]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_term_finishes_what_was_accepted(png: bytes, tmp_path: Path) -> None:
    with (tmp_path / "err").open("w+") as errors:
        server = subprocess.Popen(
            [sys.executable, "-m", "adalora_qat.cli", "serve", "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        answers: list[int] = []

        def work() -> None:
            with httpx.Client(base_url=address, timeout=60) as client:
                answers.append(ask(client, png).status_code)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        with httpx.Client(base_url=address) as client:
            while "adalora_qat_accepted 0.0" in client.get("/metrics").text and not answers:
                pass
        server.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert server.wait(60) in (0, -signal.SIGTERM)
        assert set(answers) <= {200, 503}
        assert 200 in answers
        errors.seek(0)
        assert "Traceback" not in errors.read()
