import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from made_dicom import chest
from pynetdicom import AE, evt

from adalora_qat import Model
from adalora_qat.dicom.answer import Answering
from adalora_qat.dicom.journal import Journal
from adalora_qat.dicom.node import TAKEN, Listening, Node
from adalora_qat.dicom.send import Destination
from adalora_qat.errors import ConfigError


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def until(true: Any, seconds: float = 90) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not come about"
        time.sleep(0.05)


class Archive:
    """Keeps what it is sent: SOP Instance UID → how often."""

    def __init__(self) -> None:
        self.port, self.kept = free_port(), Counter[str]()
        self.kinds = Counter[str]()

    def __enter__(self) -> "Archive":
        entity = AE(ae_title="ARCHIVE")
        for name in ("66.4", "88.33", "7", "11.1"):
            syntaxes = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50"]
            entity.add_supported_context(f"1.2.840.10008.5.1.4.1.1.{name}", syntaxes)
        handlers = [(evt.EVT_C_STORE, self._keep)]
        self.server = entity.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=handlers
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()

    def _keep(self, event: Any) -> int:
        self.kept[str(event.request.AffectedSOPInstanceUID)] += 1
        self.kinds[str(event.dataset.Modality)] += 1
        return 0


def store(port: int, *files: bytes, caller: str = "SENDER") -> list[int]:
    """Send files over one association; return the statuses of what was acknowledged."""
    entity = AE(ae_title=caller)
    entity.acse_timeout = entity.dimse_timeout = entity.connection_timeout = 20
    for one in TAKEN:
        entity.add_requested_context(one)
    association = entity.associate("127.0.0.1", port, ae_title="ADALORA_QAT")
    if not association.is_established:
        return []
    statuses = []
    for data in files:
        try:
            status = association.send_c_store(pydicom.dcmread(BytesIO(data)))
        except RuntimeError:
            break
        if "Status" in status:
            statuses.append(int(status.Status))
    if association.is_established:
        association.release()
    return statuses


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive() as one:
        yield one


def a_node(model: Model, folder: Path, archive: Archive, **how: Any) -> tuple[Node, int]:
    port = free_port()
    destination = Destination("ARCHIVE", "127.0.0.1", archive.port)
    listening = Listening(port=port, **how)
    return Node(Answering(model, ("SEG", "SR")), folder, destination, listening), port


def test_images_come_in_and_results_go_out_once(
    tmp_path: Path, model: Model, archive: Archive
) -> None:
    node, port = a_node(model, tmp_path, archive)
    hand = chest(3, BodyPartExamined="HAND")
    with node.running():
        assert store(port, chest(1), chest(2), hand, chest(1)) == [0, 0, 0, 0]
        until(lambda: node.counts()["sent"] == 2 and node.counts()["refused"] == 1)
        assert store(port, chest(2)) == [0]
        counts = node.counts()
    assert archive.kinds == {"SEG": 2, "SR": 2} and set(archive.kept.values()) == {1}
    assert counts["received"] == 3 and counts["repeated"] == 2
    assert not list(tmp_path.glob("received/*")) and not list(tmp_path.glob("results/*"))
    assert "adalora_qat_node_sent 2" in node.metrics()


def test_what_cannot_be_sent_is_kept_until_it_can(tmp_path: Path, model: Model) -> None:
    archive = Archive()
    node, port = a_node(model, tmp_path, archive)
    with node.running():
        assert store(port, chest(1)) == [0]
        until(lambda: node.counts()["send_failures"] > 0)
        with archive:
            until(lambda: node.counts()["sent"] == 1)
    assert archive.kinds == {"SEG": 1, "SR": 1}


def test_only_titles_that_are_allowed_may_call(
    tmp_path: Path, model: Model, archive: Archive
) -> None:
    node, port = a_node(model, tmp_path, archive, allowed=("WARD",))
    with node.running():
        assert store(port, chest(1), caller="STRANGER") == []
        assert store(port, chest(1), caller="WARD") == [0]


def test_rubbish_and_many_associations_do_not_stop_it(
    tmp_path: Path, model: Model, archive: Archive
) -> None:
    node, port = a_node(model, tmp_path, archive, most=4, patience_s=0.5)
    lies = (b"\x01\x00\xff\xff\xff\xf0" + b"x" * 50, b"GET / HTTP/1.1\r\n\r\n", b"", b"\x04\x00")
    with node.running():
        open_ones = []
        for number in range(100):
            one = socket.create_connection(("127.0.0.1", port), timeout=5)
            one.sendall(lies[number % len(lies)])
            open_ones.append(one)
        until(lambda: store(port, chest(1)) == [0], 60)
        for one in open_ones:
            one.close()


@pytest.mark.slow
def test_killed_at_any_moment_it_loses_nothing(tmp_path: Path, archive: Archive) -> None:
    port, command = free_port(), [sys.executable, "-m", "adalora_qat.cli", "node"]
    command += ["--journal", str(tmp_path / "j"), "--port", str(port), "--objects", "SR"]
    command += ["--forward", f"ARCHIVE@127.0.0.1:{archive.port}", "--threads", "1"]
    acknowledged: set[int] = set()

    def start() -> subprocess.Popen[bytes]:
        made = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert made.stdout is not None and b"listens" in made.stdout.readline()
        return made

    def feed(first: int) -> None:
        for number in range(first, first + 4):
            if store(port, chest(number)) == [0]:
                acknowledged.add(number)

    for round_ in range(2):
        running = start()
        feeding = threading.Thread(target=feed, args=(1 + 4 * round_,))
        feeding.start()
        time.sleep(1.0 + round_)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        feeding.join()
    running = start()
    try:
        until(lambda: len(archive.kept) >= len(acknowledged))
        journal = Journal(tmp_path / "look", "x")
        until(lambda: not any((tmp_path / "j" / "received").iterdir()))
        assert journal.waiting() == []
    finally:
        running.terminate()
        assert running.wait(60) == 0
    assert acknowledged and len(archive.kept) == len(acknowledged)


@pytest.mark.parametrize("text", ["here", "A@b", "A@b:c", "@b:1", "TITLE_THAT_IS_TOO_LONG@b:1"])
def test_a_destination_is_checked(text: str) -> None:
    with pytest.raises(ConfigError, match="AET@host:port"):
        Destination.parse(text)
