"""From folders to a manifest."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from adalora_qat.corpus import prepare as module
from adalora_qat.corpus.outcome import PrepareReport
from adalora_qat.corpus.prepare import prepare
from adalora_qat.corpus.sources import Source
from adalora_qat.corpus.splits import read_manifest, records_of
from adalora_qat.errors import DataError, UserError
from adalora_qat.phantom.phantom import phantom, write_phantoms

OUTPUTS = (
    "manifest.csv", "manifest.parquet", "quarantine.csv", "groups.csv", "report.json", "card.html",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty phantoms; and pairs of ten others and three copies of phantoms, three broken."""
    folder = tmp_path_factory.mktemp("data")
    write_phantoms(folder / "phantoms", 30, side=160)
    for name in ("images", "masks"):
        (folder / "pairs" / name).mkdir(parents=True)
    for seed in range(100, 110):
        made = phantom(seed, 160)
        lungs = made.masks["left_lung"] | made.masks["right_lung"]
        Image.fromarray(made.image).save(folder / "pairs" / "images" / f"{seed}.png")
        Image.fromarray(lungs).save(folder / "pairs" / "masks" / f"{seed}.png")
    for seed in range(3):
        small = Image.fromarray(phantom(seed, 160).image[4:]).resize((140, 140))
        small.save(folder / "pairs" / "images" / f"copy{seed}.jpg", quality=60)
    (folder / "pairs" / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.new("L", (160, 160), 255).save(folder / "pairs" / "images" / "white.png")
    Image.new("L", (160, 160)).save(folder / "pairs" / "masks" / "109.png")
    return folder


def sources(data: Path) -> Mapping[str, Path]:
    return {"phantom": data / "phantoms", "pairs": data / "pairs"}


@pytest.fixture(scope="module")
def prepared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> PrepareReport:
    return prepare(sources(data), tmp_path_factory.mktemp("out"), jobs=1)


def test_the_counts_add_up(prepared: PrepareReport) -> None:
    assert prepared.found == {"phantom": 30, "pairs": 15}
    assert prepared.used == {"phantom": 30, "pairs": 12}
    assert prepared.quarantined == {"phantom": 0, "pairs": 3}
    assert prepared.reasons["pairs"] == {"image_unreadable": 2, "mask_empty": 1}
    assert sum(prepared.splits.values()) == 42
    stored = json.loads((prepared.folder / "report.json").read_text())
    assert stored["used"] == prepared.used
    assert "folder" not in stored


def test_copies_stand_with_their_originals(prepared: PrepareReport) -> None:
    manifest = read_manifest(prepared.folder)
    group = dict(zip(manifest["id"], manifest["group"], strict=True))
    for seed in range(3):
        (copy,) = [key for key in group if key.endswith(f"copy{seed}")]
        assert group[copy] == group[f"phantom/phantom_{seed:06d}"]
    assert prepared.groups == 3
    links = pd.read_csv(prepared.folder / "groups.csv")
    assert set(links["reason"]) == {"near duplicate"}
    assert len(links) == 3


def test_nothing_is_set_aside_without_a_reason(prepared: PrepareReport) -> None:
    rows = pd.read_csv(prepared.folder / "quarantine.csv")
    assert set(rows["code"]) == {"image_unreadable", "mask_empty"}
    assert rows["reason"].notna().all() and rows["file"].notna().all()


def test_records_lead_to_files(prepared: PrepareReport) -> None:
    for record in records_of(read_manifest(prepared.folder)):
        assert record.image.is_file()
        assert all(path.is_file() for path in record.masks.values())


def test_the_same_input_gives_the_same_bytes(
    data: Path, prepared: PrepareReport, tmp_path: Path
) -> None:
    before = {name: (prepared.folder / name).read_bytes() for name in OUTPUTS}
    prepare(dict(reversed(sources(data).items())), prepared.folder, jobs=1)
    again = {name: (prepared.folder / name).read_bytes() for name in OUTPUTS}
    assert {n for n in OUTPUTS if again[n] != before[n]} <= {"report.json"}
    prepare(sources(data), prepared.folder, jobs=1)
    assert {name: (prepared.folder / name).read_bytes() for name in OUTPUTS} == before
    # From nothing, in processes, beside the other: relative paths are the same.
    fresh = prepared.folder.parent / f"{prepared.folder.name}-fresh"
    prepare(sources(data), fresh, jobs=2)
    assert {name: (fresh / name).read_bytes() for name in OUTPUTS} == before


class KilledError(Exception):
    pass


def test_a_killed_run_goes_on(data: Path, tmp_path: Path) -> None:
    seen = []

    def die(done: int, total: int, what: str) -> None:
        seen.append(done)
        raise KilledError

    with pytest.raises(KilledError):
        prepare(sources(data), tmp_path, jobs=1, progress=die)
    assert not (tmp_path / "manifest.csv").exists()
    resumed = []
    prepare(
        sources(data), tmp_path, jobs=1, progress=lambda done, total, what: resumed.append(done)
    )
    assert seen == [16]
    assert resumed[0] == 32


def test_what_changed_is_read_again(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "phantoms"
    shutil.copytree(data / "phantoms", folder)
    prepare({"phantom": folder}, tmp_path / "out", jobs=1)
    image = sorted((folder / "images").iterdir())[5]
    Image.fromarray(np.zeros((160, 160), np.uint8)).save(image)
    report = prepare({"phantom": folder}, tmp_path / "out", jobs=1)
    assert report.used == {"phantom": 29}


def test_an_external_set_keeps_its_twins_out_of_training(data: Path, tmp_path: Path) -> None:
    report = prepare(sources(data), tmp_path, jobs=1, external=("pairs",))
    manifest = read_manifest(tmp_path)
    assert set(manifest.loc[manifest["source"] == "pairs", "split"]) == {"external"}
    assert report.used == {"phantom": 27, "pairs": 12}
    assert report.reasons["phantom"] == {"external_twin": 3}
    twins = pd.read_csv(tmp_path / "quarantine.csv").query("code == 'external_twin'")
    assert len(twins) == 3 and set(twins["source"]) == {"phantom"}


def test_structures_and_sources_of_ones_own_reach_the_manifest(tmp_path: Path) -> None:
    folder = tmp_path / "site one"
    for name in ("", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for seed in range(6):
        made = phantom(seed, 96, "abdomen")
        Image.fromarray(made.image).save(folder / f"{seed}.png")
        for structure, mask in made.masks.items():
            Image.fromarray(mask).save(folder / "masks" / f"{seed}_{structure}.png")
    rows = [f"{n}.png,masks/{n}_liver.png,masks/{n}_kidneys.png,40" for n in range(6)]
    (folder / "t.csv").write_text("\n".join(["image,mask_liver,mask_kidneys,age", *rows]))
    write_phantoms(tmp_path / "p", 2, side=96)
    report = prepare(
        {
            "site_a": Source("manifest", folder / "t.csv"),
            "chests": Source("phantom", tmp_path / "p"),
        },
        tmp_path / "out",
        jobs=1,
        external=("chests",),
    )
    assert report.masks["site_a"] == {"liver": 6, "kidneys": 6}
    assert report.notes == {"site_a": ("column 'age' of t.csv has no meaning here: not used",)}
    manifest = read_manifest(tmp_path / "out")
    masks = [name for name in manifest.columns if name.startswith("mask_")]
    assert masks[-2:] == ["mask_kidneys", "mask_liver"] and masks[0] == "mask_lung"
    assert set(manifest["source"]) == {"site_a", "chests"}
    assert set(manifest.loc[manifest["source"] == "chests", "split"]) == {"external"}
    (record,) = records_of(manifest, "val", "liver")
    assert record.mask_parts("kidneys")[0].is_file() and not record.mask_parts("lung")
    csv = read_manifest(tmp_path / "out" / "manifest.csv")
    pd.testing.assert_frame_equal(csv, manifest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"external": ("pair",)}, "external names pair, which is no source; sources: pairs"),
        ({"fractions": (0.8, 0.3, 0.1)}, "add up to 1"),
        ({"sources": {"a b": Source("pairs", Path("x"))}}, "'a b' cannot name a data set"),
        ({"sources": {"a": Source("pair", Path("x"))}}, "did you mean pairs"),
        ({"out": Path("data/images/out")}, "lies in the data of pairs"),
        ({"out": Path("file")}, "is a file"),
    ],
)
def test_wrong_arguments_are_refused_before_any_image_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "a.png").touch()
    (tmp_path / "file").touch()
    arguments = {"sources": {"pairs": Path("data")}, "out": Path("out"), **changes}
    with pytest.raises(DataError, match=message):
        prepare(**arguments)  # type: ignore[arg-type]  # one of several, by the parameter
    assert not (tmp_path / "out").exists()


def test_nothing_usable_leaves_the_reasons(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / "pairs" / name).mkdir(parents=True)
        Image.new("L", (80, 80)).save(tmp_path / "pairs" / name / "a.png")
    with pytest.raises(DataError, match=r"no image is usable.*quarantine\.csv"):
        prepare({"pairs": tmp_path / "pairs"}, tmp_path / "out", jobs=1)
    assert "image_unreadable" in (tmp_path / "out" / "quarantine.csv").read_text()


def test_what_cannot_be_meant(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="NAME=PATH"):
        prepare({}, tmp_path)
    with pytest.raises(DataError, match="jobs=-1"):
        prepare(sources(data), tmp_path, jobs=-1)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"store\.sqlite cannot be used"):
        prepare({"phantom": data / "phantoms"}, tmp_path / "file" / "out", jobs=1)


def test_memory_holds_one_batch_of_pixels(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is carried from reading to grouping and splitting must not hold any pixels.
    carried = []
    kept = module._measure

    def measure(*args: object) -> object:
        facts = kept(*args)  # type: ignore[arg-type]
        carried.extend(facts.values())
        return facts

    monkeypatch.setattr(module, "_measure", measure)
    prepare({"phantom": data / "phantoms"}, tmp_path, jobs=1)
    assert len(carried) == 30
    assert not any(isinstance(v, np.ndarray) for fact in carried for v in vars(fact).values())


def test_real_samples(real_data: Path, tmp_path: Path) -> None:
    names = ("covid19_radiography", "covid_qu_ex", "siim_acr")
    report = prepare({name: real_data / name for name in names}, tmp_path, jobs=1)
    group = read_manifest(tmp_path).set_index("id")["group"]
    base = "covid19_radiography/COVID-"
    # Seen by eye and by keypoint matching: the same pixels; and one patient, twice.
    assert group[f"{base}21"] == group[f"{base}18"]
    assert group[f"{base}52"] == group[f"{base}49"]
    assert group[f"{base}41"] == group[f"{base}38"]
    assert report.quarantined == dict.fromkeys(names, 0)
