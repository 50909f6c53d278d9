import numpy as np
import pandas as pd
import pytest

from adalora_qat.errors import DataError
from adalora_qat.evaluate.calibration import (
    calibration_summary,
    expected_calibration_error,
    reliability,
)


def table(score: list[float], iou: list[float], **facts: str) -> pd.DataFrame:
    named = {"model": "m", "box": "automatic", "altered": "as-read", **facts}
    return pd.DataFrame({"score": score, "iou": iou, **named})


def test_groups_of_equal_size_by_hand() -> None:
    cases = table([0.9, 0.5, 0.7, 0.95, np.nan], [0.8, 0.5, 0.3, 1.0, 0.1])
    grouped = reliability(cases, bins=2)
    assert grouped["predicted"].tolist() == pytest.approx([0.6, 0.925])
    assert grouped["true"].tolist() == pytest.approx([0.4, 0.9])
    assert grouped["n"].tolist() == [2, 2]
    # (0.2 + 0.025) / 2
    assert expected_calibration_error(cases, bins=2) == pytest.approx(0.1125)


def test_one_who_is_always_right_has_no_error() -> None:
    values = np.linspace(0.4, 1, 50).tolist()
    [row] = calibration_summary(table(values, values)).to_dict("records")
    assert row["ece"] == pytest.approx(0, abs=1e-12)
    assert row["mean_error"] == pytest.approx(0, abs=1e-12)
    assert row["rank_correlation"] == pytest.approx(1)


def test_models_and_boxes_stand_apart() -> None:
    first, second = table([0.9] * 4, [0.9] * 4), table([0.9] * 4, [0.5] * 4, box="oracle")
    summary = calibration_summary(pd.concat([first, second]))
    assert summary["box"].tolist() == ["automatic", "oracle"]
    assert summary["ece"].tolist() == pytest.approx([0, 0.4])


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(DataError, match="score"):
        reliability(table([np.nan], [0.5]))
