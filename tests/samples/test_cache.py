"""The cache gives what decoding gives, notices changes, resumes, and knows its limit."""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adalora_qat.corpus.records import Record
from adalora_qat.errors import DataError, UserError
from adalora_qat.phantom.phantom import write_phantoms
from adalora_qat.samples import cache as cache_module
from adalora_qat.samples.cache import PlaneCache
from adalora_qat.samples.planes import Planes, decode

SIDE = 48
TARGETS = ("lung", "heart")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, 6, 0, 64)
    # One deep image, one that is not square.
    first, second = sorted((folder / "images").iterdir())[:2]
    Image.fromarray(np.asarray(Image.open(first)).astype(np.uint16) * 200).save(first)
    for path in (second, *(folder / "masks").glob(f"*/{second.name}")):
        Image.open(path).crop((0, 0, 64, 50)).save(path)
    return folder


@pytest.fixture
def records(originals: Path, tmp_path: Path) -> list[Record]:
    folder = Path(shutil.copytree(originals, tmp_path / "data"))
    return [
        Record(
            f"phantom/{path.stem}",
            "phantom",
            path,
            {kind.name: kind / path.name for kind in (folder / "masks").iterdir()},
        )
        for path in sorted((folder / "images").iterdir())
    ]


def same(first: Planes, second: Planes) -> bool:
    return (
        first.frame_map == second.frame_map
        and first.grey.dtype == second.grey.dtype
        and np.array_equal(first.grey, second.grey)
        and np.array_equal(first.masks, second.masks)
    )


def no_decoding(*_: object) -> None:
    raise AssertionError("decoded again")


def test_cached_is_decoded(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [decode(record, SIDE, TARGETS) for record in records]
    assert {planes.grey.dtype for planes in expected} == {np.dtype("u1"), np.dtype("u2")}
    cache = PlaneCache(tmp_path / "cache", SIDE)
    assert cache.build(records, TARGETS, workers=2) == len(records)
    monkeypatch.setattr(cache_module, "decode_image", no_decoding)
    monkeypatch.setattr(cache_module, "decode_mask", no_decoding)
    for held in (cache, pickle.loads(pickle.dumps(cache)), PlaneCache(tmp_path / "cache", SIDE)):
        held.build(records, TARGETS)
        for record, planes in zip(records, expected, strict=True):
            assert same(held.read(record, TARGETS), planes)


def test_pickle_carries_no_pixels(records: list[Record], tmp_path: Path) -> None:
    cache = PlaneCache(tmp_path / "cache", SIDE)
    cache.build(records, TARGETS)
    before = len(pickle.dumps(cache))
    cache.read(records[0], TARGETS)
    assert len(pickle.dumps(cache)) == before


def test_without_a_build_records_are_decoded(records: list[Record], tmp_path: Path) -> None:
    cache = PlaneCache(tmp_path / "cache", SIDE)
    assert same(cache.read(records[1], TARGETS), decode(records[1], SIDE, TARGETS))


def test_changed_files_are_noticed(records: list[Record], tmp_path: Path) -> None:
    PlaneCache(tmp_path / "cache", SIDE).build(records, TARGETS)
    image, heart = records[2].image, records[3].masks["heart"]
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    Image.fromarray(np.roll(np.asarray(Image.open(heart)), 5, axis=0)).save(heart)
    cache = PlaneCache(tmp_path / "cache", SIDE)
    assert cache.build(records, TARGETS) == len(records)
    for record in records:
        assert same(cache.read(record, TARGETS), decode(record, SIDE, TARGETS))


def test_targets_and_sides_do_not_mix(records: list[Record], tmp_path: Path) -> None:
    PlaneCache(tmp_path / "cache", SIDE).build(records, TARGETS)
    for side, targets in ((SIDE, ("right_lung",)), (32, TARGETS)):
        cache = PlaneCache(tmp_path / "cache", side)
        cache.build(records, targets)
        for record in records:
            assert same(cache.read(record, targets), decode(record, side, targets))


def test_equal_files_are_kept_once(records: list[Record], tmp_path: Path) -> None:
    cache = PlaneCache(tmp_path / "cache", SIDE)
    cache.build(records[2:3], TARGETS)
    used = cache.bytes_used()
    twin = replace(records[2], id="twin", image=tmp_path / "twin.png")
    shutil.copy(records[2].image, twin.image)
    assert cache.build([records[2], twin], TARGETS) == 2
    assert cache.bytes_used() == used


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_does_not_fit_is_streamed(records: list[Record], tmp_path: Path, share: float) -> None:
    whole = PlaneCache(tmp_path / "whole", SIDE)
    whole.build(records, TARGETS)
    limit = int(whole.bytes_used() * share)
    cache = PlaneCache(tmp_path / "cache", SIDE, limit)
    assert cache.build(records, TARGETS) < len(records)
    assert cache.bytes_used() <= limit
    for record in records:
        assert same(cache.read(record, TARGETS), decode(record, SIDE, TARGETS))


def test_a_broken_build_goes_on_where_it_was(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_CHUNK", 2)
    good = records[4].image.read_bytes()
    records[4].image.write_bytes(good[: len(good) // 2])
    cache = PlaneCache(tmp_path / "cache", SIDE)
    with pytest.raises(DataError, match="truncated"):
        cache.build(records, TARGETS)
    records[4].image.write_bytes(good)
    calls: list[tuple[int, int, str]] = []
    assert cache.build(records, TARGETS, progress=lambda *call: calls.append(call)) == 6
    # The first four were kept; the first report comes after the last two.
    assert [call for call in calls if call[2] == "decoded images"] == [(6, 6, "decoded images")]
    for record in records:
        assert same(cache.read(record, TARGETS), decode(record, SIDE, TARGETS))


def test_pixels_written_without_their_row_are_written_again(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As after a kill between the pixels and the commit: slots hold bytes that no row names.
    cache = PlaneCache(tmp_path / "cache", SIDE)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "_flush", killed)
        with pytest.raises(KeyboardInterrupt):
            cache.build(records[2:], TARGETS)
    assert cache.bytes_used() > 0
    cache = PlaneCache(tmp_path / "cache", SIDE)
    assert cache.build(records, TARGETS) == len(records)
    for record in records:
        assert same(cache.read(record, TARGETS), decode(record, SIDE, TARGETS))


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        PlaneCache(tmp_path / "file", SIDE)
