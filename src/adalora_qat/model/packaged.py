"""The packaged INT8 model as a model to train: its ONNX file back into the segmenter.

The file holds every weight that a box prompt uses, as integers and scales or as float32, by the
names of the segmenter. Adapters are merged and batch norms folded in it, so that the model to
train has identities for batch norms. Embeddings of earlier masks are not in it, nor those of points
in files of earlier versions: they become zero, and ``weights.build`` adds those of the published
weights, which never train.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from adalora_qat.errors import CheckpointError
from adalora_qat.model.sam import Segmenter

NOT_IN_THE_FILE = tuple(
    f"prompt_encoder.{name}."
    for name in ("mask_embed", "point_embed.0", "point_embed.1", "not_a_point_embed")
)


@torch.no_grad()
def fill_from_onnx(segmenter: Segmenter, path: Path) -> None:
    """Give a segmenter the dequantized weights of an exported file, exactly.

    Raises
    ------
    CheckpointError
        If there is no such file, it is of another variant, or lacks a weight.
    """
    if not path.is_file():
        raise CheckpointError(f"this installation holds no {path.name} to train from")
    model = onnx.load(path)
    variant = json.loads({p.key: p.value for p in model.metadata_props}["adalora_qat.variant"])
    if variant != segmenter.variant.name:
        raise CheckpointError(
            f"{path.name} is a {variant}, not a {segmenter.variant.name}; set "
            f"model.variant={variant}, or other model.weights"
        )
    stored = _Stored(model.graph, path.name)
    for key, own in segmenter.state_dict().items():
        layer, _, leaf = key.rpartition(".")
        if key.startswith(NOT_IN_THE_FILE) and not stored.has(layer, leaf):
            own.zero_()
        elif layer.endswith(".bn"):
            norm = segmenter.get_submodule(layer)
            eps = norm.eps if isinstance(norm, nn.BatchNorm2d) else 0.0
            # Of unit gain: folded again, the weights are the file's to the bit.
            plain = {"weight": 1.0, "running_mean": 0.0, "running_var": 1 - eps}
            if leaf == "bias":
                own.copy_(stored.bias(layer.removesuffix("bn") + "c", own.shape))
            elif leaf in plain:
                own.fill_(plain[leaf])
        elif layer.endswith(".qkv"):
            heads = len(stored[f"{layer.removesuffix('.qkv')}.attention_biases"])
            # The file has queries, keys and values apart; the checkpoint interleaves them by head.
            rows = torch.arange(len(own)).view(heads, 3, -1).transpose(0, 1).flatten(1)
            for part, chosen in zip(("query", "key", "value"), rows, strict=True):
                own[chosen] = stored.value(f"{layer}.{part}", leaf, own[chosen].shape)
        else:
            back = isinstance(segmenter.get_submodule(layer), nn.ConvTranspose2d)
            own.copy_(stored.value(layer, leaf, own.shape, transposed=back))


class _Stored:
    """The initializers of a file, as the float32 values that they stand for."""

    def __init__(self, graph: onnx.GraphProto, origin: str) -> None:
        self.origin = origin
        self._tensors = {
            each.name: torch.from_numpy(numpy_helper.to_array(each).copy())
            for part in _graphs(graph)
            for each in part.initializer
        }

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise CheckpointError(f"{self.origin} holds no {name}: it cannot be trained from")
        return self._tensors[name]

    def has(self, layer: str, leaf: str) -> bool:
        """Return whether the file holds the parameter ``<layer>.<leaf>``."""
        return not {f"{layer}.{leaf}", f"{layer}.{leaf}_int8"}.isdisjoint(self._tensors)

    def value(
        self, layer: str, leaf: str, shape: torch.Size, *, transposed: bool = False
    ) -> Tensor:
        """Return a parameter in the segmenter's own shape.

        Parameters
        ----------
        layer, leaf : the parameter is ``<layer>.<leaf>``.
        shape : of the segmenter's parameter.
        transposed : whether it is the weight of a transposed convolution.
        """
        if leaf == "bias":
            return self.bias(layer, shape)
        name = f"{layer}.{leaf}"
        values = self[name] if name in self._tensors else self._dequantized(name, "int8")
        if len(shape) != 4 or values.shape == shape:
            return values.reshape(shape)
        # A convolution as a matrix: rows of outputs, columns of (row, column, input).
        if transposed:
            inputs, outputs, *kernel = shape
            return values.view(*kernel, outputs, inputs).permute(3, 2, 0, 1)
        outputs, inputs, *kernel = shape
        return values.view(outputs, *kernel, inputs).permute(0, 3, 1, 2)

    def bias(self, layer: str, shape: torch.Size) -> Tensor:
        """Return a bias; a transposed convolution's is stored once for each of its cells."""
        name = f"{layer}.bias"
        values = self[name] if name in self._tensors else self._dequantized(name, "int32")
        return values[: shape[0]]

    def _dequantized(self, name: str, kind: str) -> Tensor:
        integers, scale = self[f"{name}_{kind}"], self[f"{name}_scale"]
        if scale.numel() > 1 and scale.ndim < integers.ndim:
            scale = scale.view(-1, *[1] * (integers.ndim - 1))
        return integers.to(torch.float32) * scale


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
