import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adalora_qat.checkpoint import RunFolder, save_model
from adalora_qat.errors import CheckpointError, DataError
from adalora_qat.imaging.geometry import load_mask, mask_box_inclusive
from adalora_qat.model.sam import random_segmenter
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.quantize.policy import load_policy
from adalora_qat.quantize.prepare import freeze, observe, prepare
from adalora_qat.recipe import load_config
from adalora_qat.study import bench as bench_module
from adalora_qat.study.bench import BenchModel, bench, bench_models, in_words
from adalora_qat.study.timing import BenchCase, Timing


def row(name: str, policy: str, low: float, median: float, high: float) -> dict[str, Any]:
    return {"name": name, "policy": policy, "p10_s": low, "median_s": median, "p90_s": high}


def test_slower_is_said_in_words() -> None:
    plain, slow = row("fp32", "none", 0.9, 1.0, 1.1), row("int8", "full", 1.4, 1.5, 1.6)
    [said] = in_words([plain, slow])
    assert "int8 is SLOWER than fp32" in said and "1.50 times" in said and "overlap" not in said
    [said] = in_words([plain, row("int8", "full", 0.8, 1.05, 1.3)])
    assert "SLOWER" in said and "overlap" in said
    [said] = in_words([plain, row("int8", "full", 0.4, 0.5, 0.6)])
    assert "SLOWER" not in said and "1/2.00" in said
    assert "no float32 model" in in_words([slow])[0]


def test_rows_ratios_and_agreement_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = np.zeros((4, 4), bool)
    truth[:2] = True
    fewer = truth.copy()
    fewer[0] = False
    seen = {
        "fp32": Timing([2.0], [1.0], 300.0, [truth]),
        "int8": Timing([1.0], [1.0], 150.0, [fewer]),
    }

    def measured(models: Mapping[str, Path], *given: object) -> dict[str, Timing]:
        return {name: seen[name] for name in models}

    monkeypatch.setattr(bench_module, "time_models", measured)
    models = [
        BenchModel("fp32", Path("a.onnx"), "none", 1000),
        BenchModel("int8", Path("b.onnx"), "full", 250, "the gate says no"),
    ]
    answer = bench(models, [BenchCase(Path("x.png"), None, truth)])
    plain, small = answer["rows"]
    assert plain["ratios"] == {} and plain["dice_mean"] == 1
    assert small["ratios"] == {"fp32": {"smaller": 4.0, "faster": 2.0, "less_memory": 2.0}}
    # 4 pixels of 8: Dice 2·4 / (4 + 8), and 12 of 16 pixels equal.
    assert small["dice_mean"] == small["agreement"]["dice_mean"] == pytest.approx(8 / 12)
    assert small["agreement"]["equal_pixels"] == 0.75
    assert any("int8 would not be shipped: the gate says no" in said for said in answer["words"])
    without = bench(models, [BenchCase(Path("x.png"))])
    assert without["rows"][0]["dice_mean"] is None and without["rows"][0]["dice_n"] == 0
    json.dumps(answer, allow_nan=False)


def test_phantoms_carry_truth_and_its_box(tmp_path: Path) -> None:
    records = bench_module.phantom_records(tmp_path, 2)
    cases = bench_module.cases_of(records)
    assert len(cases) == 2
    parts = [load_mask(path) for path in records[0].mask_parts("lung")]
    np.testing.assert_array_equal(cases[0].truth, parts[0] | parts[1])
    assert cases[0].box == tuple(mask_box_inclusive(parts[0] | parts[1]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Make a run folder with a stage 1 and its PTQ, untrained."""
    config = load_config("demo", ["model.variant=tiny-test", "model.init=random", "model.side=64"])
    folder = RunFolder.create(tmp_path_factory.mktemp("runs") / "run", config)
    segmenter = random_segmenter("tiny-test", 0)
    save_model(segmenter, folder.stage("stage1") / "model.safetensors", config, "stage1")
    fold_batch_norms(segmenter)
    prepare(segmenter, load_policy("full"), config.quantize)
    observe(segmenter)
    with torch.no_grad():
        segmenter(torch.rand(1, 3, 64, 64), torch.tensor([[[5.0, 5, 50, 60]]]))
    freeze(segmenter)
    save_model(segmenter, folder.stage("ptq") / "model.safetensors", config, "ptq")
    return folder


def test_a_run_brings_its_float_forms(run: RunFolder, tmp_path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in run.path.rglob("*")}
    records = bench_module.phantom_records(tmp_path / "phantoms", 1)
    models = bench_models([run.path], tmp_path, records)
    assert [(m.name, m.policy, m.runtime) for m in models] == [
        ("PyTorch FP32", "none", "PyTorch"),
        ("ONNX FP32", "none", "ONNX Runtime"),
        ("ONNX full (ptq)", "full", "ONNX Runtime"),
    ]
    assert all(m.size_bytes == m.file.stat().st_size for m in models)
    assert {file: file.stat().st_mtime_ns for file in run.path.rglob("*")} == before
    answer = bench(models, bench_module.cases_of(records), rounds=1, threads=1)
    assert answer["reference"] == "PyTorch FP32"
    by_name = {row["name"]: row for row in answer["rows"]}
    assert by_name["ONNX FP32"]["agreement"]["equal_pixels"] > 0.99
    # Given again by hand, the file keeps its own name.
    [given] = bench_models([models[1].file], tmp_path / "other", records)
    assert (given.name, given.policy) == ("stage1.onnx", "none")


def test_what_is_no_model_is_refused(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a run folder nor"):
        bench_models([run.path / "config.yaml"], tmp_path, [])
    empty = RunFolder.create(tmp_path / "empty", run.config)
    with pytest.raises(CheckpointError, match="no finished stage 1"):
        bench_models([empty.path], tmp_path, [])
    with pytest.raises(CheckpointError, match="not a run folder"):
        bench_models([tmp_path], tmp_path, [])


def test_one_model_twice_is_refused(run: RunFolder, tmp_path: Path) -> None:
    records = bench_module.phantom_records(tmp_path / "phantoms", 1)
    with pytest.raises(DataError, match="two models are called"):
        bench_models([run.path, run.path], tmp_path, records)
