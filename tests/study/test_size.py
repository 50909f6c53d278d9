import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from adalora_qat.checkpoint import RunFolder, save_model
from adalora_qat.config import RunConfig
from adalora_qat.errors import CheckpointError, ConfigError
from adalora_qat.export.onnx import export_onnx
from adalora_qat.export.parity import ParityCase
from adalora_qat.model.sam import Segmenter, random_segmenter
from adalora_qat.quantize.pack import load_packed
from adalora_qat.quantize.policy import load_policy
from adalora_qat.recipe import load_config
from adalora_qat.study.size import (
    DESCRIPTION,
    packed_size,
    quantize_on_phantom,
    size_of,
    weight_bytes,
)

Converted = Callable[[str, str], Segmenter]


def packed(converted: Converted, policy: str, file: Path) -> Path:
    packed_size(converted("tiny-vit-test", policy), load_policy(policy), "x", file)
    return file


@pytest.mark.parametrize("policy", ["full", "int8-all", "w4a8"])
def test_every_byte_of_the_file_is_counted_once(
    policy: str, tmp_path: Path, converted: Converted
) -> None:
    file = packed(converted, policy, tmp_path / "model.safetensors")
    size = size_of(file)
    assert size.total == file.stat().st_size
    assert sum(sum(part.values()) for part in size.parts.values()) == size.total
    assert set(size.parts) == {"image_encoder", "mask_decoder", "prompt_encoder", DESCRIPTION}
    # Held against the tensors themselves, read by another library.
    kinds = {"INT8": "weight_int8", "INT4": "weight_int4", "INT32": "bias_int32"}
    with safe_open(file, framework="pt") as tensors:
        stored = {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
    for precision, suffix in kinds.items():
        of_layers = sum(t.nbytes for key, t in stored.items() if key.endswith(suffix))
        whole = sum(t.nbytes for t in stored.values() if t.dtype == torch.int8)
        expected = whole if precision == "INT8" else of_layers
        assert size.by_precision().get(precision, 0) == expected
    scales = sum(t.nbytes for key, t in stored.items() if key.endswith("scale"))
    assert size.by_precision()["scales"] == scales > 0


def test_empty_branches_are_counted_as_full_ones_would_be(tmp_path: Path) -> None:
    policy = load_policy("w4a8")
    sizes = {
        rank: packed_size(
            quantize_on_phantom(random_segmenter("tiny-test", 0), policy, rank),
            policy,
            "x",
            tmp_path / f"{rank}.safetensors",
        ).by_precision()
        for rank in (0, 1, 2)
    }
    assert "FP16" not in sizes[0]
    assert sizes[2]["FP16"] == 2 * sizes[1]["FP16"] > 0
    assert all(sizes[2][kind] == sizes[0][kind] for kind in ("INT4", "INT8", "scales"))


def test_the_ratio_is_that_of_two_files(tmp_path: Path, converted: Converted) -> None:
    float_file, int_file = tmp_path / "float.safetensors", tmp_path / "int.safetensors"
    packed(converted, "none", float_file)
    size = size_of(packed(converted, "int8-all", int_file))
    # The descriptions of the two float files differ by a few letters.
    assert size.fp32_total == pytest.approx(float_file.stat().st_size, abs=64)
    assert size.ratio == pytest.approx(
        float_file.stat().st_size / int_file.stat().st_size, rel=1e-3
    )
    assert size.policy == "int8-all"
    json.dumps(size.figures(), allow_nan=False)


def test_a_run_is_what_it_ships(tmp_path: Path) -> None:
    config = RunConfig.model_validate({"model": {"variant": "tiny-test", "init": "random"}})
    run = RunFolder.create(tmp_path / "run", config)
    with pytest.raises(CheckpointError, match="no finished"):
        size_of(run.path)
    save_model(
        random_segmenter("tiny-test", 0), run.stage("stage1") / "model.safetensors", config,
        "stage1",
    )  # fmt: skip
    plain, small = size_of(run.path), size_of(run.path, "int8-all")
    assert (plain.policy, small.policy) == ("none", "int8-all")
    assert plain.ratio == pytest.approx(1, abs=1e-3)
    assert small.ratio is not None and small.ratio > 1.5
    assert plain.fp32_total == small.fp32_total
    # What is counted is a temporary file: the run folder is as it was.
    assert {file.name for file in run.path.rglob("*")} == {
        "config.yaml", "stage1", "model.safetensors",
    }  # fmt: skip


def test_an_onnx_file_is_counted_too(
    tmp_path: Path, converted: Converted, some_cases: Callable[..., list[ParityCase]]
) -> None:
    from adalora_qat.config import ExportConfig

    file, gate = tmp_path / "m.onnx", ExportConfig(min_dice=0, min_pixel_agreement=0)
    segmenter = converted("tiny-vit-test", "int8-all")
    export_onnx(segmenter, file, some_cases(1), policy="int8-all", sources={}, gate=gate)
    size = size_of(file)
    assert sum(sum(part.values()) for part in size.parts.values()) == file.stat().st_size
    assert size.policy == "int8-all"
    weights = sum(m.weight_int8.numel() for m in segmenter.modules() if hasattr(m, "weight_int8"))
    assert size.by_precision()["INT8"] >= weights
    with pytest.raises(ConfigError, match="has its policy"):
        size_of(file, "full")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        size_of(tmp_path / "nowhere.safetensors")
    with pytest.raises(CheckpointError, match="not a run folder"):
        size_of(tmp_path)
    with pytest.raises(ConfigError, match="did you mean w4a8"):
        size_of(tmp_path, "w4a")


@torch.no_grad()
def test_what_one_phantom_quantizes_loads_again(tmp_path: Path) -> None:
    policy = load_policy("w4a8")
    model = quantize_on_phantom(random_segmenter("tiny-test", 0), policy)
    file = tmp_path / "model.safetensors"
    packed_size(model, policy, "x", file)
    loaded = load_packed(file, random_segmenter("tiny-test", 1))
    images, boxes = torch.rand(1, 3, 64, 64), torch.tensor([[[5.0, 5, 50, 60]]])
    assert torch.equal(loaded(images, boxes)[0], model(images, boxes)[0])


def test_bytes_of_a_policy() -> None:
    plain = weight_bytes(load_config("sam-vit-base", ["quantize.policy=none"]))
    assert plain == {"float32": 4 * 93_735_728, "bfloat16": 2 * 93_735_728}
    decoder = weight_bytes(load_config("sam-vit-base", ["quantize.policy=decoder"]))
    # Only weights of the decoder and of the prompt encoder may shrink, to a quarter at best.
    saved = decoder["float32"] - decoder["policy decoder"]
    assert 0.9 * 3 * 4_058_340 < saved < 3 * (4_058_340 + 6_476)
    full = weight_bytes(load_config("sam-vit-base"))["policy full"]
    # All but the qkv layers, norms, biases and positions: 12 × 768 × 2304 stay FP32.
    assert 4 * 12 * 768 * 2304 < full < decoder["policy decoder"]
