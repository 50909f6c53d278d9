"""Splits and the manifest."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adalora_qat.corpus.records import Record
from adalora_qat.corpus.splits import (
    assign_splits,
    manifest_columns,
    read_manifest,
    records_of,
    write_manifest,
)
from adalora_qat.errors import DataError


def record(n: int, source: str = "a", label: str | None = "x", masked: bool = True) -> Record:
    masks = {"lung": Path(f"/d/m{n}.png")} if masked else {}
    return Record(f"{source}/{n}", source, Path(f"/d/{source}/{n}.png"), masks, label)


def alone(records: list[Record]) -> list[str]:
    return [r.id for r in records]


def test_every_stratum_and_the_whole_keep_to_the_fractions() -> None:
    sizes = {("a", "x"): 500, ("a", "y"): 130, ("b", "x"): 70, ("b", None): 20}
    records = [record(n, s, label) for (s, label), size in sizes.items() for n in range(size)]
    records = [Record(f"{r.id}-{r.label}", r.source, r.image, r.masks, r.label) for r in records]
    splits = assign_splits(records, alone(records), seed=3)
    for stratum, size in sizes.items():
        counts = Counter(
            s for r, s in zip(records, splits, strict=True) if (r.source, r.label) == stratum
        )
        for side, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
            assert abs(counts[side] - share * size) <= 1.5, (stratum, side)
    whole = Counter(splits)
    assert abs(whole["train"] - 576) <= 1.5
    assert abs(whole["val"] - 72) <= 1.5


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.integers(0, 15), st.booleans()),
        min_size=1,
        max_size=60,
    ),
    st.integers(0, 5),
)
def test_no_group_is_torn_apart(rows: list[tuple[str, str, int, bool]], seed: int) -> None:
    records = [record(n, s, label, masked) for n, (s, label, _, masked) in enumerate(rows)]
    groups = [f"g{group}" for _, _, group, _ in rows]
    external = ("c",) if any(s == "c" for s, *_ in rows) else ()
    splits = assign_splits(records, groups, seed, external=external)
    for group in set(groups):
        inside = {s for s, g in zip(splits, groups, strict=True) if g == group}
        assert len(inside - {None}) <= 1
        # What is left out shares its group with an external record.
        assert None not in inside or inside == {None, "external"}
    for r, split in zip(records, splits, strict=True):
        assert (split == "external") == (r.source in external)


def test_deterministic_in_the_seed_and_blind_to_the_order() -> None:
    records = [record(n) for n in range(200)]
    first = dict(zip(alone(records), assign_splits(records, alone(records), 1), strict=True))
    back = records[::-1]
    assert first == dict(zip(alone(back), assign_splits(back, alone(back), 1), strict=True))
    assert first != dict(
        zip(alone(records), assign_splits(records, alone(records), 2), strict=True)
    )


def test_a_small_stratum_still_reaches_validation_and_test() -> None:
    records = [record(n) for n in range(10)]
    assert Counter(assign_splits(records, alone(records))) == {"train": 8, "val": 1, "test": 1}


def test_without_masks_unlabelled_unless_the_group_has_some() -> None:
    records = [record(0, masked=False), record(1, masked=False), record(2)]
    splits = assign_splits(records, ["p", "q", "q"])
    assert splits[0] == "unlabelled"
    assert splits[1] == splits[2] != "unlabelled"


def test_a_share_of_nothing_gets_nothing() -> None:
    records = [record(n) for n in range(50)]
    assert Counter(assign_splits(records, alone(records), fractions=(0.9, 0, 0.1))) == {
        "train": 45,
        "test": 5,
    }


@pytest.mark.parametrize("fractions", [(0.8, 0.1), (0.8, 0.1, 0.2), (1.2, -0.1, -0.1)])
def test_fractions_that_are_no_shares(fractions: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="fractions"):
        assign_splits([record(0)], ["a/0"], fractions=fractions)


def test_an_external_source_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"external names b.*sources with records: a"):
        assign_splits([record(0)], ["a/0"], external=("b",))


def manifest(folder: Path) -> pd.DataFrame:
    rows = [
        {
            "id": "a/NA",
            "source": "a",
            "label": "normal",
            "patient": "007",
            "group": "a/NA",
            "split": "train",
            "image": str(folder / "in" / "1.png"),
            "mask_left_lung": str(folder / "in" / "l.png"),
            "mask_right_lung": str(folder / "in" / "r.png"),
            "width": 30,
            "height": 20,
            "spacing_row_mm": 0.175,
            "spacing_col_mm": 0.175,
            "pixel_hash": "00ff",
        },
        {
            "id": "b/2",
            "source": "b",
            "group": "b/2",
            "split": "unlabelled",
            "image": str(folder / "in" / "2, odd.png"),
            "width": 30,
            "height": 20,
            "pixel_hash": "11",
        },
    ]
    return (
        pd.DataFrame(rows)
        .reindex(columns=manifest_columns([]))
        .astype(object)
        .where(lambda f: f.notna(), None)
    )


@pytest.mark.parametrize("name", ["", "manifest.csv", "manifest.parquet"])
def test_manifest_round_trip(tmp_path: Path, name: str) -> None:
    write_manifest(manifest(tmp_path), tmp_path / "out")
    table = read_manifest(tmp_path / "out" / name)
    first, second = records_of(table)
    assert first == Record(
        id="a/NA",
        source="a",
        image=tmp_path / "in" / "1.png",
        masks={"left_lung": tmp_path / "in" / "l.png", "right_lung": tmp_path / "in" / "r.png"},
        label="normal",
        patient="007",
        spacing_mm=(0.175, 0.175),
    )
    assert second == Record("b/2", "b", tmp_path / "in" / "2, odd.png")
    assert [r.id for r in records_of(table, "unlabelled")] == ["b/2"]
    assert [r.id for r in records_of(table, target="lung")] == ["a/NA"]
    assert records_of(table, target="heart") == []


def test_a_manifest_moves_with_its_images(tmp_path: Path) -> None:
    write_manifest(manifest(tmp_path / "here"), tmp_path / "here" / "out")
    (tmp_path / "here").rename(tmp_path / "there")
    assert records_of(read_manifest(tmp_path / "there" / "out"))[0].image == (
        tmp_path / "there" / "in" / "1.png"
    )


def test_manifests_that_cannot_be_trusted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run prepare first"):
        read_manifest(tmp_path)
    write_manifest(manifest(tmp_path), tmp_path)
    good = pd.read_csv(tmp_path / "manifest.csv", dtype=str, keep_default_na=False)
    for change, message in [
        (good.assign(split="training"), "training"),
        (good.assign(id="same"), "twice"),
        (good.assign(group="one"), "two splits"),
        (good.drop(columns="group"), "lacks the columns group"),
    ]:
        change.to_csv(tmp_path / "bad.csv", index=False)
        with pytest.raises(DataError, match=message):
            read_manifest(tmp_path / "bad.csv")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read as a manifest"):
        read_manifest(tmp_path / "broken.parquet")
    with pytest.raises(DataError, match="unknown split"):
        records_of(read_manifest(tmp_path), "training")


def test_a_manifest_keeps_other_columns_and_refuses_masks_of_no_structure(tmp_path: Path) -> None:
    row = {"id": "a/1", "source": "a", "group": "a/1", "split": "train", "image": "/d/1.png"}
    table = pd.DataFrame([row | {"mask_spleen": "/d/s.png", "width": 4, "height": 4}])
    table = table.reindex(columns=manifest_columns(["spleen"]))
    write_manifest(table, tmp_path)
    text = (tmp_path / "manifest.csv").read_text().splitlines()
    (tmp_path / "own.csv").write_text(f"{text[0]},scanner\n{text[1]},A\n")
    manifest = read_manifest(tmp_path / "own.csv")
    assert list(manifest["scanner"]) == ["A"]
    (read,) = records_of(manifest, "train", "spleen")
    assert read.masks == {"spleen": Path("/d/s.png")}
    (tmp_path / "bad.csv").write_text(f"{text[0]},mask_2\n{text[1]},A\n")
    with pytest.raises(DataError, match="mask_2, which names no structure"):
        read_manifest(tmp_path / "bad.csv")
