import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adalora_qat.adapt.inject import inject
from adalora_qat.config import AdaptConfig
from adalora_qat.errors import CheckpointError, ConfigError
from adalora_qat.model.sam import Segmenter, random_segmenter
from adalora_qat.quantize.batch_norm import fold_batch_norms
from adalora_qat.quantize.convert import convert, dequantize
from adalora_qat.quantize.pack import (
    load_packed,
    pack_int4,
    read_header,
    save_packed,
    tensor_hash,
    unpack_int4,
)
from adalora_qat.quantize.policy import load_policy
from adalora_qat.quantize.prepare import freeze, observe, prepare

IMAGES = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[[5.0, 5, 50, 60]]])
CASES = [("tiny-test", "full"), ("tiny-test", "w4a8"), ("tiny-vit-test", "int8-all")]


@torch.no_grad()
def converted(variant: str, policy: str) -> Segmenter:
    model = random_segmenter(variant, 0)
    fold_batch_norms(model)
    prepare(model, load_policy(policy))
    observe(model)
    model(IMAGES, BOXES)
    freeze(model)
    convert(model)
    return model


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    model = converted("tiny-test", "w4a8")
    path = tmp_path_factory.mktemp("pack") / "model.safetensors"
    save_packed(model, path, policy=load_policy("w4a8"), source={"variant": "tiny-test"})
    with torch.no_grad():
        return path, model(IMAGES, BOXES)[0]


@pytest.mark.parametrize(("variant", "policy"), CASES)
@torch.no_grad()
def test_round_trip_is_bit_identical(variant: str, policy: str, tmp_path: Path) -> None:
    model = converted(variant, policy)
    path = tmp_path / "model.safetensors"
    header = save_packed(model, path, policy=load_policy(policy), source={"run": "r1"})
    # Another seed: nothing of the skeleton's own weights may survive.
    loaded = load_packed(path, random_segmenter(variant, 1))
    for found, expected in zip(loaded(IMAGES, BOXES), model(IMAGES, BOXES), strict=True):
        assert torch.equal(found, expected)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert read_header(path) == header
    assert header.policy == load_policy(policy) and header.source == {"run": "r1"}
    again = tmp_path / "again.safetensors"
    assert save_packed(loaded, again).sha256 == header.sha256


@torch.no_grad()
def test_adapters_that_stay_beside_are_packed_too(tmp_path: Path) -> None:
    def adapted(seed: int) -> Segmenter:
        model = random_segmenter("tiny-test", seed)
        ranks = {"layers.1.blocks.0.attn.qkv": 0, "layers.2.blocks.0.attn.qkv": 3}
        names = [n for n, _ in model.image_encoder.named_modules() if n.endswith("qkv")]
        ranks = {name: i * 2 for i, name in enumerate(names)}
        inject(model.image_encoder, AdaptConfig(rank=4, schedule=()), seed, ranks=ranks)
        return model

    model = adapted(0)
    fold_batch_norms(model)
    prepare(model, load_policy("full"))
    observe(model)
    model(IMAGES, BOXES)
    freeze(model)
    convert(model)
    path = tmp_path / "model.safetensors"
    save_packed(model, path)
    loaded = load_packed(path, adapted(1))
    assert torch.equal(loaded(IMAGES, BOXES)[0], model(IMAGES, BOXES)[0])
    with pytest.raises(CheckpointError, match=r"qkv.*is not in the model"):
        load_packed(path, random_segmenter("tiny-test", 0))


def test_bytes_on_disk_are_one_and_a_half(packed: tuple[Path, Tensor]) -> None:
    path, _ = packed
    tensors = load_file(path)
    header = read_header(path)
    four = [layer for layer in header.layers if str(layer.numerics.weight).startswith("INT4")]
    assert four
    for layer in four:
        stored = tensors[f"{layer.name}.weight_int4"]
        assert stored.dtype == torch.uint8
        assert stored.nbytes == -(-torch.Size(layer.shape).numel() // 2)
    assert tensors["mask_decoder.upscale_conv1.weight_int8"].dtype == torch.int8
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["adalora_qat"])["source"] == {"variant": "tiny-test"}


def test_every_nibble_pair_survives() -> None:
    values = torch.cartesian_prod(torch.arange(-8, 8), torch.arange(-8, 8)).to(torch.int8)
    assert torch.equal(unpack_int4(pack_int4(values), (256, 2)), values)
    odd = values.flatten()[:7]
    assert pack_int4(odd).numel() == 4 and torch.equal(unpack_int4(pack_int4(odd), (7,)), odd)
    # By hand: 3 in the low nibble, -2 = 0b1110 in the high one.
    assert pack_int4(torch.tensor([3, -2], dtype=torch.int8)).tolist() == [0xE3]
    with pytest.raises(ValueError, match="4-bit"):
        pack_int4(torch.tensor([8], dtype=torch.int8))


@torch.no_grad()
def test_packed_file_reads_into_a_float_model(packed: tuple[Path, Tensor]) -> None:
    path, _ = packed
    loaded = load_packed(path, random_segmenter("tiny-test", 1))
    weight = loaded.get_submodule("mask_decoder.iou_prediction_head.proj_in").weight
    expected = weight.clone()
    plain = dequantize(loaded)
    reference = random_segmenter("tiny-test", 2)
    fold_batch_norms(reference)
    reference.load_state_dict(plain.state_dict())
    assert torch.equal(reference.mask_decoder.iou_prediction_head.proj_in.weight, expected)
    assert torch.equal(reference(IMAGES, BOXES)[0], plain(IMAGES, BOXES)[0])


def rewrite(path: Path, target: Path, change: dict[str, Tensor | None], **header: object) -> None:
    """Write the file again with other tensors, its hash made to fit."""
    tensors = {**load_file(path), **change}
    kept = {key: value for key, value in tensors.items() if value is not None}
    text = {**read_header(path).model_dump(mode="json"), "sha256": tensor_hash(kept), **header}
    save_file(kept, target, metadata={"adalora_qat": json.dumps(text)})


KEY = "mask_decoder.upscale_conv1.weight_int8"
NIBBLES = "mask_decoder.iou_prediction_head.proj_in.weight_int4"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({KEY: None}, "is missing"),
        ({KEY: torch.zeros(1, 1, dtype=torch.int8)}, "the model has torch.int8"),
        ({KEY: torch.zeros(32, 8, 2, 2)}, "torch.float32"),
        ({"extra": torch.zeros(1)}, "extra is not in the model"),
        ({NIBBLES: torch.zeros(3, dtype=torch.uint8)}, "4-bit weights"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    packed: tuple[Path, Tensor], tmp_path: Path, change: dict[str, Tensor | None], says: str
) -> None:
    target = tmp_path / "changed.safetensors"
    rewrite(packed[0], target, change)
    with pytest.raises(CheckpointError, match=says):
        load_packed(target, random_segmenter("tiny-test", 0))


def test_damage_is_found_by_the_hash(packed: tuple[Path, Tensor], tmp_path: Path) -> None:
    target = tmp_path / "damaged.safetensors"
    data = bytearray(packed[0].read_bytes())
    data[-100] ^= 1
    target.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        load_packed(target, random_segmenter("tiny-test", 0))


def test_another_variant_is_refused(packed: tuple[Path, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="build the variant that was packed"):
        load_packed(packed[0], random_segmenter("tiny-vit-test", 0))
    with pytest.raises(CheckpointError, match="build the variant that was packed"):
        load_packed(packed[0], nn.Linear(2, 2))


def test_other_files_are_refused(packed: tuple[Path, Tensor], tmp_path: Path) -> None:
    pickled = tmp_path / "model.safetensors"
    pickled.write_bytes(pickle.dumps({"weight": [1, 2]}))
    with pytest.raises(CheckpointError, match="never loaded"):
        read_header(pickled)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_header(tmp_path / "nowhere.safetensors")
    save_file({"x": torch.zeros(1)}, pickled)
    with pytest.raises(CheckpointError, match="not a packed model"):
        read_header(pickled)
    rewrite(packed[0], pickled, {}, format="another")
    with pytest.raises(CheckpointError, match="header cannot be read"):
        read_header(pickled)


def test_only_converted_models_are_packed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="convert first"):
        save_packed(copy.deepcopy(nn.Linear(2, 2)), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
