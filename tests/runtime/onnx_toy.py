"""Hand-made model files with known answers: the mask is where the image is bright."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from adalora_qat.imaging.geometry import Frame
from adalora_qat.runtime.digest import BLANK, KEY, sealed
from adalora_qat.runtime.metadata import ModelMetadata

SIDE, LOW = 32, 16


def toy_metadata(**changes: object) -> ModelMetadata:
    values = {
        "variant": "toy",
        "frame": Frame(SIDE, "minmax"),
        "low_res_side": LOW,
        "policy": "none",
        "product_version": "0",
        "sources": {"weights": "ab" * 32},
        "parity": {"dice_min": 1.0},
    }
    return ModelMetadata(**{**values, **changes})  # type: ignore[arg-type]


def write_toy(path: Path, metadata: ModelMetadata | None = None) -> Path:
    """Logits = mean of each 2x2 of channel 0 − 0.5, the same for each box; iou = x0 / 100."""
    node = helper.make_node
    nodes = [
        node("AveragePool", ["image"], ["small"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Slice", ["small", "zero", "one", "axis"], ["channel"]),
        node("Sub", ["channel", "half"], ["centred"]),
        node("Slice", ["boxes", "zero", "one", "last"], ["x0"]),
        node("Reshape", ["x0", "row"], ["x0_row"]),
        node("Div", ["x0_row", "hundred"], ["iou"]),
        node("Reshape", ["iou", "column"], ["iou_column"]),
        node("Mul", ["iou_column", "zero_float"], ["zeros"]),
        node("Add", ["centred", "zeros"], ["logits"]),
    ]
    constants = {
        "zero": np.array([0]),
        "one": np.array([1]),
        "axis": np.array([1]),
        "last": np.array([2]),
        "half": np.float32(0.5),
        "hundred": np.float32(100),
        "zero_float": np.float32(0),
        "row": np.array([1, -1]),
        "column": np.array([1, -1, 1, 1]),
    }
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "toy",
        [
            value("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE]),
            value("boxes", TensorProto.FLOAT, [1, "N", 4]),
        ],
        [
            value("logits", TensorProto.FLOAT, [1, "N", LOW, LOW]),
            value("iou", TensorProto.FLOAT, [1, "N"]),
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return _save(graph, path, metadata or toy_metadata())


def write_new_toy(path: Path, metadata: ModelMetadata | None = None) -> Path:
    """Write today's layout: points and labels, embeddings given.

    Logits are those of the other toy; iou = x of the first point / 100.
    """
    node, value = helper.make_node, helper.make_tensor_value_info
    constants = {
        "zero": np.array([0]), "one": np.array([1]), "axis": np.array([1]),
        "flat": np.array([LOW * LOW, 1]),
        "start": np.array([0, 0]), "end": np.array([1, 1]), "axes": np.array([2, 3]),
        "row": np.array([1, -1]), "column": np.array([1, -1, 1, 1]),
        "square": np.array([1, 1, LOW, LOW]), "half": np.float32(0.5),
        "hundred": np.float32(100), "nothing": np.float32(0), "last": np.array([2]),
    }  # fmt: skip
    graph = helper.make_graph(
        [
            node("AveragePool", ["image"], ["small"], kernel_shape=[2, 2], strides=[2, 2]),
            node("Slice", ["small", "zero", "one", "axis"], ["channel"]),
            node("Reshape", ["channel", "flat"], ["embeddings"]),
            node("Slice", ["points", "start", "end", "axes"], ["x"]),
            node("Div", ["x", "hundred"], ["share"]),
            node("Reshape", ["share", "row"], ["shares"]),
            node("Slice", ["labels", "zero", "one", "last"], ["label"]),
            node("Cast", ["label"], ["label_float"], to=TensorProto.FLOAT),
            node("Reshape", ["label_float", "row"], ["label_row"]),
            node("Mul", ["label_row", "nothing"], ["no_label"]),
            node("Add", ["shares", "no_label"], ["iou"]),
            node("Reshape", ["iou", "column"], ["iou_column"]),
            node("Mul", ["iou_column", "nothing"], ["zeros"]),
            node("Reshape", ["embeddings", "square"], ["seen"]),
            node("Sub", ["seen", "half"], ["centred"]),
            node("Add", ["centred", "zeros"], ["logits"]),
        ],
        "toy",
        [
            value("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE]),
            value("points", TensorProto.FLOAT, [1, "N", "T", 2]),
            value("labels", TensorProto.INT64, [1, "N", "T"]),
        ],
        [
            value("embeddings", TensorProto.FLOAT, [LOW * LOW, 1]),
            value("logits", TensorProto.FLOAT, [1, "N", LOW, LOW]),
            value("iou", TensorProto.FLOAT, [1, "N"]),
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return _save(graph, path, metadata or toy_metadata(points=True))


def _save(graph: onnx.GraphProto, path: Path, metadata: ModelMetadata) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, metadata.to_props())
    onnx.save(model, path)
    return path


def write_sealed_toy(path: Path) -> Path:
    """Write the toy as an export of today: with its oldest runtime and a digest."""
    model = onnx.load(write_toy(path, toy_metadata(min_onnxruntime="1.18")))
    model.metadata_props.add(key=KEY, value=f'"{BLANK.decode()}"')
    path.write_bytes(sealed(model.SerializeToString()))
    return path
