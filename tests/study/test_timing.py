from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adalora_qat.errors import ConfigError, DataError
from adalora_qat.export.onnx import export_onnx
from adalora_qat.export.parity import ParityCase
from adalora_qat.imaging.geometry import load_image, whole_box
from adalora_qat.model.sam import random_segmenter
from adalora_qat.phantom.phantom import write_phantoms
from adalora_qat.runtime.onnx_predictor import OnnxPredictor
from adalora_qat.study.timing import BenchCase, Timing, compare_speed, time_models

BOX = (20.0, 10.0, 90.0, 100.0)


@pytest.fixture(scope="module")
def model(
    tmp_path_factory: pytest.TempPathFactory, some_cases: Callable[..., list[ParityCase]]
) -> Path:
    path = tmp_path_factory.mktemp("bench") / "tiny.onnx"
    segmenter = random_segmenter("tiny-test", 0)
    export_onnx(segmenter, path, some_cases(1), policy="none", sources={})
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    write_phantoms(folder, 2, side=128)
    return sorted((folder / "images").iterdir())


def test_each_model_answers_in_a_process_of_its_own(model: Path, images: list[Path]) -> None:
    # Held while the others start: must not be counted as theirs.
    ballast = np.ones(100_000_000)
    cases = [BenchCase(images[0], BOX), BenchCase(images[1])]
    told: list[tuple[int, int, str]] = []
    found = time_models(
        {"a": model, "b": model}, cases, rounds=2, threads=1, progress=lambda *t: told.append(t)
    )
    assert ballast.nbytes > 800e6 - 1
    assert told == [(n, 4, "speed") for n in (1, 2, 3, 4)]
    predictor = OnnxPredictor(model, threads=1)
    for one in found.values():
        assert len(one.seconds) == 4 and len(one.loads) == 2
        assert 20 < one.peak_mb < 700
        for case, mask in zip(cases, one.masks, strict=True):
            image = load_image(case.image)
            box = whole_box(*image.shape[:2]) if case.box is None else np.array(case.box)
            expected = predictor.predict(image, box[None]).masks[0]
            np.testing.assert_array_equal(mask, expected)


def test_comparison_has_ratios_to_the_last(model: Path, images: list[Path]) -> None:
    answer = compare_speed({"a": model, "b": model}, images, rounds=1)
    assert set(answer["speedup"]) == {"a"}
    rows = answer["models"]
    assert answer["speedup"]["a"] == rows["a"]["median_s"] / rows["b"]["median_s"]
    assert rows["a"]["p10_s"] <= rows["a"]["median_s"] <= rows["a"]["p90_s"]


def test_figures_by_hand() -> None:
    figures = Timing([0.5, 0.1, 0.2, 0.4, 0.3, 1.0], [2.0, 4.0, 3.0], 77.0).figures()
    assert figures["median_s"] == pytest.approx(0.35)
    assert (figures["p10_s"], figures["p90_s"]) == (0.1, 0.5)
    assert (figures["load_s"], figures["peak_mb"], figures["n"]) == (3.0, 77.0, 6)


def test_what_cannot_be_timed_is_refused(model: Path, images: list[Path]) -> None:
    with pytest.raises(DataError, match="at least one"):
        compare_speed({"a": model}, [])
    with pytest.raises(ConfigError, match="threads=0"):
        time_models({"a": model}, [BenchCase(images[0])], threads=0)
