"""The model in the package is what was shipped, and does here what it did there."""

import pytest

from adalora_qat.files import sha256_file
from adalora_qat.release.ship import MOST_BYTES
from adalora_qat.runtime.packaged import (
    CARD,
    MODEL,
    check_golden,
    packaged_predictor,
    read_sums,
    weights_folder,
)

FOLDER = weights_folder()
pytestmark = pytest.mark.skipif(
    not (FOLDER / MODEL).is_file(), reason="this version of the package holds no model"
)


def test_the_files_are_those_of_the_sums() -> None:
    sums = read_sums(FOLDER)
    assert {path.name for path in FOLDER.iterdir()} == {*sums, "SHA256SUMS"}
    assert all(sha256_file(FOLDER / name) == digest for name, digest in sums.items())
    assert (FOLDER / MODEL).stat().st_size <= MOST_BYTES
    assert sums[MODEL] in (FOLDER / CARD).read_text("utf-8")


def test_the_golden_phantom_gets_the_golden_mask() -> None:
    predictor = packaged_predictor(threads=1)
    assert check_golden(predictor, FOLDER) > 0.99
    assert predictor.assurance.confidence is not None
    assert predictor.assurance.input_check is not None
    assert predictor.assurance.plausibility is not None
