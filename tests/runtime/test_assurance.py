"""What a file says of a model's limits, damaged in one place at a time."""

import base64
import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx_toy import toy_metadata

from adalora_qat.errors import CheckpointError
from adalora_qat.runtime.assurance import Assurance
from adalora_qat.runtime.confidence import Calibration
from adalora_qat.runtime.input_check import CLASSES, InputCheck
from adalora_qat.runtime.plausibility import Plausibility

F, K, C = 8, 3, len(CLASSES)
ZEROS = base64.b64encode(bytes(2 * F)).decode()


def whole() -> Assurance:
    ones = np.ones(F, np.float32)
    check = InputCheck(
        ones, ones, np.zeros((C, F), np.float32), np.zeros(C, np.float32),
        np.eye(K, F, dtype=np.float32), ones[:K], 1.0, 0.5, 2.0,
    )  # fmt: skip
    return Assurance(Calibration((0.5, 0.9), (0.4, 0.8), 40), check, Plausibility(0, 1, 0, 0, 0))


def test_what_is_written_is_read_back() -> None:
    given = whole().to_json()
    again = Assurance.of(toy_metadata(assurance=given), "a.onnx")
    assert again.to_json() == given


def damage(part: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda parts: parts[part].__setitem__(key, value)


@pytest.mark.parametrize(
    "change",
    [
        damage("confidence", "predicted", [0.5]),
        damage("confidence", "predicted", 5),
        damage("confidence", "expected", [0.4, 7]),
        damage("confidence", "expected", [0.4, "high"]),
        damage("confidence", "cases", None),
        damage("input_check", "mean", 3.5),
        damage("input_check", "mean", {"shape": [4], "float16": "AAAAAAAAAAA="}),
        damage("input_check", "mean", {"shape": [-3], "float16": "AA=="}),
        damage("input_check", "scale", {"shape": [F], "float16": ZEROS}),
        damage("input_check", "bias", {"shape": [C], "float16": "not base64"}),
        damage("input_check", "noise", "loud"),
        damage("input_check", "noise", 0),
        damage("input_check", "distance", float("inf")),
        damage("input_check", "novelty", 1),
        damage("plausibility", "least_area", "small"),
        damage("plausibility", "most_area", 40),
        damage("plausibility", "novelty", 1),
        lambda parts: parts["plausibility"].clear(),
        lambda parts: parts["input_check"].pop("axes"),
        lambda parts: parts["confidence"].clear(),
    ],
)
def test_damaged_limits_are_refused(change: Callable[[dict[str, Any]], None]) -> None:
    parts = copy.deepcopy(whole().to_json())
    change(parts)
    with pytest.raises(CheckpointError, match=r"what a\.onnx says of its own limits"):
        Assurance.of(toy_metadata(assurance=parts), "a.onnx")
