"""What ONNX Runtime really runs: the node types of the graph that it ends with."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx

from adalora_qat.errors import ExportError
from adalora_qat.runtime.session import inference_session, session_options

# Operators that multiply integers, and those that multiply floats, after optimization.
INTEGER_KERNELS = frozenset({"QGemm", "QLinearConv", "QLinearMatMul", "MatMulIntegerToFloat"})
FLOAT_KERNELS = frozenset(
    {"Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Conv", "FusedConv", "ConvTranspose"}
)


def runtime_graph(model: Path | bytes) -> list[onnx.NodeProto]:
    """Return the nodes of a model as ONNX Runtime optimizes it for this machine's CPU."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options = session_options()
        options.optimized_model_filepath = str(optimized)
        inference_session(model, options)
        return all_nodes(onnx.load(optimized, load_external_data=False).graph)


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those in its nodes: branches and bodies of loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_graphs(attribute.g)


def all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes of a graph and of those inside it."""
    return [node for one in all_graphs(graph) for node in one.node]


def kernel_counts(model: Path | bytes) -> dict[str, int]:
    """Count the operators that multiply, integer ones first."""
    counts = Counter(node.op_type for node in runtime_graph(model))
    multiplying = [*sorted(INTEGER_KERNELS), *sorted(FLOAT_KERNELS)]
    return {name: counts[name] for name in multiplying if counts[name]}


def integer_products(model: onnx.ModelProto) -> list[str]:
    """Return the names of the Gemms that are written to run on integers."""
    nodes = all_nodes(model.graph)
    producers = {node.output[0]: node.op_type for node in nodes}
    return [
        node.name
        for node in nodes
        if node.op_type == "Gemm"
        and all(producers.get(name) == "DequantizeLinear" for name in node.input)
    ]


def require_integer_kernels(model: onnx.ModelProto, path: Path) -> dict[str, int]:
    """Check that every product written as integers runs as integers; return the counts.

    Raises
    ------
    ExportError
        If ONNX Runtime fell back to float32 for any.
    """
    expected, counts = integer_products(model), kernel_counts(path)
    integer = sum(counts.get(name, 0) for name in INTEGER_KERNELS)
    if integer >= len(expected):
        return counts
    running = {node.name for node in runtime_graph(path) if node.op_type in FLOAT_KERNELS}
    fallen = [name for name in expected if name in running]
    raise ExportError(
        f"{len(expected) - integer} of {len(expected)} integer products would run in float32 "
        f"({', '.join(fallen[:3]) or 'unnamed'}); use the version of onnxruntime that this "
        "package was tested with"
    )
