"""JSRT, Shenzhen, Montgomery and phantoms: real samples, and trees built to the layouts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adalora_qat.corpus.reading import Reading
from adalora_qat.corpus.sources import READERS, Source, parse_sources, read_source
from adalora_qat.errors import DataError
from adalora_qat.phantom.phantom import write_phantoms

Counts = Callable[[Reading], dict[str, int]]


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def half(path: Path, side: str) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, (slice(3, 10) if side == "image left" else slice(20, 27))] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def test_real_jsrt_has_247_patients_with_lungs_and_heart(
    real_data: Path, mask_counts: Counts
) -> None:
    reading = read_source("jsrt", real_data / "jsrt")
    assert reading.found == len(reading.records) == 247
    assert mask_counts(reading) == {"left_lung": 247, "right_lung": 247, "heart": 247}
    labels = [record.label for record in reading.records]
    assert (labels.count("nodule"), labels.count("non-nodule")) == (154, 93)
    assert len({record.patient for record in reading.records}) == 247
    # 2048 px of 0.175 mm on 512 px.
    assert reading.records[0].spacing_mm == (0.7, 0.7)
    assert len(reading.records[0].mask_parts("lung")) == 2


def test_real_shenzhen_has_a_lung_mask_an_image_and_tuberculosis_by_name(
    real_data: Path, mask_counts: Counts
) -> None:
    reading = read_source("shenzhen", real_data / "shenzhen")
    assert mask_counts(reading) == {"lung": 566}
    for record in reading.records:
        ill = record.image.stem.endswith("_1")
        assert record.label == ("tuberculosis" if ill else "normal")
    assert len({record.patient for record in reading.records}) == 566


def test_jsrt_as_published_raw_images_and_folds(tmp_path: Path, mask_counts: Counts) -> None:
    touch(tmp_path, "JSRT/All247images/JPCLN001.IMG", "JSRT/All247images/JPCNN002.IMG")
    for organ in ("left lung", "right lung", "heart"):
        touch(
            tmp_path,
            f"JSRT/scratch/fold1/masks/{organ}/JPCLN001.gif",
            f"JSRT/scratch/fold2/masks/{organ}/JPCNN002.gif",
        )
    reading = read_source("jsrt", tmp_path)
    assert mask_counts(reading) == {"left_lung": 2, "right_lung": 2, "heart": 2}
    assert reading.records[1].spacing_mm == (0.175, 0.175)


def test_shenzhen_as_published_keeps_images_without_a_mask_and_counts_the_rest(
    tmp_path: Path,
) -> None:
    touch(
        tmp_path,
        "ChinaSet/CXR_png/CHNCXR_0001_0.png",
        "ChinaSet/CXR_png/CHNCXR_0002_1.png",
        "ChinaSet/CXR_png/MCUCXR_0001_0.png",
        "ChinaSet/CXR_png/Thumbs.db",
        "mask/mask/CHNCXR_0001_0_mask.png",
        "mask/mask/CHNCXR_0009_0_mask.png",
    )
    reading = read_source("shenzhen", tmp_path)
    assert [record.id for record in reading.records] == [
        "shenzhen/CHNCXR_0001_0",
        "shenzhen/CHNCXR_0002_1",
    ]
    assert [bool(record.masks) for record in reading.records] == [True, False]
    reasons = {item.path.name: item.reason for item in reading.set_aside}
    assert reading.found == 5
    assert "not named" in reasons["MCUCXR_0001_0.png"]
    assert "not an image" in reasons["Thumbs.db"]
    assert "without an image" in reasons["CHNCXR_0009_0_mask.png"]


@pytest.mark.parametrize("left_folder_is", ["image left", "image right"])
def test_montgomery_names_lungs_by_the_patients_side(tmp_path: Path, left_folder_is: str) -> None:
    touch(tmp_path, "MontgomerySet/CXR_png/MCUCXR_0001_0.png")
    other = {"image left": "image right", "image right": "image left"}[left_folder_is]
    masks = tmp_path / "MontgomerySet" / "ManualMask"
    half(masks / "leftMask" / "MCUCXR_0001_0.png", left_folder_is)
    half(masks / "rightMask" / "MCUCXR_0001_0.png", other)
    record = read_source("montgomery", tmp_path).records[0]
    columns = np.flatnonzero(np.asarray(Image.open(record.masks["left_lung"])).any(axis=0))
    assert columns.min() == 20
    assert (record.patient, record.label) == ("MCUCXR_0001", "normal")


def test_montgomery_merged_and_its_spacing_only_at_full_size(tmp_path: Path) -> None:
    touch(tmp_path, "images/MCUCXR_0002_1.png", "masks/MCUCXR_0002_1.png")
    Image.new("L", (4892, 4020)).save(tmp_path / "images/MCUCXR_0001_0.png")
    Image.new("L", (512, 512)).save(tmp_path / "images/MCUCXR_0003_0.png")
    records = read_source("montgomery", tmp_path).records
    assert [record.spacing_mm for record in records] == [(0.0875, 0.0875), None, None]
    assert list(records[1].masks) == ["lung"]


def test_phantoms_read_back(tmp_path: Path, mask_counts: Counts) -> None:
    write_phantoms(tmp_path, 3, seed=0, side=64)
    reading = read_source("phantom", tmp_path)
    assert mask_counts(reading) == {"left_lung": 3, "right_lung": 3, "heart": 3}


@pytest.mark.parametrize("name", sorted(READERS))
def test_an_empty_or_absent_folder_is_refused_with_words(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"looked in|no images|found|cannot be read"):
        read_source(name, tmp_path)
    with pytest.raises(DataError, match=r"does not exist|cannot be read"):
        read_source(name, tmp_path / "nowhere")


def test_unknown_names_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'jsrtt'.*jsrt"):
        read_source("jsrtt", tmp_path)


def test_masks_named_unlike_their_images_are_refused_with_both_names(tmp_path: Path) -> None:
    touch(tmp_path, "images/CHNCXR_0001_0.png", "masks/seg-1.png")
    with pytest.raises(DataError, match=r"CHNCXR_0001_0\.png, mask seg-1\.png"):
        read_source("shenzhen", tmp_path)


def test_sources_have_names_of_their_own_and_any_path() -> None:
    assert parse_sources(["jsrt=a b/c=d:e", "site_a=pairs:/x y:z=1", "coco=images:/q"]) == {
        "jsrt": Source("jsrt", Path("a b/c=d:e")),
        "site_a": Source("pairs", Path("/x y:z=1")),
        "coco": Source("images", Path("/q")),
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["jsrt"], "NAME=PATH"),
        (["=x"], "NAME=PATH"),
        (["jsrt="], "NAME=PATH"),
        (["a=pairs:/x", "a=pairs:/y"], "a is given twice, /x and pairs:/y"),
        (["pairs=/x", "pairs=/y"], "pairs is given twice"),
        (["hospital=/x"], "'hospital'.*NAME=READER:PATH"),
        (["hospital=pair:/x"], "'pair'; did you mean pairs"),
    ],
)
def test_sources_that_cannot_be_meant_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_sources(given)


def test_records_carry_the_name_of_their_source(tmp_path: Path) -> None:
    touch(tmp_path, "a/images/x.png", "a/masks/x.png")
    reading = read_source("hospital_a", Source("pairs", tmp_path / "a"))
    (record,) = reading.records
    assert (reading.source, record.source, record.id) == (
        "hospital_a",
        "hospital_a",
        "hospital_a/a/x",
    )
    with pytest.raises(DataError, match=r"hospital_b: pairs: .*does not exist"):
        read_source("hospital_b", Source("pairs", tmp_path / "b"))
    with pytest.raises(DataError, match="cannot name a data set"):
        read_source("../b", Source("pairs", tmp_path / "a"))


def test_the_second_domain_reads_back_under_its_own_names(
    tmp_path: Path, mask_counts: Counts
) -> None:
    write_phantoms(tmp_path, 2, side=64, kind="abdomen")
    assert mask_counts(read_source("phantom", tmp_path)) == {"kidneys": 2, "liver": 2}
