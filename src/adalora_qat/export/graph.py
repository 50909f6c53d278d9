"""Writing an ONNX graph by hand: scopes for names, one method for each operator used.

Values are their names. A node in the scope ``mask_decoder.upscale_conv1`` is called
``/mask_decoder/upscale_conv1/Gemm``; its initializers keep the names of the model's own state,
``mask_decoder.upscale_conv1.weight_int8``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

# As low as the operators allow, for the sake of other runtimes: LayerNormalization came with 17,
# integers of 4 bits with 21. Each with the format of files of its time.
OPSET, IR_VERSION = 17, 8
OPSET_INT4, IR_VERSION_INT4 = 21, 10
# The oldest ONNX Runtime that the package allows.
MIN_ONNXRUNTIME = "1.24.1"

Shape = Sequence[int | str]


class Graph:
    """An ONNX graph under construction."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._scopes: list[str] = []
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._taken: dict[str, int] = {}
        self._versions = OPSET, IR_VERSION

    @property
    def path(self) -> str:
        """The current scope, as a module's name."""
        return ".".join(self._scopes)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Name what is made inside after the child module ``name`` (dots allowed)."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def input(self, name: str, shape: Shape, kind: int = TensorProto.FLOAT) -> str:
        """Declare an input of the graph and return its name.

        Parameters
        ----------
        name : its own, outside all scopes.
        shape : a string in it is a dynamic size.
        kind : an ONNX element type.
        """
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, value: str, name: str, shape: Shape) -> str:
        """Declare an output of the graph and return its name, for what is computed from it."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name=f"/{name}"))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def constant(self, name: str, value: Tensor | NDArray[Any] | float) -> str:
        """Store an initializer of the current scope; the same name and value is stored once.

        Parameters
        ----------
        name : within the scope; its whole name is returned.
        value : stored in its own dtype; a Python float as float32.

        Raises
        ------
        ValueError
            If the scope has another value of that name.
        """
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if isinstance(value, float):
            array = array.astype(np.float32)
        full = f"{self.path}.{name}".lstrip(".")
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), full)
        known = self._initializers.setdefault(full, tensor)
        if known is not tensor and known.raw_data != tensor.raw_data:
            raise ValueError(f"two different values for the initializer {full}")
        return full

    def integers4(self, name: str, integers: Tensor) -> str:
        """Store integers as INT4, two in a byte, the first one low.

        Parameters
        ----------
        name : within the scope; its whole name is returned.
        integers : of −8 to 7, any shape.
        """
        full = f"{self.path}.{name}".lstrip(".")
        flat = integers.detach().cpu().numpy().astype(np.uint8).reshape(-1)
        low, high = np.pad(flat, (0, len(flat) % 2)).reshape(-1, 2).T & 0xF
        self._initializers[full] = helper.make_tensor(
            full, TensorProto.INT4, tuple(integers.shape), (low | high << 4).tobytes(), raw=True
        )
        self._versions = OPSET_INT4, IR_VERSION_INT4
        return full

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        name = self._unique(operator)
        self._nodes.append(
            helper.make_node(operator, inputs, [f"{name}_output"], name=name, **attributes)
        )
        return f"{name}_output"

    def _unique(self, operator: str) -> str:
        base = "/".join(["", *self.path.split("."), operator]) if self.path else f"/{operator}"
        count = self._taken.get(base, 0)
        self._taken[base] = count + 1
        return base if not count else f"{base}_{count}"

    def model(self, props: Mapping[str, str]) -> onnx.ModelProto:
        """Return the finished model with its metadata."""
        graph = helper.make_graph(
            self._nodes, self._name, self._inputs, self._outputs, list(self._initializers.values())
        )
        opset, ir_version = self._versions
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=ir_version,
            producer_name="adalora-qat",
        )
        helper.set_model_props(model, dict(props))
        return model

    # Operators, each a line, in the order of their names.

    def add(self, a: str, b: str) -> str:
        """Add, with broadcasting."""
        return self.node("Add", a, b)

    def concat(self, values: Sequence[str], axis: int) -> str:
        """Join along an axis."""
        return values[0] if len(values) == 1 else self.node("Concat", *values, axis=axis)

    def expand(self, value: str, shape: Sequence[int]) -> str:
        """Repeat to a fixed shape."""
        return self.node("Expand", value, self._integers(shape))

    def gather(self, value: str, index: NDArray[np.int64], axis: int) -> str:
        """Look up rows along an axis: ``index``, of any shape, takes its place."""
        name = f"index_{index.shape[0]}_{axis}"
        return self.node("Gather", value, self.constant(name, index), axis=axis)

    def gelu(self, value: str) -> str:
        """Apply the exact GELU, x·(1 + erf(x/√2))/2, in the form that runtimes fuse."""
        error = self.node("Erf", self.node("Div", value, self._shared("sqrt_2", math.sqrt(2))))
        doubled = self.multiply(value, self.add(error, self._shared("one", 1.0)))
        return self.multiply(doubled, self._shared("half", 0.5))

    def layer_norm(self, norm: nn.LayerNorm, value: str) -> str:
        """Normalise the last axis."""
        weight, bias = self.constant("weight", norm.weight), self.constant("bias", norm.bias)
        return self.node("LayerNormalization", value, weight, bias, axis=-1, epsilon=norm.eps)

    def matmul(self, a: str, b: str) -> str:
        """Multiply matrices."""
        return self.node("MatMul", a, b)

    def multiply(self, a: str, b: str) -> str:
        """Multiply, with broadcasting."""
        return self.node("Mul", a, b)

    def relu(self, value: str) -> str:
        """Cut at zero."""
        return self.node("Relu", value)

    def reshape(self, value: str, shape: Sequence[int]) -> str:
        """Reshape; one −1 is free, 0 keeps a size."""
        return self.node("Reshape", value, self._integers(shape))

    def slice(self, value: str, axis: int, start: int, stop: int, step: int = 1) -> str:
        """Take a range of an axis.

        Parameters
        ----------
        value : of any shape.
        axis : counted from 0.
        start, stop, step : as in Python: ``stop`` is left out.
        """
        ranges = [self._integers([number]) for number in (start, stop, axis, step)]
        return self.node("Slice", value, *ranges)

    def softmax(self, value: str) -> str:
        """Turn the last axis into shares of 1."""
        return self.node("Softmax", value, axis=-1)

    def squeeze(self, value: str, axis: int) -> str:
        """Drop an axis of size 1."""
        return self.node("Squeeze", value, self._integers([axis]))

    def transpose(self, value: str, order: Sequence[int]) -> str:
        """Reorder the axes."""
        return self.node("Transpose", value, perm=list(order))

    def _integers(self, values: Sequence[int]) -> str:
        name = "integers_" + "_".join(map(str, values))
        return self._shared(name, np.asarray(values, dtype=np.int64))

    def _shared(self, name: str, value: NDArray[Any] | float) -> str:
        """Store what the whole graph uses: there are hundreds of uses of a few dozen shapes."""
        scopes, self._scopes = self._scopes, []
        stored = self.constant(name, value)
        self._scopes = scopes
        return stored
