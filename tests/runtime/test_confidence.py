import pytest

from adalora_qat.errors import DataError
from adalora_qat.runtime.confidence import Calibration


def test_the_table_survives_the_file() -> None:
    calibration = Calibration((0.5, 0.9), (0.25, 0.75), 40)
    assert Calibration.from_json(calibration.to_json()) == calibration
    assert calibration([[0.7]]).tolist() == [[0.5]]


def test_a_falling_table_is_refused() -> None:
    with pytest.raises(DataError, match="do not fall"):
        Calibration((0.1, 0.2), (0.5, 0.4), 40)
