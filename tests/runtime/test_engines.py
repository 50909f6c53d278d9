"""Engines: which is taken, what they compute, and what happens where one is not there."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx_toy import SIDE, toy_metadata, write_new_toy, write_toy
from typer.testing import CliRunner

from adalora_qat.cli import app
from adalora_qat.errors import CheckpointError, ConfigError
from adalora_qat.runtime import engines, kept
from adalora_qat.runtime.engines import open_network
from adalora_qat.runtime.model import load
from adalora_qat.runtime.networks import box_feeds
from adalora_qat.runtime.onnx_predictor import OnnxPredictor
from adalora_qat.runtime.session import available_cpus, processor_features

needs_openvino = pytest.mark.skipif(
    not engines.has_openvino(), reason="the extra [openvino] is not installed"
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_new_toy(tmp_path_factory.mktemp("toy") / "toy.onnx")


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((1, 3, SIDE, SIDE), dtype=np.float32)


BOXES = np.array([[3, 2, 20, 30], [9, 9, 12, 12]])


def test_features_are_read_from_the_system(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor : 0\nflags\t\t: fpu avx2 amx_bf16\n")
    assert processor_features(file) == {"fpu", "avx2", "amx_bf16"}
    assert processor_features(tmp_path / "none") == frozenset()


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("tensorflow", "give one of auto, onnxruntime, openvino"),
        ("cuda", "not installed: pip .*onnxruntime-gpu"),
        ("openvino-bf16", "needs a processor with AMX"),
    ],
)
def test_engines_that_are_not_there(
    toy: Path, engine: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "processor_features", frozenset)
    monkeypatch.setattr(engines, "has_openvino", lambda: True)
    if engine == "cuda" and "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(ConfigError, match=message):
        load(toy, engine=engine)


def test_a_missing_extra_is_named(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "has_openvino", lambda: False)
    with pytest.raises(ConfigError, match=r"pip install 'adalora-qat\[openvino\]'"):
        load(toy, engine="openvino")


@needs_openvino
def test_engines_agree_and_threads_share_them(toy: Path) -> None:
    ours, other = OnnxPredictor(toy), OnnxPredictor(toy, engine="openvino")
    assert other.engine.startswith("openvino 20") and "f32" in other.engine
    assert other.takes_points and other.metadata == ours.metadata
    images = [image(seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: other.decode(other.encode(x), box_feeds(BOXES)), images))
    for pixels, (logits, iou) in zip(images, found, strict=True):
        expected, expected_iou = ours.decode(ours.encode(pixels), box_feeds(BOXES))
        np.testing.assert_allclose(logits, expected, atol=1e-6)
        np.testing.assert_allclose(iou, expected_iou, atol=1e-6)


@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def test_what_was_arranged_is_kept_and_checked(toy: Path, tmp_path: Path, engine: str) -> None:
    cache = tmp_path / "cache"

    def answer() -> np.ndarray:
        network = open_network(toy, engine, cache=cache).network
        return network.decode(network.encode(image()), box_feeds(BOXES))[0]

    expected = answer()
    kept = {file: file.read_bytes() for file in cache.glob("*.bin")}
    assert len(kept) == 2
    np.testing.assert_array_equal(answer(), expected)
    assert {file: file.read_bytes() for file in cache.iterdir()} == kept
    for damage in (lambda data: data[:-9], lambda data: data[:99] + b"\0\1" + data[101:]):
        for file, data in kept.items():
            file.write_bytes(damage(data))
        np.testing.assert_array_equal(answer(), expected)
        # Made again, and kept again.
        assert all(len(file.read_bytes()) >= len(data) for file, data in kept.items())


@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def test_a_cache_that_cannot_be_written_does_no_harm(
    toy: Path, tmp_path: Path, engine: str
) -> None:
    (tmp_path / "cache").write_text("a file, where a folder should be")
    network = open_network(toy, engine, cache=tmp_path / "cache").network
    assert np.isfinite(network.encode(image())).all()


def test_the_oldest_kept_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_MOST", 3)
    for number in range(5):
        kept.Kept(tmp_path, number).write(b"x" * number)
    assert len(list(tmp_path.iterdir())) == 3
    assert kept.Kept(tmp_path, 4).read() == b"xxxx" and kept.Kept(None, 4).read() is None


@needs_openvino
def test_an_operator_that_is_missing_is_named(toy: Path, tmp_path: Path) -> None:
    model = onnx.load(toy)
    odd = onnx.helper.make_node("Inverse", ["centred"], ["soft"], domain="com.microsoft")
    model.graph.node.insert(len(model.graph.node) - 1, odd)
    model.graph.node[-1].input[0] = "soft"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    path = tmp_path / "odd.onnx"
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match=r"OpenVINO cannot run .*Inverse.*onnxruntime"):
        load(path, engine="openvino")
    assert OnnxPredictor(path).engine.startswith("onnxruntime")


def test_files_of_earlier_versions_run_in_onnx_runtime_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_toy(tmp_path / "earlier.onnx")
    monkeypatch.setattr(engines, "has_openvino", lambda: True)
    with pytest.raises(CheckpointError, match="earlier version, which only ONNX Runtime runs"):
        load(path, engine="openvino")
    assert "earlier version" in OnnxPredictor(path, engine="auto").engine_reason


@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def test_threads_are_positive_and_bounded(toy: Path, engine: str) -> None:
    for threads in (0, -3):
        with pytest.raises(ConfigError, match=f"threads={threads}: give at least 1"):
            load(toy, threads=threads, engine=engine)
    bounded = OnnxPredictor(toy, threads=4096, engine=engine)
    assert bounded.engine.endswith(f"threads: {available_cpus()}")


def test_a_result_says_what_ran_it(toy: Path) -> None:
    ramp = np.add.outer(np.arange(40), np.arange(50))
    told = load(toy, threads=1)(ramp, box=(1, 1, 30, 30)).to_json()["model"]
    assert told["engine"].endswith("threads: 1") and told["engine_reason"].startswith("auto: ")
    named = load(toy, threads=1, engine="onnxruntime").described()
    assert named["engine"] == f"onnxruntime {ort.__version__}, threads: 1"
    assert named["engine_reason"] == "asked for"


def test_the_table_of_engines(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "engines.json"
    done = CliRunner().invoke(
        app, ["bench", "--engines", str(toy), "--rounds", "2", "-o", str(out)]
    )
    assert done.exit_code == 0, done.output
    rows = {row["engine"]: row for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == set(engines.ENGINES[1:])
    assert rows["onnxruntime"]["dice"] == 1 and rows["onnxruntime"]["least_s"] > 0
    assert sum(row["auto"] for row in rows.values()) == 1
    assert all("missing" in row or row["dice"] > 0.99 for row in rows.values())
    refused = CliRunner().invoke(app, ["bench", "--engines", str(toy), str(toy)])
    assert refused.exit_code != 0


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(toy: Path) -> None:
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    ours, other = OnnxPredictor(toy), OnnxPredictor(toy, engine="cuda")
    expected = ours.decode(ours.encode(image()), box_feeds(BOXES))[0]
    found = other.decode(other.encode(image()), box_feeds(BOXES))[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_metadata_is_read_without_an_engine(tmp_path: Path) -> None:
    from adalora_qat.runtime.metadata import ModelMetadata

    written = toy_metadata(points=True, structures=("lung",))
    path = write_new_toy(tmp_path / "a.onnx", written)
    assert ModelMetadata.of(path.read_bytes(), "a") == written


def test_low_memory_computes_the_same(toy: Path) -> None:
    plain, low = load(toy, threads=1), load(toy, threads=1, low_memory=True)
    ramp = np.add.outer(np.arange(40), np.arange(50))
    for box in ((1, 1, 30, 30), (3, 3, 9, 9)):
        np.testing.assert_array_equal(plain(ramp, box=box).masks, low(ramp, box=box).masks)
