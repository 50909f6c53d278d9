"""The quality gate: each objection once, none to sound records, and never a crash."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from adalora_qat.corpus.mask_codes import EncodedRecord, RelativeRuns
from adalora_qat.corpus.quality import QualityLimits, inspect
from adalora_qat.corpus.records import Record
from adalora_qat.corpus.sources import read_source
from adalora_qat.phantom.phantom import phantom

CASE = phantom(3, 128)
LUNG = CASE.masks["left_lung"] | CASE.masks["right_lung"]
# Found by eye on contact sheets of all 247.
BLOWN_OUT = {f"jsrt/JPCLN{number:03d}" for number in (31, 37, 78, 83, 94, 117, 122)}

Maker = Callable[..., Record]


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    """Return a maker of a phantom record with its image or masks replaced."""

    def made(image: np.ndarray = CASE.image, **masks: np.ndarray) -> Record:
        path = tmp_path / "image.png"
        Image.fromarray(image).save(path)
        files = {}
        for kind, mask in (masks or {"lung": LUNG}).items():
            files[kind] = tmp_path / f"{kind}.png"
            Image.fromarray(mask.astype(np.uint8) * 255).save(files[kind])
        return Record("s/a", "s", path, files)

    return made


def codes(record: Record, limits: QualityLimits | None = None) -> list[str]:
    return [objection.code for objection in inspect(record, limits)]


@pytest.mark.parametrize("source", ["jsrt", "shenzhen", "covid19_radiography", "covid_qu_ex"])
def test_real_images_every_blown_out_one_and_no_other(real_data: Path, source: str) -> None:
    records = read_source(source, real_data / source).records
    # Every blown-out image and a third of the others; the benchmark takes them all.
    chosen = [r for n, r in enumerate(records) if n % 3 == 0 or r.id in BLOWN_OUT]
    found = {r.id: codes(r) for r in chosen}
    wrong = {key: value for key, value in found.items() if value}
    expected = BLOWN_OUT if source == "jsrt" else set()
    assert wrong == {key: ["image_blown_out"] for key in expected}


def test_a_sound_phantom_passes_in_8_and_16_bits_and_with_a_smaller_mask(make: Maker) -> None:
    assert codes(make(**CASE.masks)) == []
    assert codes(make(CASE.image.astype(np.uint16) * 16)) == []
    assert codes(make(lung=LUNG[::2, ::2])) == []


@pytest.mark.parametrize(
    ("image", "code"),
    [
        ((240 + CASE.image // 17).astype(np.uint8), "image_blown_out"),
        ((CASE.image // 20).astype(np.uint8), "image_blank"),
        ((120 + CASE.image // 20).astype(np.uint8), "image_blank"),
        ((CASE.image // 16 * 16).astype(np.uint8), "image_levels"),
        (CASE.image[:40, :40], "image_size"),
        (np.tile(CASE.image[:64], (1, 3)), "image_aspect"),
        (np.where(CASE.image > 90, 255, CASE.image).astype(np.uint8), "image_white"),
    ],
)
def test_images_that_are_no_use(make: Maker, image: np.ndarray, code: str) -> None:
    record = make(image, lung=np.ones(image.shape, dtype=bool))
    assert codes(record)[0] == code


def test_a_constant_image_is_told_whoever_read_it(make: Maker) -> None:
    flat = np.full((128, 128), 77, np.uint8)
    assert "one colour" in inspect(make(flat))[0].reason
    assert inspect(make(), pixels=flat)[0].code == "image_constant"


def test_a_mostly_black_frame_round_a_small_image_is_told(make: Maker) -> None:
    frame = np.pad(CASE.image, 128)
    limits = QualityLimits(min_centre_range=0)
    assert "image_black" in codes(make(frame, lung=np.pad(LUNG, 128)), limits)


def test_a_blown_out_dicom_is_not_saved_by_stretching(
    tmp_path: Path, fuzz_inputs: ModuleType
) -> None:
    bright = (240 + CASE.image // 17).astype(np.uint8)
    path = tmp_path / "a.dcm"
    path.write_bytes(fuzz_inputs.dicom_bytes(bright, 8, fuzz_inputs.ExplicitVRLittleEndian))
    assert codes(Record("s/a", "s", path)) == ["image_blown_out"]


@pytest.mark.parametrize(
    ("masks", "code"),
    [
        ({"lung": np.zeros((128, 128), bool)}, "mask_empty"),
        ({"lung": LUNG[:, 20:108]}, "mask_frame"),
        ({"lung": np.ones((128, 128), bool)}, "mask_area"),
        ({"heart": np.eye(128, dtype=bool)}, "mask_area"),
        ({"lung": np.roll(LUNG, 14, axis=0)}, "mask_misaligned"),
        ({"lung": LUNG[::-1]}, "mask_misaligned"),
        (
            {"left_lung": CASE.masks["right_lung"], "right_lung": CASE.masks["left_lung"]},
            "mask_sides",
        ),
        ({"lung": LUNG, "infection": CASE.masks["heart"] & ~LUNG}, "mask_outside_lung"),
    ],
)
def test_masks_that_are_wrong(make: Maker, masks: dict[str, np.ndarray], code: str) -> None:
    assert code in codes(make(**masks))


def test_an_inverted_image_is_told_by_its_mask(make: Maker) -> None:
    assert codes(make(255 - CASE.image)) == ["mask_misaligned"]


def test_an_empty_lesion_mask_says_there_is_none(make: Maker) -> None:
    nothing = np.zeros((128, 128), bool)
    assert codes(make(lung=LUNG, infection=nothing, pneumothorax=nothing)) == []


def test_masks_still_as_text_are_judged_too(make: Maker) -> None:
    record = make()
    coded = EncodedRecord(
        "s/a", "s", record.image, codes={"heart": RelativeRuns(("-1",), 128, 128)}
    )
    assert codes(coded) == ["mask_empty"]
    broken = EncodedRecord("s/a", "s", record.image, codes={"heart": RelativeRuns(("x",), 4, 4)})
    assert codes(broken) == ["mask_unreadable"]


def test_files_that_cannot_be_read_are_findings(make: Maker) -> None:
    record = make()
    record.masks["lung"].write_bytes(b"not a png")
    assert codes(record) == ["mask_unreadable"]
    content = record.image.read_bytes()
    record.image.write_bytes(content[: len(content) // 2])
    assert codes(record) == ["image_unreadable"]
    record.image.unlink()
    assert codes(record) == ["image_unreadable"]


def test_thresholds_decide_and_are_checked(make: Maker) -> None:
    shifted = make(lung=np.roll(LUNG, 14, axis=0))
    assert codes(shifted, QualityLimits(min_edge_agreement=0.0)) == []
    with pytest.raises(ValidationError):
        QualityLimits(min_edge_agreement=2.0)
    with pytest.raises(ValidationError):
        QualityLimits.model_validate({"min_sied": 3})


def test_mutated_files_are_read_or_quarantined_and_never_crash(fuzz_inputs: ModuleType) -> None:
    seeds = fuzz_inputs.sound_files(64)
    for number, (name, content) in enumerate(fuzz_inputs.mutated(seeds, 150, seed=5)):
        _look(content, Path(name).suffix, number)


def _look(content: bytes, suffix: str, number: int) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(content)
        file.flush()
        for objection in inspect(Record(f"fuzz/{number}", "fuzz", Path(file.name))):
            assert objection.code and objection.reason
