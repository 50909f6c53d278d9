import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from adalora_qat.corpus.records import Record
from adalora_qat.evaluate.fingerprint import answer_fingerprint, records_fingerprint
from adalora_qat.predictor import Prediction


class Linear:
    name = "linear"

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def predict(self, image: Any, boxes_xyxy_original: Any) -> Prediction:
        logits = (self.weight * image[None].astype(np.float32)).repeat(2, 0)
        return Prediction(logits > 100, np.ones(2, np.float32), logits, boxes_xyxy_original)


def test_the_last_bit_of_a_weight_is_another_model() -> None:
    weight = float(np.float32(0.7))
    assert answer_fingerprint(Linear(weight)) == answer_fingerprint(Linear(weight))
    other = float(np.nextafter(np.float32(weight), np.float32(1)))
    assert answer_fingerprint(Linear(weight)) != answer_fingerprint(Linear(other))


def test_records_are_their_statements_and_their_files(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("image", "lung", "heart")]
    for path in paths:
        path.write_text("x")
    record = Record("s/1", "s", paths[0], {"lung": paths[1], "heart": paths[2]})
    plain = records_fingerprint([record], ["lung"])
    assert records_fingerprint([record], ["lung"]) == plain
    for other in (
        dataclasses.replace(record, label="ill"),
        dataclasses.replace(record, patient="p"),
        dataclasses.replace(record, spacing_mm=(1.0, 1.0)),
    ):
        assert records_fingerprint([other], ["lung"]) != plain
    paths[2].write_text("another heart")
    assert records_fingerprint([record], ["lung"]) == plain  # it is not evaluated
    stamp = paths[1].stat().st_mtime_ns
    paths[1].write_text("y")
    os.utime(paths[1], ns=(stamp, stamp + 1))
    assert records_fingerprint([record], ["lung"]) != plain
