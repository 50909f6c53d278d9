"""Fingerprints on disk."""

import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adalora_qat.corpus.fingerprint import Fingerprint, Measuring, fingerprint
from adalora_qat.corpus.fingerprint_store import FingerprintStore, stamp
from adalora_qat.corpus.mask_codes import EncodedRecord, RelativeRuns
from adalora_qat.corpus.quality import Objection, QualityLimits
from adalora_qat.corpus.records import Record
from adalora_qat.errors import UserError
from adalora_qat.phantom.phantom import phantom


def record(tmp_path: Path, seed: int) -> Record:
    path = tmp_path / f"{seed}.png"
    Image.fromarray(phantom(seed, 128).image).save(path)
    return Record(f"s/{seed}", "s", path, {}, "normal", "p1", (0.2, 0.3))


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    records = [record(tmp_path, seed) for seed in (1, 2)]
    found = [fingerprint(each, Measuring(tmp_path)) for each in records]
    with FingerprintStore(tmp_path / "store.sqlite") as store:
        store.add(found, {"s/1": "x", "s/2": "y"})
    with FingerprintStore(tmp_path / "store.sqlite") as store:
        facts = store.facts(records[::-1])
        assert list(facts) == ["s/2", "s/1"]
        assert facts["s/1"].record == records[0]
        assert (facts["s/1"].height, facts["s/1"].width) == (128, 128)
        assert facts["s/1"].pixel_hash == found[0].pixel_hash
        small = store.thumbnail("s/2")
        assert small is not None
        np.testing.assert_array_equal(small, found[1].thumbnail)
        described = store.descriptors(["s/2", "s/1"])
        np.testing.assert_array_equal(described[1], found[0].descriptor)
        histograms = dict(store.histograms())
        np.testing.assert_array_equal(histograms["s/1"], found[0].histogram)
        assert store.size_and_masks("s/1") == (128, 128, {})


def test_a_file_without_pixels_is_kept_too(tmp_path: Path) -> None:
    lost = Record("s/lost", "s", tmp_path / "lost.png")
    with FingerprintStore(tmp_path / "store.sqlite") as store:
        store.add([Fingerprint(lost, (Objection("image_unreadable", "why"),))], {"s/lost": "x"})
        assert store.thumbnail("s/lost") is None
        assert store.facts([lost])["s/lost"].objections == (Objection("image_unreadable", "why"),)
        assert list(store.histograms()) == []


def test_only_the_same_stamp_holds(tmp_path: Path) -> None:
    records = [record(tmp_path, seed) for seed in (1, 2)]
    with FingerprintStore(tmp_path / "store.sqlite") as store:
        store.add([Fingerprint(each) for each in records], {"s/1": "x", "s/2": "y"})
        assert store.current({"s/1": "x", "s/2": "new", "s/3": "z"}, tmp_path / "out") == {"s/1"}


def test_a_converted_image_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    made = record(tmp_path, 1)
    with FingerprintStore(tmp_path / "store.sqlite") as store:
        store.add([Fingerprint(made)], {"s/1": "x"})
        assert store.current({"s/1": "x"}, tmp_path) == {"s/1"}
        made.image.unlink()
        assert store.current({"s/1": "x"}, tmp_path) == set()


def test_the_stamp_changes_with_everything_that_counts(tmp_path: Path) -> None:
    one = record(tmp_path, 1)
    measuring = Measuring(tmp_path)
    first = stamp(one, measuring)
    assert stamp(one, Measuring(tmp_path)) == first
    masked = Record(one.id, one.source, one.image, {"lung": one.image})
    coded = EncodedRecord(
        one.id, one.source, one.image, codes={"pneumothorax": RelativeRuns(("1 2",), 9, 9)}
    )
    stamps = {
        first,
        stamp(masked, measuring),
        stamp(coded, measuring),
        stamp(one, Measuring(tmp_path, salt="other")),
        stamp(one, Measuring(tmp_path, QualityLimits(min_side=10))),
        stamp(one, Measuring(tmp_path / "elsewhere")),
    }
    os.utime(one.image, (1, 1))
    stamps.add(stamp(one, measuring))
    one.image.unlink()
    stamps.add(stamp(one, measuring))
    assert len(stamps) == 8


def test_a_file_that_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_bytes(b"no database " * 100)
    with pytest.raises(UserError, match=r"store\.sqlite cannot be used.*delete it"):
        FingerprintStore(tmp_path / "store.sqlite")


def test_two_runs_on_one_folder(tmp_path: Path) -> None:
    found = [Fingerprint(record(tmp_path, 1))]
    with FingerprintStore(tmp_path / "store.sqlite") as store:
        other = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        store._database.execute("PRAGMA busy_timeout = 50")
        with pytest.raises(UserError, match="no other prepare"):
            store.add(found, {"s/1": "x"})
        other.close()


def test_what_an_older_version_kept_is_forgotten(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "store.sqlite")
    old.executescript("CREATE TABLE fingerprint (id TEXT, other TEXT); PRAGMA user_version = 1")
    old.close()
    with FingerprintStore(tmp_path / "store.sqlite") as store:
        store.add([fingerprint(record(tmp_path, 1), Measuring(tmp_path))], {"s/1": "x"})
    with FingerprintStore(tmp_path / "store.sqlite") as store:
        assert store.current({"s/1": "x"}, tmp_path / "out") == {"s/1"}
