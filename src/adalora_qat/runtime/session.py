"""How ONNX Runtime is asked to compute, so that integer sums are exact on every processor.

x86 without VNNI (AVX2, AVX-512 before 2019) adds two products of an unsigned and a signed byte in
16 bits, which saturate: masks then stray further from the trained model's than roundings explain,
and nothing says so. Products of unsigned bytes are added in 32 bits there. So the runtime is asked
once how it adds, and where it saturates, the weights of a file are read as unsigned ones: the same
integers and the same zero point, both 128 higher. With VNNI signed weights are exact, and faster.
Activations, symmetric int8 in the file, are read as unsigned on every x86: its kernels want that.

The runtime has an option for this (``session.x64quantprecision``), which refuses graphs that use a
weight twice, misses those inside loops, and takes the VNNI kernels away where there are some.

The base install has no ``onnx``, so a file is changed in place: types and bytes keep their length.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime as ort

from adalora_qat.errors import CheckpointError, ConfigError
from adalora_qat.runtime.graph_file import GRAPH, INITIALIZER, NODE, TENSOR_NAME, message_fields
from adalora_qat.runtime.kept import Kept

CPU = ("CPUExecutionProvider",)
_X86 = ("x86_64", "amd64", "x86", "i386", "i686")
# It quantizes float weights between quantized values, which the policy left in float.
_NOT_ASKED_FOR = ["WeightBiasQuantization"]
# ONNX Runtime's own warnings are for developers; errors arrive as exceptions.
_ERRORS_ONLY = 3

# MatMulInteger of a uint8 input (2, 4) with a (4, 4) of int8, all 127, as onnx.helper writes it.
PROBE = bytes.fromhex(
    "080912003a640a180a01610a0162120179220d4d61744d756c496e74656765721201702a1b0804080410034201624a"
    "107f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f5a130a0161120e0a0c080212080a0208020a02080462130a0179120e0a0c"
    "080612080a0208020a02080442040a00100a"
)

# Fields of ONNX's messages (onnx.proto3), by their numbers: of a node, an attribute, a tensor.
_ATTRIBUTE, _SUBGRAPH, _SUBGRAPHS = 5, 6, 11
_DATA_TYPE, _RAW_DATA = 2, 9
_INT8, _UINT8 = 3, 2
# What ``export.layers`` calls an integer weight that kernels multiply, and its zero point; the
# zero point of activations, and the integers that a map is padded with.
_INTEGERS, _ZERO_POINT = b"_int8", b"_zero_point"
_ACTIVATIONS = (b"input_zero_point", b".blank")


def session_options(threads: int | None = None) -> ort.SessionOptions:
    """Return options for a session on the CPU, with ``threads_of`` these threads."""
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads_of(threads)
    return options


def threads_of(threads: int | None) -> int:
    """Return how many threads an engine gets: what is asked for, one per processor if None.

    Never more than ``available_cpus``: those beyond them wait for one another, so that 256 on
    two processors give no result for minutes.

    Raises
    ------
    ConfigError
        If ``threads`` is not positive.
    """
    if threads is not None and threads < 1:
        raise ConfigError(f"threads={threads}: give at least 1, or none for one per core")
    # The runtime itself would count the cores of the machine, not those it may use.
    return min(threads or available_cpus(), available_cpus())


def available_cpus(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return how many processors this process may use, at least 1.

    That is the least of the processors it is bound to and its share of time, rounded up.

    Parameters
    ----------
    quota : the file in which cgroup v2 gives microseconds, or ``max``, in each period.
    """
    # Python 3.13 has the first, Linux the second.
    counted = getattr(os, "process_cpu_count", os.cpu_count)() or 1
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else counted
    try:
        time, period = quota.read_text("ascii").split()[:2]
        share = math.ceil(int(time) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        share = counted  # there is no quota, or "max"
    return max(1, min(counted, bound, share))


def open_session(
    path: Path,
    threads: int | None = None,
    *,
    model: bytes | None = None,
    providers: Sequence[str] = CPU,
    kept: Kept | None = None,
) -> ort.InferenceSession:
    """Open an ONNX file on the CPU.

    Parameters
    ----------
    path : the file.
    threads : as in ``threads_of``.
    model : what is run of the file, where that is not all of it.
    providers : of ONNX Runtime, the first that has an operator runs it.
    kept : where the graph goes as it is arranged for this processor.

    Raises
    ------
    CheckpointError
        If the file is missing, or is not an ONNX model that this runtime can run.
    ConfigError
        If ``threads`` is not positive.
    """
    if not path.is_file():
        raise CheckpointError(f"model file {path} does not exist")
    options = session_options(threads)
    # Planned memory is one block of the whole network's, made beside what the first run
    # already holds: half as much memory again, and slower than blocks that stay in the cache.
    options.enable_mem_pattern = False
    try:
        with TemporaryDirectory() if kept else nullcontext("") as folder:
            if kept:
                options.optimized_model_filepath = str(Path(folder) / "arranged.onnx")
            session = inference_session(path if model is None else model, options, providers)
            if kept:
                kept.write(Path(options.optimized_model_filepath).read_bytes())
    # ONNX Runtime's exceptions share no base class but Exception.
    except Exception as error:
        cause = str(error).splitlines()[0][:200]
        raise CheckpointError(
            f"{path} is not an ONNX model that can be run ({cause}); "
            "write one with `adalora-qat export`"
        ) from error
    give_memory_back()
    return session


def reopened(arranged: bytes, threads: int | None) -> ort.InferenceSession:
    """Open what ``open_session`` kept of a file; nothing is arranged again.

    Raises
    ------
    ConfigError
        If ``threads`` is not positive.
    """
    options = session_options(threads)
    options.enable_mem_pattern = False
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(arranged, options, providers=list(CPU), enable_fallback=0)
    give_memory_back()
    return session


def run_options(*, low_memory: bool) -> ort.RunOptions:
    """Return options for a run, which ends by freeing what it does not keep if memory is low."""
    options = ort.RunOptions()
    if low_memory:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def give_memory_back() -> None:
    """Return to the system what was freed: loading a model needs much more than it keeps."""
    # Only glibc has the function.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def inference_session(
    model: Path | bytes, options: ort.SessionOptions, providers: Sequence[str] = CPU
) -> ort.InferenceSession:
    """Open a model: a file or its bytes; on the CPU if no other providers are named."""
    source = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(
        runnable(model) if providers == CPU else source,
        options,
        providers=list(providers),
        disabled_optimizers=_NOT_ASKED_FOR,
        # Else it prints, to standard output, that it will try the same again.
        enable_fallback=0,
    )


def runnable(model: Path | bytes) -> str | bytes:
    """Return a model as ``InferenceSession`` should get it on this processor."""
    source = model if isinstance(model, bytes) else str(model)
    if platform.machine().lower() not in _X86:
        return source
    given = model if isinstance(model, bytes) else model.read_bytes()
    changed = unsigned(given, weights=not exact_sums())
    # A file without such integers is best read by the runtime itself.
    return source if changed is given else changed


@functools.cache
def processor_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return what Linux says that the processor can do; nothing elsewhere."""
    try:
        lines = cpuinfo.read_text("ascii", "replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.partition(":")[2].split())


@functools.cache
def exact_sums() -> bool:
    """Return whether the runtime adds products of unsigned and signed bytes without saturating."""
    session = ort.InferenceSession(PROBE, session_options(1), providers=["CPUExecutionProvider"])
    found = session.run(None, {"a": np.full((2, 4), 255, np.uint8)})[0]
    return bool((np.asarray(found) == 4 * 255 * 127).all())


def unsigned(model: bytes, *, weights: bool) -> bytes:
    """Return a model whose signed integers are unsigned, their zero points with them.

    They are known by the names that ``export.layers`` gives. Anything else stays as it is, as
    does a model that is not one.

    Parameters
    ----------
    model : the bytes of a file.
    weights : whether those of integer products are changed, too, and not activations alone.
    """
    try:
        places = [
            place
            for number, start, end in message_fields(model, 0, len(model))
            if number == GRAPH
            for place in _signed(model, start, end, weights)
        ]
    except (IndexError, ValueError):
        return model  # the runtime says best what is wrong with it
    if not places:
        return model
    changed = bytearray(model)
    for kind, first, last in places:
        changed[kind] = _UINT8
        signed = np.frombuffer(model, np.uint8, last - first, first)
        changed[first:last] = (signed ^ 128).tobytes()
    return bytes(changed)


def _signed(model: bytes, start: int, end: int, weights: bool) -> Iterator[tuple[int, int, int]]:
    """Yield where type and bytes are of each tensor of a graph to change, subgraphs too."""
    tensors: dict[bytes, tuple[int, int, int]] = {}
    for number, first, last in message_fields(model, start, end):
        if number == INITIALIZER:
            name, kind, *raw = _tensor(model, first, last)
            if kind:
                tensors[name] = kind, raw[0], raw[1]
        elif number == NODE:
            # Files of earlier versions have branches and loops.
            for inner, a, b in message_fields(model, first, last):
                if inner == _ATTRIBUTE:
                    for held, x, y in message_fields(model, a, b):
                        if held in (_SUBGRAPH, _SUBGRAPHS):
                            yield from _signed(model, x, y, weights)
    for name, place in tensors.items():
        weight = name.removesuffix(_ZERO_POINT) + _INTEGERS
        if name.endswith(_ACTIVATIONS):
            yield place
        elif weights and name.endswith(_ZERO_POINT) and weight in tensors:
            yield from (place, tensors[weight])


def _tensor(model: bytes, start: int, end: int) -> tuple[bytes, int, int, int]:
    """Return a tensor's name, and where its type and its bytes are; 0 for what is not int8."""
    name, kind, raw = b"", 0, (0, 0)
    for number, first, last in message_fields(model, start, end):
        if number == TENSOR_NAME:
            name = model[first:last]
        elif number == _DATA_TYPE and model[first] == _INT8:
            kind = first
        elif number == _RAW_DATA:
            raw = first, last
    return name, kind, *raw
