"""COVID-19 Radiography, COVID-QU-Ex and QaTa-COV19, in their published trees."""

from collections.abc import Callable
from pathlib import Path

import pytest

from adalora_qat.corpus.covid_sources import (
    read_covid19_radiography,
    read_covid_qu_ex,
    read_qata_cov19,
)
from adalora_qat.corpus.reading import Reading
from adalora_qat.errors import DataError

Counts = Callable[[Reading], dict[str, int]]


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_real_radiography_sample(real_data: Path, mask_counts: Counts) -> None:
    reading = read_covid19_radiography(real_data / "covid19_radiography")
    assert mask_counts(reading) == {"lung": 60}
    assert {record.label for record in reading.records} == {"COVID"}
    assert {record.patient for record in reading.records} == {None}


def test_radiography_reads_all_four_classes(tmp_path: Path, mask_counts: Counts) -> None:
    for label in ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"):
        folder = f"COVID-19_Radiography_Dataset/{label}"
        touch(tmp_path, f"{folder}/images/{label}-1.png", f"{folder}/masks/{label}-1.png")
    touch(tmp_path, "COVID-19_Radiography_Dataset/COVID/images/COVID-2.png")
    touch(tmp_path, "COVID-19_Radiography_Dataset/Normal/masks/Normal-9.png")
    reading = read_covid19_radiography(tmp_path)
    assert reading.found == 6
    assert {record.label for record in reading.records} == {
        "COVID",
        "Lung_Opacity",
        "Normal",
        "Viral Pneumonia",
    }
    assert mask_counts(reading) == {"lung": 4}
    assert [item.path.name for item in reading.set_aside] == ["Normal-9.png"]


def test_real_qu_ex_claims_infection_only_where_it_was_outlined(
    real_data: Path, mask_counts: Counts
) -> None:
    reading = read_covid_qu_ex(real_data / "covid_qu_ex")
    assert len(reading.records) == 12
    with_infection = [record for record in reading.records if "infection" in record.masks]
    assert {record.label for record in with_infection} == {"COVID-19"}
    assert mask_counts(reading) == {"lung": 12, "infection": len(with_infection)}


def test_qu_ex_ids_do_not_depend_on_the_level_that_was_given(tmp_path: Path) -> None:
    outer = tmp_path / "archive"
    part = "Lung Segmentation Data/Lung Segmentation Data"
    for split in ("Train", "Val"):
        touch(
            outer,
            f"{part}/{split}/COVID-19/images/covid_1.png",
            f"{part}/{split}/COVID-19/lung masks/covid_1.png",
        )
    touch(
        outer,
        "Infection Segmentation Data/Test/COVID-19/images/covid_1.png",
        "Infection Segmentation Data/Test/COVID-19/lung masks/covid_1.png",
        "Infection Segmentation Data/Test/COVID-19/infection masks/covid_1.png",
    )
    whole = {record.id for record in read_covid_qu_ex(tmp_path).records}
    assert whole == {
        "covid_qu_ex/lung/train/COVID-19/covid_1",
        "covid_qu_ex/lung/val/COVID-19/covid_1",
        "covid_qu_ex/infection/test/COVID-19/covid_1",
    }
    inner = {record.id for record in read_covid_qu_ex(outer / "Lung Segmentation Data").records}
    assert inner == {identity for identity in whole if "/lung/" in identity}


def test_qata_both_versions_with_bimcv_patients(tmp_path: Path, mask_counts: Counts) -> None:
    v1, v2 = "QaTa-COV19/QaTa-COV19-v1", "QaTa-COV19/QaTa-COV19-v2"
    subject = "sub-S09345_ses-E18219_run-1_bp-chest_vp-ap_dx"
    touch(
        tmp_path,
        f"{v1}/Images/covid_1.png",
        f"{v1}/Images/covid_2.png",
        f"{v1}/Ground-truths/mask_covid_1.png",
        f"{v2}/Train Set/Images/{subject}.png",
        f"{v2}/Train Set/Ground-truths/mask_{subject}.png",
        f"{v2}/Test Set/Images/covid_1.png",
        f"{v2}/Test Set/Ground-truths/mask_covid_1.png",
    )
    reading = read_qata_cov19(tmp_path)
    records = {record.id: record for record in reading.records}
    assert set(records) == {
        "qata_cov19/v1/covid_1",
        "qata_cov19/v1/covid_2",
        f"qata_cov19/v2/train/{subject}",
        "qata_cov19/v2/test/covid_1",
    }
    assert mask_counts(reading) == {"infection": 3}
    assert records[f"qata_cov19/v2/train/{subject}"].patient == "S09345"
    assert records["qata_cov19/v1/covid_1"].patient is None


def test_another_set_is_not_taken_for_qu_ex(tmp_path: Path) -> None:
    touch(tmp_path, "Normal/images/Normal-1.png", "Normal/masks/Normal-1.png")
    with pytest.raises(DataError, match="none of the 1 images"):
        read_covid_qu_ex(tmp_path)
