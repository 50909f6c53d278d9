import json

import pytest

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
    )


def test_what_is_written_is_read_back() -> None:
    assert ModelMetadata.from_props(example().to_props(), "file") == example()


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
        ({"adalora_qat.novelty": "1"}, "novelty"),
    ],
)
def test_spoilt_metadata_is_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ModelMetadata.from_props({**example().to_props(), **change}, "some.onnx")


def test_foreign_metadata_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"x\.onnx is an ONNX model but not one"):
        ModelMetadata.from_props({"author": "someone"}, "x.onnx")
