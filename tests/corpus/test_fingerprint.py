"""Reading files once, whatever is in them."""

import importlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from adalora_qat.corpus import fingerprint as module
from adalora_qat.corpus.fingerprint import (
    Measuring,
    fingerprint,
    fingerprint_all,
    pixel_hash,
)
from adalora_qat.corpus.records import Record
from adalora_qat.corpus.sources import read_source
from adalora_qat.errors import UserError
from adalora_qat.phantom.phantom import phantom, write_phantoms


def one(tmp_path: Path, image: np.ndarray, name: str = "a.png") -> Record:
    Image.fromarray(image).save(tmp_path / name)
    return Record(f"s/{name}", "s", tmp_path / name)


def test_a_sound_image_is_measured(tmp_path: Path) -> None:
    image = phantom(0, 200).image
    found = fingerprint(one(tmp_path, image), Measuring(tmp_path))
    assert found.objections == ()
    assert (found.height, found.width) == (200, 200)
    assert found.histogram is not None and found.thumbnail is not None
    expected = [((image >= low) & (image < low + 4)).sum() for low in range(0, 256, 4)]
    assert found.histogram.tolist() == expected
    assert found.thumbnail.shape == (128, 128)


@pytest.mark.parametrize("broken", [b"", b"<html>", b"\x89PNG\r\n\x1a\n truncated"])
def test_a_broken_file_is_a_finding(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(broken)
    found = fingerprint(Record("s/x", "s", path), Measuring(tmp_path))
    assert [objection.code for objection in found.objections] == ["image_unreadable"]
    assert str(path) in found.objections[0].reason
    assert found.pixel_hash == "" and found.thumbnail is None


def test_pixel_hash_sees_pixels_and_not_containers() -> None:
    grey = phantom(0, 64).image
    same = [grey, np.stack([grey] * 3, axis=2), grey.astype(np.uint16), np.asfortranarray(grey)]
    stored = io.BytesIO()
    Image.fromarray(grey).save(stored, "TIFF")
    same.append(np.asarray(Image.open(stored)))
    assert len({pixel_hash(image) for image in same}) == 1
    other = grey.copy()
    other[5, 5] ^= 1
    assert len({pixel_hash(i) for i in (grey, other, grey.T, grey.astype(np.uint16) * 257)}) == 4


def test_processes_measure_what_one_does(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "p", 20, side=96)
    records = read_source("phantom", tmp_path / "p").records
    measuring = Measuring(tmp_path)
    alone = [f for chunk in fingerprint_all(records, measuring, 1) for f in chunk]
    spread = [f for chunk in fingerprint_all(records, measuring, 2) for f in chunk]
    assert sorted(f.record.id for f in spread) == [f.record.id for f in alone]
    assert {f.record.id: f.pixel_hash for f in spread} == {f.record.id: f.pixel_hash for f in alone}


POISON = """
import os, time
from adalora_qat.corpus import fingerprint

def measured(record, measuring):
    if record.id.endswith("bad"):
        os.abort()
    if record.id.endswith("slow"):
        time.sleep(60)
    return fingerprint.Fingerprint(record, pixel_hash="read")

def initialise():
    fingerprint.fingerprint = measured
    fingerprint.STALL_S = 3.0

def give_up():
    os._exit(1)
"""


@pytest.fixture
def poison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Stand-ins for workers, in a module that worker processes can import as well."""
    (tmp_path / "poison.py").write_text(POISON)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("poison")
    del sys.modules["poison"]


def test_a_file_that_kills_or_stalls_its_decoder_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison: ModuleType
) -> None:
    monkeypatch.setattr(module, "_initialise", poison.initialise)
    names = [f"{n:02}" for n in range(20)]
    names[3], names[18] = "bad", "slow"
    records = [Record(f"s/{name}", "s", tmp_path / name) for name in names]
    chunks = fingerprint_all(records, Measuring(tmp_path), 2)
    found = {f.record.id: f for chunk in chunks for f in chunk}
    assert len(found) == 20
    for name in names:
        result = found[f"s/{name}"]
        if name in ("bad", "slow"):
            assert "crashes its decoder" in result.objections[0].reason
        else:
            assert result.pixel_hash == "read"


def test_workers_that_cannot_start_are_not_blamed_on_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison: ModuleType
) -> None:
    monkeypatch.setattr(module, "_initialise", poison.give_up)
    records = [Record("s/1", "s", tmp_path / "1.png")]
    with pytest.raises(UserError, match="jobs=1"):
        list(fingerprint_all(records, Measuring(tmp_path), 2))
