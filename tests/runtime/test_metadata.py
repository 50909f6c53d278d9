import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onnx_toy import toy_metadata, write_toy

from adalora_qat.errors import CheckpointError
from adalora_qat.imaging.geometry import Frame
from adalora_qat.runtime.metadata import ModelMetadata


def example() -> ModelMetadata:
    return ModelMetadata(
        variant="litemedsam",
        frame=Frame(256, "minmax"),
        low_res_side=256,
        policy="full",
        product_version="1.2.3",
        sources={"run": "00ff"},
        parity={"dice_min": 0.999},
        structures=("liver", "kidneys"),
    )


def test_what_is_written_is_read_back() -> None:
    assert ModelMetadata.from_props(example().to_props(), "file") == example()


def test_a_file_from_before_structures_had_names_is_read() -> None:
    props = example().to_props()
    del props["adalora_qat.structures"]
    assert ModelMetadata.from_props(props, "file").structures == ()


def test_values_are_plain_text() -> None:
    props = example().to_props()
    assert all(isinstance(value, str) for value in props.values())
    assert json.loads(props["adalora_qat.frame"]) == {"side": 256, "normalize": "minmax"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adalora_qat.format": '"2"'}, "another format"),
        ({"adalora_qat.frame": '{"side": 0, "normalize": "minmax"}'}, "model side 0"),
        ({"adalora_qat.frame": '{"side": 256}x'}, "cannot be read"),
        ({"adalora_qat.part": '"half"'}, "part='half'"),
        ({"adalora_qat.part": "[]"}, r"part=\[\]"),
        ({"adalora_qat.novelty": "1"}, "novelty"),
        ({"adalora_qat.variant": "7"}, "variant=7"),
        ({"adalora_qat.policy": "null"}, "policy=None"),
        ({"adalora_qat.product_version": "{}"}, "product_version={}"),
        ({"adalora_qat.frame": "256"}, "frame=256"),
        ({"adalora_qat.frame": "[]"}, r"frame=\[\]"),
        ({"adalora_qat.frame": '{"side": "256", "normalize": "minmax"}'}, "cannot be read"),
        ({"adalora_qat.frame": '{"side": 256.0, "normalize": "minmax"}'}, "frame="),
        ({"adalora_qat.frame": '{"side": 256, "normalize": "z"}'}, "normalize='z'"),
        ({"adalora_qat.low_res_side": "-64"}, "low_res_side=-64"),
        ({"adalora_qat.low_res_side": "257"}, "low_res_side=257"),
        ({"adalora_qat.low_res_side": "true"}, "low_res_side=True"),
        ({"adalora_qat.low_res_side": "64.5"}, "low_res_side=64.5"),
        ({"adalora_qat.mask_threshold": "NaN"}, "mask_threshold=nan"),
        ({"adalora_qat.mask_threshold": "1e999"}, "mask_threshold=inf"),
        ({"adalora_qat.mask_threshold": '"0"'}, "mask_threshold='0'"),
        ({"adalora_qat.mask_threshold": "1" + "0" * 400}, "cannot be read"),
        ({"adalora_qat.mask_threshold": "1" + "0" * 5000}, "cannot be read"),
        ({"adalora_qat.sources": '["run"]'}, "sources="),
        ({"adalora_qat.sources": '{"run": 1}'}, "sources="),
        ({"adalora_qat.parity": '{"dice_min": "high"}'}, "parity="),
        ({"adalora_qat.assurance": '{"confidence": [0.5]}'}, "assurance="),
        ({"adalora_qat.assurance": "[" * 100_000}, "cannot be read"),
        ({"adalora_qat.min_onnxruntime": "1.24"}, "min_onnxruntime=1.24"),
        ({"adalora_qat.min_onnxruntime": '"newest"'}, "min_onnxruntime='newest'"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_damaged_metadata_is_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ModelMetadata.from_props({**example().to_props(), **change}, "some.onnx")


def test_foreign_metadata_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"x\.onnx is an ONNX model but not one"):
        ModelMetadata.from_props({"author": "someone"}, "x.onnx")


def test_the_oldest_runtime_is_optional_and_a_digest_is_not_metadata() -> None:
    props = example().to_props()
    assert "adalora_qat.min_onnxruntime" not in props
    newer = replace(example(), min_onnxruntime="1.24.1")
    sealed = {**newer.to_props(), "adalora_qat.digest": '"00"'}
    assert ModelMetadata.from_props(sealed, "file") == newer


def test_a_missing_value_is_refused() -> None:
    props = example().to_props()
    del props["adalora_qat.frame"]
    with pytest.raises(CheckpointError, match="frame"):
        ModelMetadata.from_props(props, "some.onnx")


GRAPH = {"image": [1, 3, 256, 256], "boxes": [1, "N", 4], "logits": [1, "N", 256, 256]}
CHECKED = {"input_check": {"mean": {"shape": [1024]}}}


@pytest.mark.parametrize(
    ("metadata", "shapes", "name"),
    [
        ({"frame": Frame(512, "minmax")}, {}, "image"),
        ({"low_res_side": 64}, {}, "logits"),
        ({}, {"image": [1, 1, 256, 256]}, "image"),
        ({}, {"image": [256, 256]}, "image"),
        ({"assurance": CHECKED}, {"embeddings": [4096, 128]}, "embeddings"),
        ({"assurance": {"input_check": {"mean": 3}}}, {"embeddings": [4096, 256]}, "embeddings"),
    ],
)
def test_metadata_of_another_graph_is_refused(
    metadata: dict[str, Any], shapes: dict[str, Any], name: str
) -> None:
    example().check_graph(GRAPH, "some.onnx")
    fitting = {**GRAPH, "embeddings": [4096, 256]}
    replace(example(), assurance=CHECKED).check_graph(fitting, "some.onnx")
    with pytest.raises(CheckpointError, match=rf"some\.onnx does not fit its graph \({name}"):
        replace(example(), **metadata).check_graph({**GRAPH, **shapes}, "some.onnx")


def changed(path: Path, change: bytes = b"", to: bytes = b"") -> bytes:
    data = write_toy(path).read_bytes()
    assert change in data
    return data.replace(change, to)


def test_a_file_is_read_and_held_against_its_graph(tmp_path: Path) -> None:
    assert ModelMetadata.of(changed(tmp_path / "a.onnx"), "a") == toy_metadata()
    other = changed(tmp_path / "b.onnx", b'"side": 32', b'"side": 64')
    with pytest.raises(CheckpointError, match=r"b does not fit its graph \(image"):
        ModelMetadata.of(other, "b")


def test_metadata_that_are_no_text_are_refused(tmp_path: Path) -> None:
    damaged = changed(tmp_path / "c.onnx", b'"toy"', b'"\xfe\xfe\xfe"')
    with pytest.raises(CheckpointError, match="metadata of c are not text"):
        ModelMetadata.of(damaged, "c")
    with pytest.raises(CheckpointError, match="d is not an ONNX model"):
        ModelMetadata.of(b"no model", "d")


def test_whether_it_was_trained_without_a_box_may_be_known() -> None:
    assert "adalora_qat.automatic_prompt" not in example().to_props()
    for known in (True, False):
        props = replace(example(), automatic_prompt=known).to_props()
        assert ModelMetadata.from_props(props, "file").automatic_prompt is known
    with pytest.raises(CheckpointError, match="automatic_prompt='no'"):
        replace(example(), automatic_prompt="no")  # type: ignore[arg-type]
