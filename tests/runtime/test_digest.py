import hashlib
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_toy import write_sealed_toy, write_toy

from adalora_qat.errors import CheckpointError
from adalora_qat.files import sha256_file
from adalora_qat.runtime.digest import DIGITS, KEY, verified_sha256
from adalora_qat.runtime.model import load
from adalora_qat.runtime.onnx_predictor import OnnxPredictor


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sealed_toy(tmp_path_factory.mktemp("sealed") / "toy.onnx")


def test_the_digest_is_that_of_the_file_with_zeros_in_its_place(toy: Path) -> None:
    assert verified_sha256(toy) == sha256_file(toy)
    [entry] = [prop for prop in onnx.load(toy).metadata_props if prop.key == KEY]
    digest = entry.value.strip('"').encode()
    data = toy.read_bytes()
    assert re.fullmatch(rb"[0-9a-f]{64}", digest) and data.count(digest) == 1
    assert hashlib.sha256(data.replace(digest, b"0" * DIGITS)).hexdigest().encode() == digest


def test_no_flipped_bit_passes(toy: Path, tmp_path: Path) -> None:
    data, flipped = toy.read_bytes(), tmp_path / "flipped.onnx"
    passed = []
    for place in range(len(data)):
        # Every byte, and of each another bit than of the one before.
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        flipped.write_bytes(changed)
        try:
            verified_sha256(flipped)
        except CheckpointError as error:
            assert "flipped.onnx is damaged" in str(error)
        else:
            passed.append(bytes(changed))
    # What is no message any more, or has lost its metadata, is left to the runtime.
    for changed in passed:
        flipped.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"flipped\.onnx"):
            OnnxPredictor(flipped, threads=1)
    assert len(passed) < len(data) / 10


def test_files_without_a_digest_pass_unless_they_had_one(tmp_path: Path) -> None:
    earlier = write_toy(tmp_path / "earlier.onnx")
    assert verified_sha256(earlier) == sha256_file(earlier)
    stripped = write_sealed_toy(tmp_path / "stripped.onnx")
    model = onnx.load(stripped)
    kept = [prop for prop in model.metadata_props if prop.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, stripped)
    with pytest.raises(CheckpointError, match=r"stripped\.onnx is damaged"):
        verified_sha256(stripped)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\xff" * 1_000_000, bytes(1000)])
def test_what_is_no_model_is_left_to_the_runtime(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "other.onnx"
    file.write_bytes(content)
    assert verified_sha256(file) == hashlib.sha256(content).hexdigest()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.onnx does not exist"):
        verified_sha256(tmp_path / "none.onnx")


@pytest.mark.parametrize("flipped", [b"AveragePool", b'{"side"'])
def test_damage_is_told_before_the_runtime_or_the_metadata_complain(
    toy: Path, tmp_path: Path, flipped: bytes
) -> None:
    data = bytearray(toy.read_bytes())
    data[data.index(flipped)] ^= 1
    (tmp_path / "flipped.onnx").write_bytes(data)
    for opened in (load, OnnxPredictor):
        with pytest.raises(CheckpointError, match=r"flipped\.onnx is damaged"):
            opened(tmp_path / "flipped.onnx")


def test_a_predictor_refuses_a_file_with_a_flipped_bit(toy: Path, tmp_path: Path) -> None:
    assert OnnxPredictor(toy, threads=1).sha256 == sha256_file(toy)
    data = bytearray(toy.read_bytes())
    # The constant 100 that the toy divides by: a model as good as any for the runtime.
    data[data.index(np.float32(100).tobytes())] ^= 1
    flipped = tmp_path / "flipped.onnx"
    flipped.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"flipped\.onnx is damaged"):
        OnnxPredictor(flipped, threads=1)
